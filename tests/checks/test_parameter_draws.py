import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal

from pyrohmm.checks.parameter_draws import given, latent_values, one, parameter_draws


def model(x):
    with pyro.plate("all", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as i:
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x[i])


def test_given_draws_stay_as_they_are():
    values = {"a": torch.zeros(2, 5, 3, requires_grad=True), "b": torch.ones(2, 5)}
    found = parameter_draws((), values, None, 1, 0)
    assert found["a"].shape == (2, 5, 3) and not found["a"].requires_grad
    assert one(found, 1, 4)["b"] == 1 and one(found, 1, 4)["a"].shape == (3,)


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal])
def test_draws_of_a_guide_are_its_sites_alone(kind):
    pyro.clear_param_store()
    x, guide = torch.zeros(4), kind(model)
    guide(x)
    pyro.clear_param_store()
    before = torch.get_rng_state()
    found = parameter_draws((x,), None, guide, 6, 0)
    assert torch.get_rng_state().equal(before) and not list(pyro.get_param_store())
    assert list(found) == ["loc"] and found["loc"].shape == (1, 6, 3) and len(found["loc"].unique()) == 18
    assert parameter_draws((x,), None, guide, 6, 0)["loc"].equal(found["loc"])
    assert not parameter_draws((x,), None, guide, 6, 1)["loc"].equal(found["loc"])


def test_points():
    assert parameter_draws((), None, None, 5, 0) == {}
    assert parameter_draws((torch.zeros(2),), None, lambda x: None, 5, 0) == {}


def test_values_are_replayed():
    values = {"loc": torch.tensor([1.0, 2.0, 3.0])}
    trace = poutine.trace(given(values)).get_trace()
    replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(torch.zeros(4))
    assert replayed.nodes["loc"]["value"].equal(values["loc"]) and list(latent_values(replayed)) == ["loc"]


def test_bad_draws():
    with pytest.raises(TypeError, match="draws: expected tensors by name of site.*got list"):
        parameter_draws((), [torch.zeros(2)], None, 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="draws: expected a tensor for 'a', got float"):
        parameter_draws((), {"a": 1.0}, None, 1, 0)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"draws: expected shape \(2, 5, ...\) for 'b', got \(5, 2\)"):
        parameter_draws((), {"a": torch.zeros(2, 5), "b": torch.zeros(5, 2)}, None, 1, 0)
    with pytest.raises(ValueError, match=r"draws: expected shape \(chains, draws, ...\) for 'a', got \(0, 5\)"):
        parameter_draws((), {"a": torch.zeros(0, 5)}, None, 1, 0)
