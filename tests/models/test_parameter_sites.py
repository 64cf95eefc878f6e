import pyro
import pytest
import torch
from pyro import poutine

from pyrohmm import nn
from pyrohmm.models.parameter_sites import parameter_sites
from tests.models.test_bayesian_hmm import EMISSIONS, EVERY, K


def make(name, ordered=False):
    emission = EMISSIONS[name]().double()
    return emission, parameter_sites("emission", emission, ordered=ordered, dtype=torch.float64)


@pytest.mark.parametrize(("name", "ordered"), EVERY)
@pytest.mark.parametrize("lead", [(), (4, 1, 1)])
def test_a_draw_has_the_parameters_of_its_program(name, ordered, lead):
    emission, sites = make(name, ordered)
    torch.manual_seed(0)
    with poutine.trace() as seen, pyro.plate_stack("draws", lead):
        values = sites.sample()
    draw = {k: s["value"] for k, s in seen.trace.nodes.items() if s["type"] == "sample" and not k.startswith("draws")}
    again = sites.values({k: v for k, v in draw.items() if k != "loc"} if ordered else draw)
    torch.testing.assert_close(again, values)
    # In place of the part's parameters, they make as many laws.
    with emission.given(values):
        assert emission(torch.arange(K).reshape(K, *[1] * len(lead))).batch_shape == (K, *lead)
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in emission._parameters.values())
    with pytest.raises(ValueError, match="draw: expected a value of"):
        sites.values({"other": torch.zeros(())})


def test_probabilities_and_rates_that_are_rounded_to_nothing_stay_numbers():
    for name, part, draw in (
        ("initial", nn.Initial(2), {"initial": torch.tensor([0.0, 1.0])}),
        ("emission", EMISSIONS["bernoulli"](), {"probs": torch.tensor([[0.0, 1.0], [0.5, 0.5]])}),
        ("emission", EMISSIONS["poisson"](), {"rate": torch.tensor([[0.0, 1.0], [0.5, 0.5]])}),
    ):
        (value,) = parameter_sites(name, part, ordered=False, dtype=torch.float32).values(draw).values()
        assert value.isfinite().all()


@pytest.mark.parametrize("name", ["diag", "spherical", "full", "tied"])
def test_prior_draws_have_the_moments_of_the_prior(name):
    """Precisions and means, of Gaussians, whose sites are others; within five standard errors."""
    num, (emission, sites) = 4000, make(name)
    law = emission.conjugate_prior().law
    torch.manual_seed(0)
    with pyro.plate("draws", num):
        drawn = sites.sample()
    precision = 1 / drawn["variance"] if "variance" in drawn else torch.cholesky_inverse(drawn["scale_tril"])
    for values, mean in ((precision, law.precision.mean), (drawn["loc"], law.loc), (drawn["loc"] ** 2, None)):
        if mean is None:
            marginal = law.mean
            mean = marginal.variance + law.loc**2
        error = values.std(0) / num**0.5
        assert ((values.mean(0) - mean).abs() < 5 * error).all()


@pytest.mark.parametrize("name", ["diag", "spherical", "line"])
def test_ordered_prior_is_that_of_states_put_in_order(name):
    num = 20000
    torch.manual_seed(0)
    found = {}
    for ordered in (False, True):
        _, sites = make(name, ordered)
        with pyro.plate("draws", num):
            drawn = sites.sample()
        loc, log_scale = drawn["loc"], drawn["variance"].log() / 2
        log_scale = (log_scale.unsqueeze(-1) if name == "spherical" else log_scale).expand(loc.shape)
        order = loc[..., 0].argsort(dim=-1, stable=True).unsqueeze(-1).expand(loc.shape)
        if ordered:
            assert (loc[..., 0].diff(dim=-1) >= 0).all()
        # Bounded or light in their tails, and the two together.
        loc, log_scale = loc.gather(1, order).tanh(), log_scale.gather(1, order)
        found[ordered] = torch.cat([loc, log_scale, loc * log_scale, log_scale**2], -1)
    error = (found[True].var(0) / num + found[False].var(0) / num).sqrt()
    assert ((found[True].mean(0) - found[False].mean(0)).abs() < 5 * error).all()
