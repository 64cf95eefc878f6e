"""Densities against scipy, in float32 against float64 where Pyro's own lose their digits, and draws."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrohmm.nn.emission._laws import LEAST_PROPORTION, Beta, Gamma, Multinomial, NegativeBinomial, VonMises

CONCENTRATIONS = torch.logspace(-3, 6, 19).double()


def binomial(c, mean):
    return NegativeBinomial(c, logits=mean.log() - c.log())


# law of a concentration, values, scipy's log-density
LAWS = {
    "negative binomial": (
        lambda c: binomial(c, torch.tensor(7.0).to(c)),
        torch.tensor([0.0, 1.0, 7.0, 300.0]),
        lambda x, c: stats.nbinom.logpmf(x, c, c / (c + 7)),
    ),
    "gamma": (
        lambda c: Gamma(c, c / 7),
        torch.tensor([1e-3, 6.9, 7.0, 7.01, 9.0]),
        lambda x, c: stats.gamma.logpdf(x, c, scale=7 / c),
    ),
    "beta": (
        lambda c: Beta(0.3 * c, 0.7 * c),
        torch.tensor([1e-6, 0.299, 0.3, 0.31, 0.9]),
        lambda x, c: stats.beta.logpdf(x, 0.3 * c, 0.7 * c),
    ),
    "von mises": (
        lambda c: VonMises(torch.tensor(1.0).to(c), c),
        torch.tensor([-2.0, 0.0, 1.0, 1.001, 1.1, 9.0]),
        lambda x, c: stats.vonmises.logpdf(x, c, loc=1.0),
    ),
}
every_law = pytest.mark.parametrize("name", LAWS)


@every_law
def test_values(name):
    make, x, reference = LAWS[name]
    x = x.double().unsqueeze(-1)
    expected = torch.as_tensor(reference(x.numpy(), CONCENTRATIONS.numpy()))
    # scipy itself loses digits in large concentrations.
    torch.testing.assert_close(make(CONCENTRATIONS).log_prob(x), expected, rtol=1e-9, atol=3e-8)


@every_law
def test_keeps_its_digits_in_float32(name):
    """Pyro's own are off by 0.01 (von Mises) to 0.4 (negative binomial) of the value at the largest concentration."""
    make, x, _ = LAWS[name]
    x, c = x.unsqueeze(-1), CONCENTRATIONS.float()
    exact = make(c.double()).log_prob(x.double())
    torch.testing.assert_close(make(c).log_prob(x).double(), exact, rtol=5e-5, atol=5e-5)


@every_law
def test_gradients(name):
    make, x, _ = LAWS[name]
    c = torch.tensor([0.01, 0.7, 30.0, 1e3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: make(c).log_prob(x.double().unsqueeze(-1)), c)


@every_law
def test_expands_and_draws(name):
    make, x, _ = LAWS[name]
    law = make(torch.tensor([0.5, 4.0]))
    wide = law.expand([3, 2])
    assert type(wide) is type(law)
    torch.testing.assert_close(wide.log_prob(x[1]), law.log_prob(x[1]).expand(3, 2))
    draws = wide.sample((5,))
    assert draws.shape == (5, 3, 2)
    assert wide.log_prob(draws).isfinite().all()


def test_outside_of_the_support():
    assert issubclass(Gamma, dist.Gamma)
    with pytest.raises(ValueError, match="within the support"):
        Gamma(torch.tensor(2.0), 1.0).log_prob(torch.tensor(0.0))
    with pytest.raises(ValueError, match="within the support"):
        Beta(torch.tensor(2.0), torch.tensor(2.0)).log_prob(torch.tensor(1.1))
    law = Beta(torch.tensor([0.5, 2.0]), torch.tensor([2.0, 0.5]))
    for edge, near in ((0.0, LEAST_PROPORTION), (1.0, 1 - LEAST_PROPORTION)):
        assert law.log_prob(torch.tensor(edge)).isfinite().all()
        torch.testing.assert_close(law.log_prob(torch.tensor(edge)), law.log_prob(torch.tensor(near)))
    law = Gamma(torch.tensor([0.5, 2.0]), torch.tensor(1.0), validate_args=False)
    assert law.log_prob(torch.tensor(0.0)).isfinite().all()


def test_multinomial():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    x = torch.tensor([[3.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0], [50.0, 2.0, 0.0, 1.0]]).double()
    law = Multinomial(logits.unsqueeze(1), 5)
    probs = logits.softmax(-1).numpy()
    expected = torch.stack(
        [torch.tensor([float(stats.multinomial.logpmf(row, int(row.sum()), p)) for row in x.numpy()]) for p in probs]
    )
    torch.testing.assert_close(law.log_prob(x), expected.double(), rtol=1e-6, atol=1e-6)
    assert law.batch_shape == (3, 1) and law.event_shape == (4,)
    assert (law.sample((6,)).sum(-1) == 5).all()
    assert law.expand([3, 2]).sample().shape == (3, 2, 4)
    with pytest.raises(ValueError, match="within the support"):
        law.log_prob(x - 0.5)


def test_multinomial_of_some_symbols_is_that_of_these_alone():
    logits = torch.tensor([0.3, -1.0, 0.5]).double()
    observed = torch.tensor([[True, False, True], [False, False, False]])
    x = torch.tensor([[2.0, torch.nan, 3.0], [torch.nan] * 3]).double()
    log_prob = Multinomial(logits, 1, observed).log_prob(x)
    alone = Multinomial(logits[[0, 2]], 1).log_prob(torch.tensor([2.0, 3.0]).double())
    torch.testing.assert_close(log_prob, torch.stack([alone, alone.new_zeros(())]))
