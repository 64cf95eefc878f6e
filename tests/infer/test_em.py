"""EM: what it converges to, that it never falls, and that batches, restarts and breaks change nothing."""

import copy
import functools
import math
import signal
from itertools import pairwise

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor

from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.infer import em, fit_em, fit_svi, initialization
from pyrohmm.models import HMM, NeuralHMM
from pyrohmm.testing import enumeration
from tests.models.cases import CASES as MODELS
from tests.models.cases import make as make_model
from tests.nn.emission.cases import ALONE, K, draw
from tests.nn.emission.cases import CASES as EMISSIONS
from tests.nn.emission.cases import make as make_emission

fit = functools.partial(fit_em, progress=False)


def gaussians(num: int = 12, steps: int = 30, seed: int = 0) -> Sequences:
    """Ragged sequences of two states at -2 and 2."""
    truth = HMM(nn.GaussianEmission(2, 1, loc=[[-2.0], [2.0]], scale=0.7)).double()
    lengths = torch.randint(2, steps + 1, (num,), generator=torch.Generator().manual_seed(seed))
    return truth.simulate(num, steps, lengths=lengths, seed=seed)


def gaussian_model(seed: int = 0, **kwargs) -> HMM:
    generator = torch.Generator().manual_seed(seed)
    return HMM(nn.GaussianEmission(2, 1, generator=generator, **kwargs), generator=generator).double()


def objective(model: HMM, data: Sequences) -> float:
    return (model.log_prob(data).sum() + model.log_prior()).item()


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close_states(actual: HMM, expected: HMM, **tolerance: float) -> None:
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            actual.state_dict()[name], value, msg=lambda text, n=name: f"{n}: {text}", **tolerance
        )


def never_falls(losses: list[float]) -> bool:
    return all(new <= old + 1e-10 * max(1, abs(old)) for old, new in pairwise(losses))


def test_a_step_by_the_list_of_all_paths():
    """Baum-Welch, with the counts of each path weighted by its posterior probability."""
    truth = HMM(nn.CategoricalEmission(2, 3, noise=1.0), generator=torch.Generator().manual_seed(0)).double()
    data = truth.simulate(4, 5, lengths=torch.tensor([5, 2, 1, 4]), seed=0)
    model = HMM(nn.CategoricalEmission(2, 3, noise=0.5), generator=torch.Generator().manual_seed(1)).double()
    log_pi, log_A, log_B = (
        part.detach().log_softmax(-1) for part in (model.initial.logits, model.transition.logits, model.emission.logits)
    )
    first, moves, seen = torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 3)
    for x in data.to_list():
        posterior = enumeration.smooth(log_pi, log_A, log_B[:, x].mT)
        first = first + posterior.state_marginals[0]
        moves = moves + posterior.transition_marginals
        for t, symbol in enumerate(x.tolist()):
            seen[:, symbol] += posterior.state_marginals[t]
    history = fit(model, data, steps=1)
    assert history.loss[0] * data.num_observed == pytest.approx(
        -sum(enumeration.log_partition(log_pi, log_A, log_B[:, x].mT).item() for x in data.to_list())
    )
    for logits, counts in (
        (model.initial.logits, first),
        (model.transition.logits, moves),
        (model.emission.logits, seen),
    ):
        torch.testing.assert_close(
            logits.detach().softmax(-1), (counts / counts.sum(-1, keepdim=True)).double(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_never_falls_on_any_model(name, assignment):
    """Ragged, partly missing, labelled; in closed form, by gradients, and both in one model."""
    model, data = make_model(name)
    history = fit(model, data, steps=8, tolerance=0, assignment=assignment)
    assert never_falls(history.loss)
    assert history.loss[-1] < history.loss[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    if assignment == "soft":
        assert -objective(model, data) / data.num_observed <= history.loss[-1] + 1e-10


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_never_falls_with_any_emission(name, prior):
    if prior and EMISSIONS[name].prior is None:
        pytest.skip("takes no prior")
    x, _ = draw(name, num=60)
    data = Sequences(x.reshape(4, 15, *x.shape[1:]), torch.tensor([15, 7, 1, 12]))
    model = HMM(
        make_emission(name, prior=prior),
        nn.Initial(K, prior=dist.Dirichlet(2 * torch.ones(K)) if prior else None),
        nn.Transition(K, prior=dist.Dirichlet(1 + 3 * torch.eye(K)) if prior else None),
    ).double()
    history = fit(model, data, steps=15, tolerance=0)
    assert never_falls(history.loss)
    assert history.loss[0] * data.num_observed > history.loss[-1] * data.num_observed + 0.01
    assert math.isfinite(history.loss[-1])


@pytest.mark.parametrize("prior", [False, True])
def test_converges_to_where_the_gradient_is_zero(prior):
    """The same point that gradients go to: priors mean the same in EM, SGD and SVI."""
    data = gaussians()
    model = HMM(
        nn.GaussianEmission(
            2, 1, loc=[[-1.0], [1.0]], prior=nn.NormalInverseGamma(0.0, 1.0, 2.0, 1.0) if prior else None
        ),
        nn.Initial(2, prior=dist.Dirichlet(2 * torch.ones(2)) if prior else None),
        nn.Transition(2, prior=dist.Dirichlet(1 + 2 * torch.eye(2)) if prior else None),
    ).double()
    history = fit(model, data, steps=500, tolerance=1e-14)
    assert history.stop_reason == "converged"
    value = model.log_prob(data).sum() + model.log_prior()
    for grad in torch.autograd.grad(value, list(model.parameters())):
        assert grad.abs().max() < 1e-4
    before = state_of(model)
    svi = fit_svi(model, data, steps=20, learning_rate=1e-3, progress=False)
    assert svi.loss[0] == pytest.approx(-value.item() / data.num_observed)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=2e-3)


def test_finds_the_states():
    data = gaussians(40)
    model = gaussian_model()
    history = fit(model, data, restarts=4, seed=1)
    assert sorted(model.emission.loc.flatten().round().tolist()) == [-2, 2]
    assert len(history.restarts) == 4 and min(history.restarts) == history.loss[-1]
    assert history.stop_reason == "converged"
    assert -objective(model, data) / data.num_observed <= history.loss[-1]


def test_batches_and_iterables_change_nothing():
    data = gaussians()
    whole, batched, streamed = gaussian_model(), gaussian_model(), gaussian_model()
    expected = fit(whole, data, steps=4, tolerance=0)
    histories = [
        fit(batched, data, steps=4, tolerance=0, batch_size=5),
        fit(streamed, [data[:7].as_whole().trim(), data[7:].as_whole().trim()], steps=4, tolerance=0),
    ]
    for model, history in zip((batched, streamed), histories, strict=True):
        assert history.loss == pytest.approx(expected.loss, rel=1e-10)
        torch.testing.assert_close(model.emission.loc, whole.emission.loc)
        torch.testing.assert_close(model.transition.log_probs(), whole.transition.log_probs())


def test_padding_and_order_do_not_matter():
    data = gaussians()
    wide = Sequences(torch.nn.functional.pad(data.x, (0, 0, 0, 9), value=torch.nan), data.lengths)
    first, second = gaussian_model(), gaussian_model()
    assert fit(first, data, steps=3).loss == pytest.approx(fit(second, wide, steps=3).loss, rel=1e-12)
    third = gaussian_model()
    assert fit(third, data[torch.arange(len(data)).flip(0)].as_whole(), steps=3).loss == pytest.approx(
        fit(gaussian_model(), data, steps=3).loss, rel=1e-12
    )


def test_missing_steps_are_as_if_they_were_not():
    """Without a mask in the data, a missing step at an end of a sequence is a shorter sequence."""
    data = gaussians()
    mask = data.valid.clone()
    mask[torch.arange(len(data)), data.lengths - 1] = False
    missing = Sequences(data.x, data.lengths, mask=mask)
    shorter = Sequences(data.x, (data.lengths - 1).clamp(min=1), mask=mask[:, : data.num_steps])
    first, second = gaussian_model(), gaussian_model()
    assert fit(first, missing, steps=1).loss == pytest.approx(fit(second, shorter, steps=1).loss)
    torch.testing.assert_close(first.emission.loc, second.emission.loc)
    torch.testing.assert_close(first.emission.log_scale, second.emission.log_scale)


@pytest.mark.parametrize("covariance", ["diag", "spherical", "full", "tied"])
def test_missing_entries(covariance):
    """What is measured in part is not read where it is not, and helps where it is."""
    generator = torch.Generator().manual_seed(0)
    truth = HMM(nn.GaussianEmission(2, 3, "full", loc=[[-2.0, 0.0, 1.0], [2.0, 1.0, -1.0]])).double()
    x = truth.simulate(20, 25, seed=0).x
    seen = torch.rand(x.shape, generator=generator) < 0.6
    data = Sequences(torch.where(seen, x, torch.nan), mask=seen)
    start = [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    model = HMM(nn.GaussianEmission(2, 3, covariance, loc=start), generator=generator).double()
    program = model.log_prob(data).sum().item()
    history = fit(model, data, steps=30, tolerance=0)
    assert history.loss[0] * data.num_observed == pytest.approx(-program)
    assert never_falls(history.loss)
    order = model.emission.loc[:, 0].argsort()
    torch.testing.assert_close(model.emission.loc[order].detach(), truth.emission.loc.detach(), rtol=0, atol=0.5)


def test_labels_and_allowed_states():
    data = gaussians()
    model = HMM(nn.GaussianEmission(2, 1, loc=[[0.3], [-0.3]]), use_labels=True).double()
    fit(model, data, steps=3)
    assert model.emission.loc[0] < -1.5 and model.emission.loc[1] > 1.5  # as the labels say, not as it began
    with_labels = state_of(model)
    allowed = torch.nn.functional.one_hot(data.labels.clamp(min=0), 2).bool()
    partly = Sequences(data.x, data.lengths, allowed=allowed)
    other = HMM(nn.GaussianEmission(2, 1, loc=[[0.3], [-0.3]])).double()
    fit(other, partly, steps=3)
    for name in ("emission.loc", "emission.log_scale"):
        torch.testing.assert_close(other.state_dict()[name], with_labels[name])
    assert torch.equal(other.posterior(partly).viterbi().states, data.labels)
    torch.testing.assert_close(
        other.log_prob(partly).sum().item(), -fit(copy.deepcopy(other), partly, steps=1).loss[0] * data.num_observed
    )


def test_supervised_is_counting():
    data = gaussians()
    model = gaussian_model()
    fit(model, data, steps=1, assignment="labels")
    for k in range(2):
        mine = data.x[(data.labels == k)]
        torch.testing.assert_close(model.emission.loc[k].detach(), mine.mean(0))
        torch.testing.assert_close(model.emission.log_scale[k].detach().exp(), mine.std(0, correction=0))
    counts = torch.zeros(2, 2)
    for labels, length in zip(data.labels.tolist(), data.lengths.tolist(), strict=True):
        for i, j in pairwise(labels[:length]):
            counts[i, j] += 1
    torch.testing.assert_close(
        model.transition.log_probs().exp().detach(),
        (counts / counts.sum(-1, keepdim=True)).double(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_frozen_parameters_and_masks_stay():
    data = gaussians()
    model = HMM(
        nn.GaussianEmission(3, 1, generator=torch.Generator().manual_seed(0)),
        nn.Initial(3, mask=torch.tensor([True, False, True])),
        nn.Transition(3, mask=torch.ones(3, 3, dtype=torch.bool).triu()),
    ).double()
    model.emission.loc.requires_grad_(False)
    loc = model.emission.loc.clone()
    history = fit(model, data, steps=5, tolerance=0)
    assert never_falls(history.loss)
    assert torch.equal(model.emission.loc, loc)
    assert not model.emission.loc.requires_grad and model.emission.log_scale.requires_grad
    assert (model.transition.log_probs().exp().tril(-1) == 0).all()
    assert model.initial.log_probs().exp()[1] == 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_restarts_side_by_side_are_fits_one_by_one(monkeypatch):
    data = gaussians()
    together, apart = gaussian_model(), gaussian_model()
    first = fit(together, data, steps=6, tolerance=0, restarts=3, seed=5)
    monkeypatch.setattr(em, "can_stack", lambda model: False)
    second = fit(apart, data, steps=6, tolerance=0, restarts=3, seed=5)
    assert first.restarts == pytest.approx(second.restarts, rel=1e-10)
    assert first.loss == pytest.approx(second.loss, rel=1e-10)
    torch.testing.assert_close(together.emission.loc, apart.emission.loc)
    assert len(set(first.restarts)) > 1 or first.restarts[0] == pytest.approx(first.restarts[1])


@pytest.mark.parametrize("side_by_side", [True, False])
def test_after_a_trial_only_the_best_start_goes_on(side_by_side, monkeypatch):
    if not side_by_side:
        monkeypatch.setattr(em, "can_stack", lambda model: False)
    data = gaussians()
    options = {"tolerance": 0, "restarts": 4, "seed": 5}
    trial = gaussian_model()
    short = fit(trial, data, steps=2, **options)
    model = gaussian_model()
    history = fit(model, data, steps=9, trial_steps=2, **options)
    best = min(range(4), key=short.restarts.__getitem__)
    assert history.num_steps == 9 and history.loss[:2] == pytest.approx(short.loss, rel=1e-10)
    # The others are left where they were.
    expected = [loss for i, loss in enumerate(short.restarts) if i != best]
    assert [loss for i, loss in enumerate(history.restarts) if i != best] == pytest.approx(expected, rel=1e-10)
    assert history.restarts[best] == history.loss[-1] < short.loss[-1]
    # It is the fit of that start alone.
    rest = fit(trial, data, steps=7, tolerance=0)
    assert history.loss[2:] == pytest.approx(rest.loss, rel=1e-9)
    torch.testing.assert_close(model.emission.loc, trial.emission.loc)


def test_trials_of_networks_and_of_steps_online():
    model, data = make_model("embedded")
    history = fit(model, data, steps=4, restarts=3, trial_steps=1)
    assert history.num_steps == 4 and len(history.restarts) == 3
    # A trial that is as long as the fit is none.
    data = gaussians()
    options = {"steps": 3, "restarts": 3, "tolerance": 0}
    assert fit(gaussian_model(), data, trial_steps=3, **options).restarts == (
        fit(gaussian_model(), data, **options).restarts
    )
    online = {"steps": 8, "restarts": 3, "batch_size": 4, "step_size": lambda step: (step + 1) ** -0.6}
    together, apart = (fit(gaussian_model(), data, trial_steps=3, **online) for _ in range(2))
    assert together.loss == apart.loss and together.num_steps == 8


def test_networks_can_be_restarted_too():
    model, data = make_model("embedded")
    history = fit(model, data, steps=2, restarts=2)
    assert len(history.restarts) == 2
    assert -objective(model, data) / data.num_observed <= min(history.restarts) + 1e-10


def test_online_with_all_data_and_step_size_one_is_em():
    data = gaussians()
    expected = fit(gaussian_model(), data, steps=5, tolerance=0)
    online = fit(gaussian_model(), data, steps=5, batch_size=len(data), step_size=1.0)
    assert online.loss == pytest.approx(expected.loss, rel=1e-9)


def test_online_gets_near_the_maximum():
    data = gaussians(200)
    best = fit(gaussian_model(), data)
    model = gaussian_model()
    history = fit(model, data, steps=120, batch_size=20, step_size=lambda step: (step + 1) ** -0.6)
    assert history.num_steps == 120
    assert -objective(model, data) / data.num_observed < best.loss[-1] + 2e-3
    streamed = gaussian_model()
    batches = [data[i : i + 20] for i in range(0, 200, 20)]
    fit(streamed, batches, steps=60, step_size=0.2)
    assert -objective(streamed, data) / data.num_observed < best.loss[-1] + 2e-2


BROKEN = [
    {},
    {"batch_size": 5, "step_size": 0.5},
    {"restarts": 3},
    {"restarts": 3, "trial_steps": 2},  # broken after the trial
    {"restarts": 3, "trial_steps": 6},  # and within it
    {"restarts": 3, "trial_steps": 2, "batch_size": 5, "step_size": 0.5},
    {"batch_size": 4},
]


@pytest.mark.parametrize("options", BROKEN)
def test_a_broken_fit_goes_on_to_the_same_numbers(options, tmp_path):
    data = gaussians()
    whole, broken = gaussian_model(), gaussian_model()
    expected = fit(whole, data, steps=9, tolerance=0, seed=3, **options)
    path = tmp_path / "fit.pt"
    fit(broken, data, steps=4, tolerance=0, seed=3, checkpoint=path, **options)
    again = gaussian_model()
    history = fit(again, data, steps=9, tolerance=0, seed=3, checkpoint=path, **options)
    assert history.loss == expected.loss
    assert history.restarts == expected.restarts
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match="was written with seed=3, got 4"):
        fit(again, data, steps=9, tolerance=0, seed=4, checkpoint=path, **options)


def test_a_broken_fit_of_networks_goes_on_to_the_same_numbers(tmp_path):
    whole, data = make_model("inputs")
    expected = fit(whole, data, steps=5, tolerance=0)
    path = tmp_path / "fit.pt"
    fit(make_model("inputs")[0], data, steps=2, tolerance=0, checkpoint=path)
    again = make_model("inputs")[0]
    assert fit(again, data, steps=5, tolerance=0, checkpoint=path).loss == expected.loss
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_ctrl_c_keeps_what_was_learned(monkeypatch, tmp_path):
    data = gaussians()
    model, calls = gaussian_model(), 0
    plain = em.expect

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(em, "expect", interrupted)
    history = fit(model, data, tolerance=0, checkpoint=tmp_path / "fit.pt")
    assert history.stop_reason == "interrupted" and history.num_steps == 3
    expected = gaussian_model()
    monkeypatch.undo()
    fit(expected, data, steps=3, tolerance=0)
    assert_close_states(model, expected, rtol=0, atol=0)


def test_what_happened_is_told():
    data = Sequences(torch.cat([torch.zeros(1, 20, 1), 5 + 0.1 * torch.randn(1, 20, 1)], 1).double())
    model = HMM(nn.GaussianEmission(3, 1, loc=[[0.0], [5.0], [900.0]], scale=0.5)).double()
    history = fit(model, data, steps=5)
    assert any("emission, state 2: no data" in note for note in history.notes)
    assert any("emission, state 0: standard deviation kept at the least" in note for note in history.notes)
    assert math.isfinite(history.loss[-1])
    assert model.emission.loc[2] == 900


def test_a_state_that_claims_one_point():
    x = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(0)).double()
    x[0, 10] = 30.0
    model = HMM(nn.GaussianEmission(2, 1, loc=[[0.0], [30.0]], scale=1.0)).double()
    history = fit(model, Sequences(x), steps=50)
    assert history.stop_reason == "converged"
    assert any("state 1: standard deviation kept" in note for note in history.notes)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_sticky_prior_makes_states_last():
    data = gaussians()
    free, sticky = gaussian_model(), gaussian_model()
    sticky.transition = nn.Transition(2, prior=dist.Dirichlet(1 + 1000 * torch.eye(2))).double()
    fit(free, data)
    fit(sticky, data)
    assert (sticky.transition.log_probs().exp().diagonal() > free.transition.log_probs().exp().diagonal()).all()
    assert (sticky.transition.log_probs().exp().diagonal() > 0.8).all()


def test_steps_with_one_state_and_one_step():
    model = HMM(nn.GaussianEmission(1, 1)).double()
    history = fit(model, Sequences(torch.tensor([[[1.0]], [[3.0]]]).double()), steps=3)
    assert model.emission.loc.item() == pytest.approx(2)
    assert model.emission.log_scale.exp().item() == pytest.approx(1)
    assert never_falls(history.loss)


def test_float32_models_reach_what_float64_ones_do():
    data = gaussians()
    wide, narrow = gaussian_model(), gaussian_model().float()
    expected = fit(wide, data, steps=20, tolerance=0)
    history = fit(narrow, data.to(dtype=torch.float32), steps=20, tolerance=0)
    assert history.loss == pytest.approx(expected.loss, rel=1e-5)


def test_nothing_is_left_behind():
    import pyro

    pyro.clear_param_store()
    random = torch.get_rng_state()
    model, data = make_model("inputs")
    random = torch.get_rng_state()
    model.train()
    fit(model, data, steps=2)
    assert model.training
    assert list(pyro.get_param_store()) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors():
    data, model = gaussians(), gaussian_model()
    cases = [
        (TypeError, "model: expected a pyrohmm.models.HMM, got Linear", torch.nn.Linear(1, 1), data, {}),
        (TypeError, "data: expected pyrohmm.data.Sequences or an iterable", model, 3, {}),
        (TypeError, "gone through again, got list_iterator", model, iter([data]), {}),
        (TypeError, "data: expected items of pyrohmm.data.Sequences, got Tensor", model, [data.x], {}),
        (ValueError, "steps: expected at least 1, got 0", model, data, {"steps": 0}),
        (ValueError, "tolerance: expected a number of at least 0, got -1", model, data, {"tolerance": -1}),
        (
            ValueError,
            "assignment: expected 'soft', 'hard' or 'labels', got 'best'",
            model,
            data,
            {"assignment": "best"},
        ),
        (ValueError, "initialization: expected 'kmeans', 'random' or None", model, data, {"initialization": "best"}),
        (
            ValueError,
            "step_size: expected a number in .0, 1. or a function of the step, got 2",
            model,
            data,
            {"step_size": 2, "batch_size": 3},
        ),
        (ValueError, "step_size: expected None since there are no minibatches", model, data, {"step_size": 0.5}),
        (ValueError, "batch_size: expected None since the items of data", model, [data], {"batch_size": 3}),
        (ValueError, "initialization, restarts: expected None and 1", model, [data], {"restarts": 3}),
        (ValueError, "data: expected a label at every step", model, Sequences(data.x), {"assignment": "labels"}),
        (ValueError, "checkpoint: expected a file in an existing folder", model, data, {"checkpoint": "/no/such/f.pt"}),
    ]
    for error, message, some, given, options in cases:
        with pytest.raises(error, match=message):
            fit(some, given, **options)
    frozen = gaussian_model()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="expected at least one trainable parameter, got none"):
        fit(frozen, data)
    uncertain = gaussian_model()
    uncertain.emission.loc = PyroSample(dist.Normal(0.0, 1.0).expand([2, 1]).to_event(2))
    with pytest.raises(ValueError, match="expected parameters without PyroSample priors, got .'emission.loc'"):
        fit(uncertain, data)
    network, some = make_model("inputs")
    with pytest.raises(ValueError, match="initialization: expected None since NeuralEmission has no closed M-step"):
        fit(network, some, initialization="kmeans")
    impossible = HMM(nn.CategoricalEmission(2, 2), nn.Initial(2, mask=torch.tensor([True, False])), use_labels=True)
    with pytest.raises(ValueError, match="got impossible ones at .1."):
        fit(impossible, Sequences(torch.zeros(2, 3).long(), labels=torch.tensor([[0, 1, 0], [1, 1, 1]])))


def test_mixed_models_use_both_kinds_of_steps():
    """A table, a network of the inputs and a Gaussian: each learns."""
    generator = torch.Generator().manual_seed(0)
    truth = NeuralHMM(
        initial=nn.Initial(2),
        transition=nn.NeuralTransition(2, context=1),
        emission=nn.GaussianEmission(2, 1, loc=[[-2.0], [2.0]]),
    )
    with torch.no_grad():
        for parameter in truth.transition.net.parameters():
            parameter.mul_(10)
    inputs = torch.randn(40, 30, 1, generator=generator)
    data = truth.simulate(40, 30, inputs=inputs, seed=0)
    model = NeuralHMM(
        initial=nn.Initial(2), transition=nn.NeuralTransition(2, context=1), emission=nn.GaussianEmission(2, 1)
    )
    before = copy.deepcopy(model)
    history = fit(model, data, steps=40, initialization="kmeans", learning_rate=0.02)
    assert all(new <= old + 1e-6 for old, new in pairwise(history.loss))
    assert history.loss[-1] < -truth.log_prob(data).sum().item() / data.num_observed + 0.01
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), name


def test_online_em_of_an_iterable_counts_all_data():
    x = torch.poisson(5.0 * torch.ones(40, 5, 1), torch.Generator().manual_seed(0)).double()
    batches = [Sequences(x[i : i + 4]) for i in range(0, 40, 4)]

    def model() -> HMM:
        return HMM(nn.PoissonEmission(1, 1, prior=dist.Gamma(101.0, 100.0))).double()

    streamed, whole = model(), model()
    fit(streamed, batches, steps=200, step_size=lambda step: (step + 1) ** -0.6)
    fit(whole, Sequences(x), steps=2)
    assert streamed.emission.log_rate.exp().item() == pytest.approx(whole.emission.log_rate.exp().item(), rel=0.03)


def test_a_prior_counts_once_however_many_batches():
    """A table that is fitted by gradients, since the stationary start shares it."""
    data = gaussians(20)
    rates = []
    for batch_size in (None, 5):
        transition = nn.Transition(2, prior=dist.Dirichlet(1 + 30 * torch.eye(2)))
        emission = nn.GaussianEmission(2, 1, loc=[[-2.0], [2.0]], scale=0.7)
        model = HMM(emission, nn.StationaryInitial(transition), transition).double()
        for parameter in emission.parameters():
            parameter.requires_grad_(False)
        fit(model, data, steps=40, tolerance=0, batch_size=batch_size, learning_rate=0.02)
        rates.append(model.transition.log_probs().exp().diagonal().detach())
    torch.testing.assert_close(rates[0], rates[1], rtol=0, atol=0.03)


def test_a_subset_counts_on_its_own():
    part = gaussians()[:4]
    expected = fit(gaussian_model(), part.as_whole(), steps=3).loss
    assert fit(gaussian_model(), part, steps=3).loss == expected
    online = fit(gaussian_model(), part, steps=3, batch_size=4, step_size=1.0).loss
    assert online == pytest.approx(expected)


def test_checkpoints_of_other_data_are_refused(tmp_path):
    data = gaussians()
    fit(gaussian_model(), data, steps=2, checkpoint=tmp_path / "fit.pt")
    with pytest.raises(ValueError, match="was written with num_sequences=12, got 5"):
        fit(gaussian_model(), data[:5], steps=4, checkpoint=tmp_path / "fit.pt")


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_impossible_sequences_are_an_error(assignment):
    model = HMM(nn.CategoricalEmission(2, 3), transition=nn.Transition(2, torch.eye(2).bool()), use_labels=True)
    data = Sequences(torch.tensor([[0, 1, 2]]), labels=torch.tensor([[0, 1, -1]]))
    with pytest.raises(ValueError, match="got impossible ones at .0."):
        fit(model, data, assignment=assignment)


def test_an_impossible_start_is_one_restart_less(monkeypatch):
    data = gaussians()

    def broken(model, names, device, seed):
        if seed % 2:
            model.initial.mask = torch.tensor([True, False])  # but some sequences are known to begin in the other

    monkeypatch.setattr(initialization, "_redraw", broken)
    monkeypatch.setattr(em, "can_stack", lambda model: False)
    model = HMM(nn.GaussianEmission(2, 1), nn.Initial(2, mask=torch.tensor([True, True])), use_labels=True).double()
    history = fit(model, data, steps=3, restarts=4, tolerance=0)
    assert sum(math.isinf(loss) for loss in history.restarts) == 2
    assert history.loss[-1] == min(history.restarts) and math.isfinite(history.loss[-1])


def test_an_empty_iterable_is_an_error():
    for options in ({}, {"step_size": 0.5}):
        with pytest.raises(ValueError, match="data: expected items each time they are gone through, got none"):
            fit(gaussian_model(), [], **options)


def test_iterables_far_from_zero():
    data = gaussians()
    far = Sequences(data.x + 1e7, data.lengths)
    halves = [far[:6].as_whole(), far[6:].as_whole()]
    start = {"loc": [[1e7 - 1], [1e7 + 1]]}
    streamed, whole = gaussian_model(**start), gaussian_model(**start)
    fit(streamed, halves, steps=10, tolerance=0)
    fit(whole, far, steps=10, tolerance=0)
    torch.testing.assert_close(streamed.emission.log_scale, whole.emission.log_scale, rtol=1e-6, atol=1e-6)


def test_steps_that_are_taken_back_are_no_convergence():
    model, data = make_model("inputs")
    history = fit(model, data, steps=30, gradient_steps=1, learning_rate=3.0)
    assert any("taken back" in note for note in history.notes)
    assert history.loss[-1] < history.loss[0] - 1e-3
    assert never_falls(history.loss)


def test_data_of_another_dtype():
    data = Sequences(torch.poisson(torch.full((3, 5, 2), 4.0)).double())
    history = fit(HMM(nn.PoissonEmission(2, 2)), data, steps=3)
    assert math.isfinite(history.loss[-1])


def test_wrong_shapes_and_labels_change_nothing():
    model, data = gaussian_model(), gaussians()
    before = state_of(model)
    for x in (torch.zeros(3, 4, 2), torch.zeros(3, 4)):
        with pytest.raises(ValueError, match="data: expected x of shape"):
            fit(model, Sequences(x.double()))
    with pytest.raises(ValueError, match="data: expected labels below 2, got 2"):
        fit(model, Sequences(data.x, labels=torch.full(data.x.shape[:2], 2)), assignment="labels")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "centre" not in name)


def test_dropout_goes_by_the_seed(tmp_path):
    def model() -> HMM:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        return HMM(nn.NeuralEmission(2, net, "gaussian")).double()

    data = gaussians()
    whole = fit(model(), data, steps=4, tolerance=0)
    torch.manual_seed(7)
    assert fit(model(), data, steps=4, tolerance=0).loss == whole.loss
    fit(model(), data, steps=2, tolerance=0, checkpoint=tmp_path / "fit.pt")
    assert fit(model(), data, steps=4, tolerance=0, checkpoint=tmp_path / "fit.pt").loss == whole.loss


def test_ctrl_c_waits_for_the_step(tmp_path):
    data, model, steps = gaussians(), gaussian_model(), 0
    plain = em.maximize

    def pressed(*args):
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "maximize", pressed)
        history = fit(model, data, tolerance=0, checkpoint=tmp_path / "fit.pt")
    assert history.stop_reason == "interrupted" and history.num_steps == 3
    expected, again = gaussian_model(), gaussian_model()
    fit(expected, data, steps=3, tolerance=0)
    assert_close_states(model, expected, rtol=0, atol=0)
    fit(again, data, steps=3, tolerance=0, checkpoint=tmp_path / "fit.pt")
    assert_close_states(again, expected, rtol=0, atol=0)


def test_a_prior_of_a_part_of_ones_own_counts_everywhere():
    class Mine(nn.Part):
        order, event_shape, num_states = 0, torch.Size([1]), 2

        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor([[-1.0], [1.0]]).double())

        def forward(self, state, inputs=None, previous=None):
            return dist.Normal(self.loc[state], 1.0).to_event(1)

        def log_prior(self):
            return -100 * self.loc.square().sum()

    model, data = HMM(Mine()).double(), gaussians()
    em_loss = fit(copy.deepcopy(model), data, steps=1).loss[0]
    svi_loss = fit_svi(model, data, steps=1, progress=False).loss[0]
    assert em_loss == pytest.approx(svi_loss)
    assert em_loss * data.num_observed == pytest.approx(-model.log_prob(data).sum().item() + 200, rel=0.1)


def test_a_constant_column_leaves_the_others_alone():
    x = torch.full((4, 50, 2), 1000.0).double()
    x[..., 1] = 0.1 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    model = HMM(nn.GaussianEmission(1, 2, "spherical")).double()
    fit(model, Sequences(x), steps=2)
    expected = (x[..., 1].var(correction=0) / 2).sqrt().item()
    assert model.emission.log_scale.exp().item() == pytest.approx(expected, rel=1e-6)
