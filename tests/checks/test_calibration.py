import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor

from pyrohmm import nn, ops
from pyrohmm.checks import (
    SimulationBasedCalibration,
    StateCalibration,
    prior_simulator,
    simulation_based_calibration,
    state_calibration,
)
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from tests.checks.close import close

GRID = torch.linspace(-4.0, 4.0, 81, dtype=torch.float64)


def model(loc: object = None) -> HMM:
    """Two sticky states around 0 and around the parameter; with a normal prior on it unless it is given."""
    parts = (nn.Initial(2), nn.Transition(2))
    with torch.no_grad():
        parts[0].logits.zero_()
        parts[1].logits.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log())
    return HMM(nn.GaussianEmission(2, 1, loc=[[0.0], [2.0]] if loc is None else [[0.0], [float(loc)]]), *parts)


@torch.no_grad()
def fit(data: Sequences, seed: int, power: float = 1.0, shift: float = 0.0) -> dict[str, Tensor]:
    """Draws from the exact posterior on a grid, or from one that is too sure (power > 1) or off."""
    initial, transition, _ = model().potentials(data)
    means = torch.stack([torch.zeros_like(GRID), GRID], -1)  # (G, K)
    observation = dist.Normal(means[:, None, None, :], 1.0).log_prob(data.x)
    log_prob = ops.log_partition(initial.double(), transition.double(), observation).sum(-1)
    log_posterior = power * log_prob + dist.Normal(0.0, 1.0).log_prob(GRID)
    generator = torch.Generator().manual_seed(seed)
    drawn = GRID[torch.multinomial(log_posterior.softmax(0), 19, replacement=True, generator=generator)]
    return {"loc": drawn + 0.1 * (torch.rand(19, generator=generator) - 0.5) + shift}


def simulate(seed: int) -> tuple[dict[str, Tensor], Sequences]:
    loc = torch.randn((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"loc": loc}, model(loc).simulate(2, 15, seed=seed)


def test_an_exact_posterior_is_calibrated_and_others_are_not():
    def p(**wrong: float) -> float:
        found = simulation_based_calibration(
            simulate, lambda data, seed: fit(data, seed, **wrong), num_simulations=40, progress=False
        )
        assert found.ranks["loc"].shape == (40,) and found.num_draws == 19
        assert 0 <= int(found.ranks["loc"].min()) and int(found.ranks["loc"].max()) <= 19
        return float(found.p_value["loc"])

    # A right one is at or under 0.01 in one of a hundred such tests.
    assert p() > 0.01
    assert p(shift=0.7) <= 0.01 and p(power=30.0) <= 0.01


def test_uniform_ranks_are_recognised_at_the_rate_that_the_level_says():
    generator = torch.Generator().manual_seed(0)

    def draw(seed: int) -> tuple[dict[str, Tensor], Sequences]:
        return {"a": torch.rand(300, generator=generator)}, Sequences(torch.zeros(1, 1))

    found = simulation_based_calibration(
        draw, lambda data, seed: {"a": torch.rand(9, 300, generator=generator)}, num_simulations=50, progress=False
    )
    # 30 of 300 are expected at or under 0.1; less than 13 or more than 50 have a chance of 1 in 1000.
    assert 13 <= int((found.p_value["a"] <= 0.1).sum()) <= 50
    counts = found.ranks["a"].flatten().bincount(minlength=10)
    assert counts.shape == (10,) and ((counts - 1500).abs() < 150).all()


def test_ties_are_broken_at_random():
    found = simulation_based_calibration(
        lambda seed: ({"a": torch.zeros(2)}, Sequences(torch.zeros(1, 1))),
        lambda data, seed: {"a": torch.zeros(3, 2)},
        num_simulations=200,
        progress=False,
    )
    assert (found.ranks["a"].flatten().bincount(minlength=4) > 60).all()


def test_quantities_of_parameters_and_data():
    seen = []

    def quantities(parameters, data):
        seen.append(data)
        return {"sorted": parameters["a"].sort().values, "sum": parameters["a"].sum() + data.x.sum()}

    found = simulation_based_calibration(
        lambda seed: ({"a": torch.tensor([3.0, 1.0])}, Sequences(torch.zeros(1, 1))),
        lambda data, seed: {"a": torch.tensor([[0.0, 2.0], [5.0, 4.0]])},
        num_simulations=2,
        quantities=quantities,
        progress=False,
    )
    assert found.ranks["sorted"].tolist() == [[1, 1]] * 2 and found.ranks["sum"].tolist() == [1, 1]
    assert len(seen) == 6 and found.p_value["sorted"].shape == (2,)


def test_draws_that_do_not_fit():
    def run(*answers: dict[str, Tensor]):
        results = iter(answers)
        return simulation_based_calibration(
            lambda seed: ({"a": torch.zeros(2)}, Sequences(torch.zeros(1, 1))),
            lambda data, seed: next(results),
            num_simulations=2,
            progress=False,
        )

    with pytest.raises(ValueError, match="fit: expected draws of 'a', got those of b"):
        run({"b": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"fit: expected draws \(L, \*\(2,\)\) of 'a', got \(3,\)"):
        run({"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="fit: expected 3 draws, as at first, got 4"):
        run({"a": torch.zeros(3, 2)}, {"a": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="fit: expected as many draws of each parameter"):
        run({"a": torch.zeros(3, 2), "b": torch.zeros(4)})


def test_simulator_of_a_models_prior():
    bayesian = model()
    bayesian.emission.loc = PyroSample(dist.Normal(torch.tensor([[0.0], [50.0]]), 1.0).to_event(2))
    lengths = torch.tensor([9, 1, 4])
    simulate = prior_simulator(bayesian, 3, 9, lengths=lengths)
    before = torch.get_rng_state()
    (first, data), (again, same), (other, _) = simulate(0), simulate(0), simulate(1)
    assert torch.get_rng_state().equal(before)
    assert list(first) == ["emission.loc"] and first["emission.loc"].shape == (2, 1)
    assert first["emission.loc"].equal(again["emission.loc"]) and data.x.equal(same.x)
    assert not first["emission.loc"].equal(other["emission.loc"])
    assert data.lengths.equal(lengths) and ((data.x[..., 0] > 25) == (data.labels == 1))[data.valid].all()
    with pytest.raises(TypeError, match="model: expected a pyrohmm.models.HMM"):
        prior_simulator(None, 1, 1)  # type: ignore[arg-type]


def test_plot_of_ranks():
    found = simulation_based_calibration(simulate, fit, num_simulations=5, progress=False)
    ax = found.plot()
    curve = next(line for line in ax.get_lines() if line.get_label() == "loc")
    share = [(found.ranks["loc"] <= r).double().mean().item() for r in range(20)]
    assert curve.get_ydata().tolist() == pytest.approx([s - (r + 1) / 20 for r, s in enumerate(share)])
    with pytest.raises(KeyError):
        found.plot(ax, name="other")
    close(ax)


def test_text_of_ranks():
    ranks = {"a": torch.tensor([0, 3]), "b": torch.zeros(2, 3, 1, dtype=torch.int64)}
    p = {"a": torch.tensor(0.5), "b": torch.tensor([[0.25], [0.001], [1.0]])}
    assert str(SimulationBasedCalibration(ranks, 9, p)) == (
        "calibration of 2 simulations, ranks among 9 draws\na: p = 0.5\nb: p = 0.001 to 1 (3 entries)"
    )


def test_bins_against_a_loop():
    right = model()
    data = right.simulate(6, 20, lengths=torch.tensor([20, 1, 7, 20, 20, 2]), seed=0)
    labels = data.labels.clone()
    labels[0, :5] = -1
    found = state_calibration(right, data, labels=labels, num_bins=4, num_simulations=9)
    probs = right.posterior(data).marginals.detach().double()
    sums, hits, counts = [0.0] * 4, [0.0] * 4, [0] * 4
    for n in range(6):
        for t in range(int(data.lengths[n])):
            for k in range(2):
                if labels[n, t] >= 0:
                    p = float(probs[n, t, k])
                    b = min(int(4 * p), 3)
                    sums[b], hits[b], counts[b] = sums[b] + p, hits[b] + (int(labels[n, t]) == k), counts[b] + 1
    assert found.count.tolist() == counts and sum(counts) == 2 * 65
    assert found.predicted.tolist() == pytest.approx([s / c for s, c in zip(sums, counts, strict=True)], rel=1e-5)
    assert found.frequency.tolist() == pytest.approx([h / c for h, c in zip(hits, counts, strict=True)])
    error = sum(abs(h - s) for h, s in zip(hits, sums, strict=True)) / 130
    assert found.error == pytest.approx(error, rel=1e-4)
    assert ((found.lower <= found.predicted + 0.3) & (found.upper >= found.predicted - 0.3)).all()


def test_coverage_of_sets_of_states():
    # Nothing is known: each of four states has probability 1/4 at every step.
    same = HMM(nn.GaussianEmission(4, 1, loc=[[0.0]] * 4))
    with torch.no_grad():
        same.initial.logits.zero_(), same.transition.logits.zero_()
    data = same.simulate(50, 20, seed=0)
    found = state_calibration(same, data)
    assert found.coverage[0.5] == pytest.approx(0.5, abs=0.1) and found.coverage[0.8] == 1.0
    assert found.coverage[0.95] == 1.0 and found.error < 0.02 and found.count.sum() == 4000


def test_one_state():
    found = state_calibration(HMM(nn.PoissonEmission(1, 1)), HMM(nn.PoissonEmission(1, 1)).simulate(2, 3, seed=0))
    assert found.p_value == 1.0 and found.error == 0.0 and set(found.coverage.values()) == {1.0}


@pytest.mark.slow
def test_p_values_of_a_right_model_keep_their_level():
    right = model()
    found = [
        state_calibration(right, right.simulate(5, 30, seed=seed), num_simulations=19, seed=seed).p_value
        for seed in range(100)
    ]
    # 10 of 100 are expected; more than 21, or none, has a chance of less than 1 in 4000.
    assert 0 < sum(p <= 0.1 for p in found) <= 21


def test_plot_of_reliability():
    right = model()
    found = state_calibration(right, right.simulate(5, 30, seed=0), num_bins=40)
    ax = found.plot()
    curve = next(line for line in ax.get_lines() if line.get_label() == "true states")
    filled = found.count > 0
    assert not filled.all() and curve.get_ydata().tolist() == found.frequency[filled].tolist()
    close(ax)


def test_text_of_reliability():
    x, coverage = torch.tensor([0.25, 0.75]), {0.5: 0.625, 0.95: 1.0}
    found = StateCalibration(x, x, torch.tensor([3, 5]), x, x, 0.95, error=0.0123, p_value=0.005, coverage=coverage)
    assert repr(found) == (
        "calibration of 8 state probabilities: error 0.012, p = 0.005\n"
        "true states covered: 62.5% by 50% sets, 100.0% by 95% sets"
    )


def test_bad_input():
    right = model()
    data = right.simulate(2, 3, seed=0)
    unlabelled = Sequences(data.x)
    with pytest.raises(ValueError, match="labels: expected the true states"):
        state_calibration(right, unlabelled)
    with pytest.raises(ValueError, match=r"labels: expected shape \(2, 3\), got \(2,\)"):
        state_calibration(right, unlabelled, labels=torch.zeros(2, dtype=torch.int64))
    for labels in (torch.full((2, 3), 2), torch.full((2, 3), -1)):
        with pytest.raises(ValueError, match="labels: expected some states from 0 to 1, got none or others"):
            state_calibration(right, unlabelled, labels=labels)
    told = HMM(nn.GaussianEmission(2, 1), use_labels=True)
    with pytest.raises(ValueError, match="model: expected one that does not use the labels"):
        state_calibration(told, data)
