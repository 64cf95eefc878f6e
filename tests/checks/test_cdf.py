import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch

from pyrohmm import nn
from pyrohmm.checks.cdf import tails
from pyrohmm.nn.emission import _laws
from pyrohmm.nn.emission.composite import Streams
from pyrohmm.nn.emission.entries import ObservedEntries, ObservedGaussian
from pyrohmm.nn.emission.mixture import Mixture

t = torch.tensor
NAN = float("nan")

CONTINUOUS = {
    "normal": (dist.Normal(t(1.0), t(2.0)), st.norm(1, 2)),
    "log-normal": (dist.LogNormal(t(0.5), t(0.7)), st.lognorm(0.7, scale=math.exp(0.5))),
    "student": (dist.StudentT(t(3.0), t(1.0), t(2.0)), st.t(3, 1, 2)),
    "exponential": (dist.Exponential(t(0.5)), st.expon(scale=2)),
    "gamma": (_laws.Gamma(t(3.0), t(0.5)), st.gamma(3, scale=2)),
    "beta": (_laws.Beta(t(3.0), t(2.0)), st.beta(3, 2)),
    "laplace": (dist.Laplace(t(1.0), t(2.0)), st.laplace(1, 2)),
    "mixture": (
        dist.MixtureSameFamily(dist.Categorical(t([0.5, 0.5])), dist.Normal(t([0.0, 0.0]), t([1.0, 1.0]))),
        st.norm(0, 1),
    ),
    "our mixture": (Mixture(t([0.5, 0.5]).log(), [dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0)]), st.norm(0, 1)),
}
DISCRETE = {
    "poisson": (dist.Poisson(t(3.0)), st.poisson(3)),
    "negative binomial": (_laws.NegativeBinomial(t(2.5), probs=t(0.4)), st.nbinom(2.5, 0.6)),
    "geometric": (dist.Geometric(t(0.3)), st.geom(0.3, loc=-1)),
    "binomial": (dist.Binomial(30, t(0.3)), st.binom(30, 0.3)),
    "bernoulli": (dist.Bernoulli(t(0.3)), st.bernoulli(0.3)),
    "categorical": (dist.Categorical(t([0.2, 0.3, 0.5])), st.rv_discrete(values=([0, 1, 2], [0.2, 0.3, 0.5]))),
    "zero-inflated": (dist.ZeroInflatedDistribution(dist.Poisson(t(3.0)), gate=t(0.0)), st.poisson(3)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_laws(name):
    law, reference = CONTINUOUS[name]
    x = reference.ppf([1e-3, 0.2, 0.5, 0.9, 0.999])
    below, at, above = tails(law, torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(below, reference.cdf(x), rtol=1e-4)
    np.testing.assert_allclose(above, reference.sf(x), rtol=1e-4)
    assert (at == 0).all() and below.dtype == torch.float64


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_laws(name):
    law, reference = DISCRETE[name]
    x = np.arange(reference.support()[0], min(reference.support()[1], 40) + 1)
    below, at, above = tails(law, torch.tensor(x).float())
    np.testing.assert_allclose(below, reference.cdf(x - 1), rtol=1e-5, atol=1e-300)
    np.testing.assert_allclose(at, reference.pmf(x), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(above, reference.sf(x), rtol=1e-5, atol=1e-16)
    torch.testing.assert_close(below + at + above, torch.ones_like(at))


def test_angles_begin_at_minus_pi_whatever_the_centre():
    law = _laws.VonMises(t([0.0, 3.0]), t([1.0, 2.0]))
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    density = law.log_prob(grid.unsqueeze(-1)).exp()
    area = torch.cumulative_trapezoid(density, grid, dim=0)
    places = [4_000, 10_000, 19_000]
    below, _, above = tails(law, grid[[p + 1 for p in places]].unsqueeze(-1))
    torch.testing.assert_close(below, area[places], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(above, 1 - area[places], rtol=1e-5, atol=1e-6)
    # A whole turn changes nothing.
    torch.testing.assert_close(tails(law, t(1.0 + 2 * math.pi)).below, tails(law, t(1.0)).below, atol=1e-6, rtol=0)


def test_gate_of_zeros():
    law = dist.ZeroInflatedDistribution(dist.Poisson(t(3.0)), gate=t(0.4))
    x = torch.arange(6.0)
    below, at, above = tails(law, x)
    torch.testing.assert_close(at, law.log_prob(x).exp().double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(below, torch.cat([at.new_zeros(1), at.cumsum(0)[:-1]]))
    torch.testing.assert_close(below + at + above, torch.ones_like(at))


def test_far_tails_keep_their_digits():
    for x, law in ((30.0, dist.Normal(t(0.0), t(1.0))), (300.0, dist.Poisson(t(3.0)))):
        reference = st.norm(0, 1) if x == 30.0 else st.poisson(3)
        assert float(tails(law, t(x)).above) == pytest.approx(reference.sf(x), rel=1e-6)
    assert float(tails(dist.Normal(t(0.0), t(1.0)), t(-30.0)).below) == pytest.approx(st.norm.cdf(-30), rel=1e-6)


def test_vectors_are_taken_entry_by_entry():
    covariance = t([[4.0, 1.0], [1.0, 9.0]])
    x = t([[2.0, 3.0], [0.0, -6.0]])
    expected = torch.special.ndtr(x / t([2.0, 3.0])).double()
    for law in (
        dist.MultivariateNormal(torch.zeros(2), covariance),
        dist.LowRankMultivariateNormal(torch.zeros(2), torch.zeros(2, 1), t([4.0, 9.0])),
        dist.Normal(torch.zeros(2), t([2.0, 3.0])).to_event(1),
        dist.Normal(torch.zeros(2), t([2.0, 3.0])).to_event(1).mask(t([True, False])),
    ):
        torch.testing.assert_close(tails(law, x).below, expected)


def test_missing_entries_may_be_nan():
    observed = t([True, False])
    for law in (
        ObservedEntries(dist.Normal(torch.zeros(2), 1.0), observed),
        ObservedGaussian(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), observed),
        Streams([dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(1), 1.0).to_event(1)], observed),
    ):
        found = tails(law, t([1.0, NAN]))
        assert float(found.below[0]) == pytest.approx(st.norm.cdf(1))
        assert all(x.isfinite().all() for x in found)


def test_streams_stand_side_by_side():
    law = Streams([dist.Poisson(t([1.0, 2.0])), dist.Normal(torch.zeros(2), 1.0).to_event(1)])
    found = tails(law, t([0.0, 0.0, 1.0]))
    assert found.at.shape == (2, 3)
    np.testing.assert_allclose(found.at[:, 0], np.exp([-1, -2]), rtol=1e-6)
    np.testing.assert_allclose(found.below[:, 1:], [[0.5, st.norm.cdf(1)]] * 2, rtol=1e-6)


def test_counts_of_symbols_given_their_sum():
    logits = t([0.2, 0.3, 0.5]).log()
    found = tails(_laws.Multinomial(logits, 1), t([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(found.at, st.binom(4, [0.2, 0.3, 0.5]).pmf([1, 0, 3]), rtol=1e-5)
    some = _laws.Multinomial(logits, 1, t([True, True, False]))
    found = tails(some, t([1.0, 2.0, NAN]))
    np.testing.assert_allclose(found.at[:2], st.binom(3, [0.4, 0.6]).pmf([1, 2]), rtol=1e-5)
    assert all(x.isfinite().all() for x in found)


def test_a_law_without_a_distribution_function_is_named():
    with pytest.raises(TypeError, match="emission: expected laws with a distribution function, got Dirichlet"):
        tails(dist.Dirichlet(torch.ones(3)), torch.ones(3) / 3)


@pytest.mark.parametrize("emission", [nn.GaussianMixtureEmission(2, 2, 3), nn.FactorAnalysisEmission(2, 3, 1)])
def test_laws_of_emissions_agree_with_their_draws(emission):
    law = emission(torch.arange(2).unsqueeze(-1))
    torch.manual_seed(0)
    drawn = law.expand((2, 1)).sample((4000,))[:, :, 0]
    x = drawn[:1]
    share = (drawn <= x).double().mean(0)
    torch.testing.assert_close(tails(law, x[0].unsqueeze(1)).below[:, 0], share, atol=0.04, rtol=0)
