"""The M-step of every emission: a maximum, of sums over steps, with priors, missing entries and frozen parameters."""

import copy
from itertools import pairwise

import pytest
import torch

import pyrohmm.nn.part
from pyrohmm.nn.emission import multinomial, table
from pyrohmm.nn.part import EMPTY, add_up
from tests.nn.emission.cases import CASES, K, draw, make

every_case = pytest.mark.parametrize("name", CASES)


def objective(part, x, weights, observed=None):
    """The expected log-density plus the log prior."""
    log_prob = part(torch.arange(K).unsqueeze(-1), observed=observed).log_prob(x)
    return (weights.mT * log_prob).sum() + part.log_prior()


def gradient(part, x, weights, observed=None):
    # Before the part is called: Pyro then lets every parameter ask for a gradient.
    parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
    value = objective(part, x, weights, observed)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(value, parameters)])


def maximise(part, x, weights, observed=None, steps=1):
    for _ in range(steps):
        part.maximize(part.expected_statistics(x, weights, observed=observed))


@every_case
@pytest.mark.parametrize("prior", [False, True])
def test_is_the_maximum(name, prior):
    case = CASES[name]
    if prior and case.prior is None:
        pytest.skip("takes no prior")
    part, (x, weights) = make(name, prior=prior), draw(name)
    before, slope = objective(part, x, weights), gradient(part, x, weights)
    maximise(part, x, weights, steps=case.steps)
    assert objective(part, x, weights) > before
    assert gradient(part, x, weights).abs().max() < 1e-6 * slope.abs().max()


@every_case
def test_never_falls(name):
    part, (x, weights) = make(name, prior=CASES[name].prior is not None), draw(name)
    values = [objective(part, x, weights)]
    for _ in range(5):
        maximise(part, x, weights)
        values.append(objective(part, x, weights))
    assert all(new > old - 1e-9 * old.abs() for old, new in pairwise(values))


@every_case
def test_statistics_add_up(name):
    part, (x, weights) = make(name), draw(name)
    whole, halves = part.expected_statistics(x, weights), {}
    for rows in (slice(0, 17), slice(17, None)):
        add_up(halves, part.expected_statistics(x[rows], weights[rows]))
    assert whole.keys() == halves.keys()
    for key, value in whole.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(halves[key], value)


@every_case
def test_blocks_of_steps_add_up(name, monkeypatch):
    part, (x, weights) = make(name), draw(name)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    whole = part.expected_statistics(x, weights, observed=observed)
    for module in (pyrohmm.nn.part, table, multinomial):
        monkeypatch.setattr(module, "BLOCK", 50)
    for key, value in part.expected_statistics(x, weights, observed=observed).items():
        torch.testing.assert_close(value, whole[key])


@every_case
def test_side_by_side_is_one_by_one(name):
    """Tables with (R, 1, 1) in front are R models."""
    parts = [make(name, prior=CASES[name].prior is not None, seed=seed) for seed in range(2)]
    x, weights = draw(name)
    weights = torch.stack([weights, weights.flip(0)])
    both = copy.deepcopy(parts[0])
    for key, _ in parts[0].named_parameters():
        owner, _, leaf = key.rpartition(".")
        stacked = torch.stack([part.get_parameter(key).detach() for part in parts])[:, None, None]
        both.get_submodule(owner)._parameters[leaf] = torch.nn.Parameter(stacked)
    log_prob = both(torch.arange(K).reshape(K, 1, 1, 1)).log_prob(x)  # (K, R, 1, M)
    for r, part in enumerate(parts):
        torch.testing.assert_close(log_prob[:, r, 0], part(torch.arange(K).reshape(K, 1)).log_prob(x))
        torch.testing.assert_close(both.log_prior().flatten().expand(2)[r], part.log_prior())
    events = both.maximize(both.expected_statistics(x, weights))
    for r, part in enumerate(parts):
        part.maximize(part.expected_statistics(x, weights[r]))
        for key, parameter in part.named_parameters():
            torch.testing.assert_close(both.get_parameter(key)[r, 0, 0], parameter)
    assert all(flags.shape in ((2, K), (2, 1)) for flags in events.values())


@every_case
def test_side_by_side_with_missing_entries(name):
    if not CASES[name].entries:
        pytest.skip("entries cannot be missing")
    part, (x, weights) = make(name), draw(name)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    both = copy.deepcopy(part)
    for key, parameter in part.named_parameters():
        owner, _, leaf = key.rpartition(".")
        stacked = torch.stack([parameter.detach()] * 2)[:, None, None]
        both.get_submodule(owner)._parameters[leaf] = torch.nn.Parameter(stacked)
    log_prob = both(torch.arange(K).reshape(K, 1, 1, 1), observed=observed).log_prob(x)  # (K, R, 1, M)
    expected = part(torch.arange(K).unsqueeze(-1), observed=observed).log_prob(x)
    torch.testing.assert_close(log_prob[:, 1, 0], expected)
    statistics = both.expected_statistics(x, torch.stack([weights.flip(0), weights]), observed=observed)
    for key, value in part.expected_statistics(x, weights, observed=observed).items():
        torch.testing.assert_close(statistics[key][1], value)


@every_case
def test_single_precision(name):
    part, (x, weights) = make(name).float(), draw(name)
    x = x.float() if x.is_floating_point() else x
    before = objective(part, x, weights.float())
    maximise(part, x, weights.float(), steps=3)
    assert all(parameter.dtype == torch.float32 for parameter in part.parameters())
    assert objective(part, x, weights.float()) > before


@every_case
def test_missing_entries(name):
    """Each step's observed entries count, and nothing else is read; the fixed point is the maximum."""
    case = CASES[name]
    if not case.entries:
        pytest.skip("entries cannot be missing")
    part, (x, weights) = make(name), draw(name)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    if x.is_floating_point():
        poisoned = torch.where(observed, x, torch.nan)
        statistics = part.expected_statistics(poisoned, weights, observed=observed)
        assert all(value.isfinite().all() for value in statistics.values())
        assert objective(part, poisoned, weights, observed).isfinite()
    before, slope = objective(part, x, weights, observed), gradient(part, x, weights, observed)
    hidden_entries = name.endswith((" full", " tied")) or name in ("composite", "factor analysis", "multinomial")
    maximise(part, x, weights, observed, steps=200 if hidden_entries else case.steps)
    assert objective(part, x, weights, observed) > before
    assert gradient(part, x, weights, observed).abs().max() < 1e-5 * slope.abs().max()


@every_case
def test_all_observed_is_no_mask(name):
    part, (x, weights) = make(name), draw(name)
    if not CASES[name].entries:
        pytest.skip("entries cannot be missing")
    everywhere = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(objective(part, x, weights, everywhere), objective(part, x, weights))
    plain = part.expected_statistics(x, weights)
    for key, value in part.expected_statistics(x, weights, observed=everywhere).items():
        torch.testing.assert_close(value, plain[key])


@every_case
def test_a_state_without_data_stays_and_is_told(name):
    part, (x, weights) = make(name), draw(name)
    weights[:, 1] = 0.0
    before = copy.deepcopy(part)
    events = part.maximize(part.expected_statistics(x, weights))
    assert events[EMPTY].tolist() == [False, True]
    for key, parameter in part.named_parameters():
        assert parameter.isfinite().all()
        if parameter.shape[:1] == (K,):
            assert torch.equal(parameter[1], before.get_parameter(key)[1])


@every_case
def test_one_point_and_no_spread(name):
    """A state that claims one point, and data that are all alike: finite parameters and densities."""
    part, (x, weights) = make(name), draw(name)
    weights[1:, 1] = 0.0
    maximise(part, x, weights, steps=3)
    assert all(parameter.isfinite().all() for parameter in part.parameters())
    assert objective(part, x, weights).isfinite()
    same = x[:1].expand(*x.shape).contiguous()
    maximise(part, same, weights, steps=3)
    assert all(parameter.isfinite().all() for parameter in part.parameters())
    assert objective(part, same, weights).isfinite()


@pytest.mark.parametrize("name", ["gaussian diag", "log-normal", "gamma", "beta", "von mises", "student"])
def test_a_state_of_one_point_is_told(name):
    part, (x, weights) = make(name), draw(name)
    weights[1:, 1] = 0.0
    for _ in range(30):
        events = part.maximize(part.expected_statistics(x, weights))
    (flags,) = (flags for what, flags in events.items() if what != EMPTY)
    assert flags.tolist() == [False, True]


@every_case
def test_frozen_parameters_stay(name):
    names = [key for key, _ in make(name).named_parameters()]
    for frozen in names:
        part, (x, weights) = make(name), draw(name)
        part.get_parameter(frozen).requires_grad_(False)
        before = part.get_parameter(frozen).detach().clone()
        maximise(part, x, weights)
        assert torch.equal(part.get_parameter(frozen), before)


@every_case
def test_never_falls_with_a_frozen_parameter(name):
    for frozen, _ in make(name).named_parameters():
        part, (x, weights) = make(name, prior=CASES[name].prior is not None), draw(name)
        part.get_parameter(frozen).requires_grad_(False)
        values = []
        for _ in range(5):
            # A copy, since a call lets every parameter ask for a gradient again.
            values.append(objective(copy.deepcopy(part), x, weights).detach())
            maximise(part, x, weights)
        assert all(new > old - 1e-9 * old.abs() for old, new in pairwise(values)), frozen


def test_means_frozen_scales_are_about_them():
    for covariance in ("diag", "spherical"):
        part, (x, weights) = make(f"gaussian {covariance}"), draw(f"gaussian {covariance}")
        part.loc.requires_grad_(False)
        maximise(part, x, weights)
        assert gradient(part, x, weights).abs().max() < 1e-8


def test_large_offsets_lose_no_digits():
    """Times in seconds since 1970, say: the sums are about a centre."""
    from pyrohmm.nn import GaussianEmission

    x = 1.7e9 + torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    part = GaussianEmission(1, 1, loc=torch.tensor([[1.7e9]], dtype=torch.float64)).double()
    part.maximize(part.expected_statistics(x, torch.ones(50, 1)))
    torch.testing.assert_close(part.log_scale.exp()[0, 0], x.std(correction=0), rtol=1e-6, atol=0)
