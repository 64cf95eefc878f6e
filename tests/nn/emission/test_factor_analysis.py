import pytest
import torch
from scipy import stats

from pyrohmm.models import HMM
from pyrohmm.nn import FactorAnalysisEmission, GaussianEmission
from tests.nn.emission.cases import draw, make
from tests.nn.emission.test_maximize import maximise, objective

K, D = 2, 3
STATE = torch.arange(K).unsqueeze(-1)


def covariance(part, k):
    factors, variance = part.factors.detach()[k], (2 * part.log_scale.detach()[k]).exp()
    return factors @ factors.T + variance.diag()


def test_values():
    part, (x, _) = make("factor analysis"), draw("factor analysis", 5)
    log_prob = part(STATE).log_prob(x).detach()
    for k in range(K):
        expected = stats.multivariate_normal(part.loc.detach()[k], covariance(part, k)).logpdf(x)
        torch.testing.assert_close(log_prob[k], torch.as_tensor(expected))


def test_missing_entries_are_integrated_out():
    part, (x, _) = make("factor analysis"), draw("factor analysis", 3)
    observed = torch.tensor([[True, False, True], [False, False, True], [False, False, False]])
    log_prob = part(STATE, observed=observed).log_prob(torch.where(observed, x, torch.nan)).detach()
    for k in range(K):
        for row in range(2):
            seen = observed[row].nonzero()[:, 0]
            law = stats.multivariate_normal(part.loc.detach()[k][seen], covariance(part, k)[seen][:, seen])
            assert log_prob[k, row].item() == pytest.approx(law.logpdf(x[row][seen]))
        assert log_prob[k, 2] == 0


def test_the_best_of_rank_d_is_the_full_covariance():
    x, weights = draw("gaussian full", 200)
    full = GaussianEmission(K, D, "full").double()
    maximise(full, x, weights)
    part = make("factor analysis")
    wide = FactorAnalysisEmission(K, D, D, generator=torch.Generator().manual_seed(0)).double()
    maximise(wide, x, weights, steps=2000)
    best = objective(full, x, weights)
    assert objective(wide, x, weights).item() == pytest.approx(best.item(), abs=1e-3)
    maximise(part, x, weights, steps=100)
    assert objective(part, x, weights) < best
    assert objective(wide, x, weights) <= best + 1e-9


def test_one_state_and_one_entry():
    part = FactorAnalysisEmission(1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    x = 3 + 2 * torch.randn(100, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maximise(part, x, torch.ones(100, 1), steps=20)
    law = part(torch.tensor(0))
    torch.testing.assert_close(law.mean, x.mean(0))
    torch.testing.assert_close(law.variance, x.var(0, correction=0))


def test_in_a_model():
    model = HMM(FactorAnalysisEmission(K, 4, 2, generator=torch.Generator().manual_seed(0)))
    data = model.simulate(3, 10, seed=0)
    log_prob = model.log_prob(data)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.emission.parameters())


def test_errors():
    with pytest.raises(ValueError, match="rank: expected at most dim=3, got 4"):
        FactorAnalysisEmission(K, D, 4)
    with pytest.raises(ValueError, match="rank: expected at least 1, got 0"):
        FactorAnalysisEmission(K, D, 0)
    with pytest.raises(ValueError, match=r"factors: expected a shape that broadcasts to \(2, 3, 1\)"):
        FactorAnalysisEmission(K, D, 1, factors=torch.zeros(4))
