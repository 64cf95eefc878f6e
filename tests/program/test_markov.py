"""The collapsed loop against the sequential program under Pyro's own enumeration, and what it refuses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from tests.program.programs import CASES, Case


def loss_and_grads(case: Case, elbo, vectorized: bool) -> tuple[float, dict[str, torch.Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(7)
    loss = elbo(**case.options).differentiable_loss(case.model, case.guide, *case.args, vectorized=vectorized)
    store = pyro.get_param_store()
    params = {name: store.get_param(name).unconstrained() for name in store}
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    return float(loss.detach()), dict(zip(params, grads, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_elbo_and_gradient_equal_those_of_the_enumerated_sequential_program(name):
    case = CASES[name]
    elbo = TraceEnum_ELBO if case.enumerates_outside else Trace_ELBO
    loss, grads = loss_and_grads(case, elbo, vectorized=True)
    expected_loss, expected = loss_and_grads(case, TraceEnum_ELBO, vectorized=False)
    assert loss == pytest.approx(expected_loss, rel=1e-9, abs=1e-9)
    assert grads.keys() == expected.keys()
    assert any(grad.abs().max() > 1e-3 for grad in grads.values())
    for site, grad in grads.items():
        torch.testing.assert_close(grad, expected[site], rtol=1e-6, atol=1e-9, msg=lambda m, s=site: f"{s}: {m}")
