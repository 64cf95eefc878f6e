import itertools
import math

import pytest
import torch

import pyrohmm
from pyrohmm import nn
from pyrohmm.checks import PseudoResiduals, pseudo_residuals
from pyrohmm.checks.cdf import tails
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from tests.checks.close import close
from tests.models.cases import CASES, make


def enumerated(model: HMM, data: Sequences, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """P(X < x) and P(X <= x) of every entry given the other steps (before it), by a sum over all paths."""
    initial, transition, observation = (x.double().detach() for x in model.potentials(data))
    n_seq, n_steps, n_states = observation.shape
    initial = initial.expand(n_seq, n_states)
    transition = transition.expand(n_seq, max(n_steps - 1, 1), n_states, n_states)
    law = model.emission_law(data)
    below, at, _ = (x.detach().expand(n_states, n_seq, n_steps, *data.event_shape) for x in tails(law, data.x))
    result = torch.full((2, *data.x.shape), 0.5, dtype=torch.float64)
    for n in range(n_seq):
        length = int(data.lengths[n])
        for step in range(length):
            others = range(step) if kind == "one-step" else [s for s in range(length) if s != step]
            total, lower, upper = 0.0, 0.0, 0.0
            for path in itertools.product(range(n_states), repeat=length):
                log_p = initial[n, path[0]]
                for s in range(1, length):
                    log_p = log_p + transition[n, s - 1, path[s - 1], path[s]]
                weight = (log_p + sum(observation[n, s, path[s]] for s in others)).exp()
                total = total + weight
                lower = lower + weight * below[path[step], n, step]
                upper = upper + weight * (below + at)[path[step], n, step]
            result[0, n, step], result[1, n, step] = lower / total, upper / total
    return result[0], result[1]


@pytest.mark.parametrize("kind", ["one-step", "ordinary"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_enumeration(name, kind):
    model, data = make(name)
    if kind == "ordinary" and model.emission.order:
        with pytest.raises(
            ValueError, match="kind: expected 'one-step' for an emission that sees earlier observations"
        ):
            pseudo_residuals(model, data, kind, num_simulations=0)
        return
    below, at_most = enumerated(model, data, kind)
    found = pseudo_residuals(model, data, kind, discrete="mid", num_simulations=0)
    seen = found.observed
    torch.testing.assert_close(found.uniform[seen], (0.5 * (below + at_most))[seen], rtol=1e-6, atol=1e-7)
    jittered = pseudo_residuals(model, data, kind, num_simulations=0, seed=1).uniform
    assert ((below - 1e-7 <= jittered) & (jittered <= at_most + 1e-7))[seen].all()
    assert (found.uniform[~seen] == 0.5).all() and (found.normal[~seen] == 0).all()


def gaussian(num_states: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> HMM:
    generator = torch.Generator().manual_seed(seed)
    loc = 3.0 * torch.arange(num_states).unsqueeze(-1)
    parts = (nn.Initial(num_states, generator=generator), nn.Transition(num_states, generator=generator))
    return HMM(nn.GaussianEmission(num_states, 1, loc=loc.tolist()), *parts).to(dtype)


def test_mixed_observed_steps_are_those_of_the_mask():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 4, 2, dtype=torch.bool)
    mask[0, 1, 0] = mask[1, 2] = False
    data = Sequences(torch.where(mask, x, torch.nan), torch.tensor([4, 3, 1]), mask=mask)
    found = pseudo_residuals(HMM(nn.GaussianEmission(2, 2)), data, num_simulations=3, progress=False)
    assert found.observed.equal(mask & data.valid.unsqueeze(-1)) and int(found.observed[..., 0].sum()) == 6
    assert found.sample.shape == found.theoretical.shape == (6, 2) == found.upper.shape
    assert all(x.isfinite().all() for x in (found.uniform, found.normal, found.sample, found.lower, found.upper))


def test_symbols_have_no_entries():
    model = HMM(nn.CategoricalEmission(2, 3, probs=[[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]))
    found = pseudo_residuals(model, model.simulate(3, 7, seed=0), num_simulations=5, progress=False)
    assert found.normal.shape == (3, 7) and found.sample.shape == (21,) and found.tests["kurtosis"].value.shape == ()
    close(found.plot())


@pytest.mark.parametrize(("num_states", "lengths"), [(1, [5, 1]), (2, [1, 1]), (3, [1])])
def test_one_state_and_one_step(num_states, lengths):
    model = gaussian(num_states)
    data = model.simulate(len(lengths), max(lengths), lengths=torch.tensor(lengths), seed=0)
    for kind in ("one-step", "ordinary"):
        found = pseudo_residuals(model, data, kind, num_simulations=3, progress=False)
        assert found.normal.isfinite().all() and not (found.normal[found.observed] == 0).any()


def test_one_state_is_the_law_itself():
    model = gaussian(1)
    data = model.simulate(2, 5, seed=0)
    for kind in ("one-step", "ordinary"):
        torch.testing.assert_close(
            pseudo_residuals(model, data, kind, num_simulations=0).normal, data.x.double(), rtol=1e-5, atol=1e-6
        )


def test_far_out_in_both_tails():
    data = Sequences(torch.tensor([[[-35.0], [35.0], [1e4], [-1e4]]]))
    normal = pseudo_residuals(gaussian(1), data, num_simulations=0).normal.flatten()
    torch.testing.assert_close(normal[:2], torch.tensor([-35.0, 35.0], dtype=torch.float64), rtol=1e-4, atol=0)
    assert 37 < normal[2] < 40 and -40 < normal[3] < -37


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_seeded_and_leave_torch_alone(dtype):
    model = gaussian(dtype=dtype)
    data = model.simulate(4, 10, seed=0)
    before = torch.get_rng_state()
    first, again, other = (
        pseudo_residuals(model, data, num_simulations=19, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert torch.get_rng_state().equal(before)
    assert first.lower.equal(again.lower) and not first.lower.equal(other.lower)
    assert first.normal.dtype == torch.float64 and not first.normal.requires_grad


def test_the_band_and_the_tests():
    found = pseudo_residuals(gaussian(), gaussian().simulate(5, 20, seed=3), num_simulations=39, progress=False)
    assert ((found.lower <= found.sample) & (found.sample <= found.upper)).all()
    assert all(0.025 <= float(test.p_value) <= 1 for test in found.tests.values())
    assert found.tests["kurtosis"].value == pytest.approx(found.normal.pow(4).mean().item())
    u = found.uniform.flatten().sort().values
    i = torch.arange(1, 101)
    expected = -100 - ((2 * i - 1) * (u.log() + (1 - u.flip(0)).log())).sum() / 100
    assert found.tests["distribution"].value == pytest.approx(expected.item())


def test_without_simulations_there_are_no_p_values():
    found = pseudo_residuals(gaussian(), gaussian().simulate(2, 9, seed=0), num_simulations=0)
    assert found.lower is None and found.tests["kurtosis"].p_value is None
    assert str(found).startswith("one-step pseudo-residuals of 18 observations\ndistribution: ")
    close(found.plot())


def test_states_are_known_in_simulations_where_they_are_in_the_data():
    model, data = make("labels")
    seen = []
    pseudo_residuals(model, data, num_simulations=2, refit=lambda _, drawn: seen.append(drawn.labels), progress=False)
    assert all(((labels >= 0) == (data.labels >= 0)).all() for labels in seen) and len(seen) == 2
    allowed = torch.zeros(4, 4, 3, dtype=torch.bool)
    allowed[..., 0] = True
    some = Sequences(data.x, data.lengths, inputs=data.inputs, mask=data.mask, allowed=allowed)
    found = pseudo_residuals(model, some, num_simulations=2, progress=False)
    assert found.normal.isfinite().all() and found.tests["kurtosis"].p_value is not None


def test_refitted_simulations():
    model, seen = gaussian(), []

    def refit(twin: HMM, drawn: Sequences) -> None:
        assert twin is not model and torch.is_grad_enabled()
        seen.append(drawn.x)
        pyrohmm.fit_em(twin, drawn, steps=2, progress=False)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = pseudo_residuals(model, model.simulate(4, 10, seed=0), num_simulations=3, refit=refit, progress=False)
    assert len(seen) == 3 and found.tests["kurtosis"].p_value is not None
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_plot():
    from matplotlib import pyplot

    found = pseudo_residuals(gaussian(), gaussian().simulate(5, 20, seed=3), num_simulations=19, progress=False)
    figure, ax = pyplot.subplots()
    assert found.plot(ax) is ax
    (points,) = [line for line in ax.get_lines() if line.get_label() == "one-step residuals"]
    assert points.get_ydata().tolist() == found.sample[:, 0].tolist()
    assert len(ax.collections) == 1
    pyplot.close(figure)
    with pytest.raises(IndexError):
        found.plot(figure.gca(), entry=1)


def test_long_data_has_points_as_far_out_as_its_extremes():
    found = pseudo_residuals(gaussian(), gaussian().simulate(5, 200, seed=3), num_simulations=0)
    assert found.sample.shape == (200, 1)
    torch.testing.assert_close(found.sample[-1, 0], found.normal.max())
    torch.testing.assert_close(found.sample[0, 0], found.normal.min())


def test_blocks_of_sequences_and_steps_change_nothing(monkeypatch):
    model, data = make("inputs")
    whole = pseudo_residuals(model, data, "ordinary", num_simulations=0)
    monkeypatch.setattr("pyrohmm.checks.residuals._BLOCK", 1)
    torch.testing.assert_close(pseudo_residuals(model, data, "ordinary", num_simulations=0).normal, whole.normal)


def test_bad_input():
    model, data = gaussian(), gaussian().simulate(2, 3, seed=0)
    for change, message in (
        ({"kind": "other"}, "kind: expected 'one-step' or 'ordinary', got 'other'"),
        ({"discrete": "no"}, "discrete: expected 'mid' or 'jitter'"),
        ({"num_simulations": -1}, "num_simulations: expected at least 0, got -1"),
        ({"level": 1.0}, "level: expected a number between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pseudo_residuals(model, data, **change)
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        pseudo_residuals(model, data.x)
    with pytest.raises(TypeError, match="model: expected a pyrohmm.models.HMM, got int"):
        pseudo_residuals(1, data)
    blank = Sequences(data.x, mask=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="data: expected at least one observed step"):
        pseudo_residuals(model, blank)


def test_an_impossible_sequence_is_named(monkeypatch):
    model = HMM(nn.CategoricalEmission(2, 3))
    with torch.no_grad():
        model.emission.logits[:, 2] = -math.inf
    data = Sequences(torch.tensor([[0, 1], [0, 2]]))
    for block in (4_000_000, 1):
        monkeypatch.setattr("pyrohmm.checks.residuals._BLOCK", block)
        with pytest.raises(ValueError, match="data: expected sequences that are possible.*, got another at index 1"):
            pseudo_residuals(model, data, num_simulations=0)


@pytest.mark.slow
@pytest.mark.parametrize("discrete", ["mid", "jitter"])
def test_the_rate_of_false_alarms_is_what_it_says(discrete):
    generator = torch.Generator().manual_seed(0)
    model = HMM(nn.PoissonEmission(2, 1, rate=[[2.0], [9.0]]), transition=nn.Transition(2, generator=generator))
    alarms: dict[tuple[str, str], int] = {}
    for seed in range(100):
        data = model.simulate(5, 40, seed=seed)
        for kind in ("one-step", "ordinary"):
            found: PseudoResiduals = pseudo_residuals(
                model, data, kind, discrete=discrete, num_simulations=19, seed=seed, progress=False
            )
            for name, test in found.tests.items():
                alarms[kind, name] = alarms.get((kind, name), 0) + (float(test.p_value) <= 0.1)
    # 10 are expected of 100; more than 21, or none, has a chance of less than 1 in 4000 in each.
    assert all(0 < count <= 21 for count in alarms.values()), alarms
