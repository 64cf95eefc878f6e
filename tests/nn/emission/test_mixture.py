import pytest
import torch
from scipy import stats

from pyrohmm.models import HMM
from pyrohmm.nn import GaussianEmission, GaussianMixtureEmission
from pyrohmm.nn.emission.mixture import COMPONENT_EMPTY, Mixture
from pyrohmm.nn.part import EMPTY
from tests.nn.emission.cases import draw, make

K, D, M = 2, 3, 2
COVARIANCES = ["diag", "spherical", "full", "tied"]


def covariances(part):
    """(K, M, D, D)."""
    law = part.components(torch.arange(K * M))
    matrices = law.covariance_matrix if hasattr(law, "covariance_matrix") else torch.diag_embed(law.variance)
    return matrices.detach().expand(K * M, D, D).unflatten(0, (K, M))


def by_scipy(part, x, k, entries):
    """The density of some entries of x, from those of the components' marginal laws."""
    probs = part.mixture_logits.detach().softmax(-1)[k]
    loc, cov = part.components.loc.detach().unflatten(0, (K, M))[k], covariances(part)[k]
    densities = [
        stats.multivariate_normal(loc[m][entries], cov[m][entries][:, entries]).pdf(x[entries]) for m in range(M)
    ]
    return torch.as_tensor(sum(p * float(d) for p, d in zip(probs, densities, strict=True))).log()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_values(covariance):
    part, (x, _) = make(f"mixture {covariance}"), draw(f"mixture {covariance}", 4)
    log_prob = part(torch.arange(K).unsqueeze(-1)).log_prob(x)
    expected = [[by_scipy(part, row, k, torch.arange(D)) for row in x] for k in range(K)]
    torch.testing.assert_close(log_prob, torch.tensor(expected).double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_missing_entries_are_integrated_out(covariance):
    part, (x, _) = make(f"mixture {covariance}"), draw(f"mixture {covariance}", 4)
    observed = torch.tensor([[True, False, True], [False, False, True], [True, True, True], [False, True, False]])
    poisoned = torch.where(observed, x, torch.nan)
    log_prob = part(torch.arange(K).unsqueeze(-1), observed=observed).log_prob(poisoned)
    expected = [
        [by_scipy(part, row, k, seen.nonzero()[:, 0]) for row, seen in zip(x, observed, strict=True)] for k in range(K)
    ]
    torch.testing.assert_close(log_prob, torch.tensor(expected).double(), rtol=1e-9, atol=1e-9)
    nothing = part(torch.arange(K), observed=torch.zeros(D, dtype=torch.bool))
    torch.testing.assert_close(nothing.log_prob(x[0]), torch.zeros(K).double())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_component_is_a_gaussian(covariance):
    loc = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    gaussian = GaussianEmission(K, D, covariance, loc=loc, scale=2.0).double()
    mixture = GaussianMixtureEmission(K, D, 1, covariance, loc=loc.unsqueeze(1), scale=2.0).double()
    x, weights = draw("gaussian diag")
    for part in (gaussian, mixture):
        part.maximize(part.expected_statistics(x, weights))
    state = torch.arange(K).unsqueeze(-1)
    torch.testing.assert_close(mixture(state).log_prob(x), gaussian(state).log_prob(x))
    torch.testing.assert_close(mixture(state).mean, gaussian(state).mean)
    torch.testing.assert_close(mixture(state).variance, gaussian(state).variance)


def test_one_state_and_one_entry():
    part = GaussianMixtureEmission(1, 1, 2, loc=[[[0.0], [5.0]]]).double()
    x = torch.cat([torch.randn(50, 1), 5 + torch.randn(100, 1)]).double()
    for _ in range(100):
        events = part.maximize(part.expected_statistics(x, torch.ones(150, 1)))
    assert not any(states.any() for states in events.values())
    torch.testing.assert_close(part(torch.tensor(0)).mean, x.mean(0))
    torch.testing.assert_close(part(torch.tensor(0)).variance, x.var(0, correction=0))


def test_blocks_of_steps_add_up(monkeypatch):
    part, (x, weights) = make("mixture full"), draw("mixture full")
    whole = part.expected_statistics(x, weights)
    monkeypatch.setattr("pyrohmm.nn.part.BLOCK", 7 * K * M * D)
    for key, value in part.expected_statistics(x, weights).items():
        torch.testing.assert_close(value, whole[key])


def test_a_component_without_data_is_told():
    part = GaussianMixtureEmission(2, 1, 2, loc=[[[0.0], [1e6]], [[0.0], [1.0]]]).double()
    x = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    events = part.maximize(part.expected_statistics(x, torch.ones(40, 2)))
    assert events[EMPTY].tolist() == [False, False]
    assert events[COMPONENT_EMPTY].tolist() == [True, False]
    assert part.components.loc[1] == 1e6
    assert part(torch.arange(2).unsqueeze(-1)).log_prob(x).isfinite().all()


def test_moments_and_draws():
    part = make("mixture full")
    law = part(torch.arange(K))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = law.sample((20000,))
    assert x.shape == (20000, K, D)
    spread = law.variance.detach()
    torch.testing.assert_close(
        ((x.mean(0) - law.mean) / spread.sqrt()).detach(), torch.zeros(K, D).double(), atol=0.05, rtol=0
    )
    torch.testing.assert_close(x.var(0), spread, rtol=0.05, atol=0)
    wide = law.expand((4, K))
    assert isinstance(wide, Mixture)
    assert wide.sample().shape == (4, K, D)
    torch.testing.assert_close(wide.log_prob(x[0]), law.log_prob(x[0]).expand(4, K))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_starts(covariance):
    generator = torch.Generator().manual_seed(0)
    part = GaussianMixtureEmission(500, 2, 3, covariance, loc=[5.0, -5.0], scale=2.0, generator=generator)
    torch.testing.assert_close(part.components.loc.mean(0), torch.tensor([5.0, -5.0]), atol=0.3, rtol=0)
    torch.testing.assert_close(part.components.loc.std(0), torch.full((2,), 2.0), rtol=0.1, atol=0)
    loc = torch.randn(K, M, D)
    exact = GaussianMixtureEmission(K, D, M, covariance, loc=loc)
    assert torch.equal(exact.components.loc, loc.flatten(0, 1))


def test_in_a_model():
    """Two states, told apart by the spread between their components: both have the same mean."""
    loc = torch.tensor([[[-1.0], [1.0]], [[-6.0], [6.0]]])
    truth = HMM(GaussianMixtureEmission(2, 1, 2, loc=loc, scale=0.5))
    with torch.no_grad():
        truth.transition.logits.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    data = truth.simulate(3, 20, seed=0)
    log_prob = truth.log_prob(data)
    assert log_prob.isfinite().all()
    assert (truth.posterior(data).viterbi().states == data.labels).all()
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in truth.parameters())


def test_errors():
    with pytest.raises(ValueError, match="num_components: expected at least 1, got 0"):
        GaussianMixtureEmission(K, D, 0)
    with pytest.raises(ValueError, match=r"loc: expected a shape that broadcasts to \(2, 2, 3\), got \(4,\)"):
        GaussianMixtureEmission(K, D, M, loc=torch.zeros(4))
    with pytest.raises(ValueError, match="covariance: expected one of"):
        GaussianMixtureEmission(K, D, M, "banded")
    with pytest.raises(TypeError, match="prior: expected a Dirichlet"):
        GaussianMixtureEmission(K, D, M, mixture_prior=torch.distributions.Normal(0.0, 1.0))
