from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyrohmm.infer.elbo import UnreadELBO

DATA = torch.tensor([0.5, -1.0, 2.0, 0.1])


def gamma_model() -> None:
    scale = pyro.sample("scale", dist.Gamma(pyro.param("shape", torch.tensor(2.0)), 1.0))
    with pyro.plate("data", 8, subsample_size=4):
        loc = pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.3)), 1.0))
        pyro.sample("x", dist.Normal(loc, scale), obs=DATA)


def switch_model() -> None:
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        h = pyro.sample("h", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(h * pyro.param("slope", torch.tensor(1.5)), 1.0), obs=DATA)


def switch_guide() -> None:
    """One site that needs a score function, and one that does not."""
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(4))))
        pyro.sample("h", dist.Normal(pyro.param("h_loc", torch.zeros(4)) + z, 0.5))


def mean_model() -> None:
    pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.3)), 1.0).expand([4]).to_event(1), obs=DATA)


CASES: dict[str, tuple[Any, Any]] = {
    "no guide": (mean_model, lambda model: lambda: None),
    "normal": (gamma_model, AutoNormal),
    "joint normal": (gamma_model, AutoMultivariateNormal),
    "point": (gamma_model, AutoDelta),
    "scored": (switch_model, lambda model: switch_guide),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}], ids=str)
def test_loss_and_gradients_are_those_of_pyro(case, options):
    model, make_guide = CASES[case]
    found: list[tuple[float, dict[str, Tensor]]] = []
    for elbo in (UnreadELBO(**options), Trace_ELBO(**options)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = make_guide(model)
        elbo.loss(model, guide)
        pyro.set_rng_seed(1)
        loss = elbo.loss_and_grads(*(poutine.scale(fn, 0.5) for fn in (model, guide)))
        gradients = {name: parameter.grad for name, parameter in pyro.get_param_store().named_parameters()}
        found.append((float(loss), gradients))
    (loss, gradients), (expected_loss, expected) = found
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert expected
    torch.testing.assert_close(gradients, expected)


def test_loss_stays_a_tensor():
    loss = UnreadELBO(num_particles=2).loss_and_grads(mean_model, lambda: None)
    assert isinstance(loss, Tensor)
    assert not loss.requires_grad


def test_without_parameters():
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    assert UnreadELBO().loss_and_grads(model, lambda: None).item() == pytest.approx(0.9189385)
    assert UnreadELBO().loss_and_grads(lambda: None, lambda: None) == 0
