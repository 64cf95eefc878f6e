import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

import pyrohmm
from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.infer import fit_svi, importance_log_prob, svi
from pyrohmm.infer.minibatches import Minibatches
from pyrohmm.infer.optimizer import ClippedAdam
from pyrohmm.models import HMM, NeuralHMM
from tests.infer import programs
from tests.infer.programs import latent_guide, latent_model, level_guide, level_model
from tests.models.cases import make as make_case

fit = functools.partial(fit_svi, progress=False)

PROBS = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.9]])


def simulator() -> HMM:
    model = HMM(nn.BernoulliEmission(2, 3, probs=PROBS))
    with torch.no_grad():
        model.initial.logits.copy_(torch.tensor([0.8, 0.2]).log())
        model.transition.logits.copy_(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log())
    return model


def make_data(num: int = 30, steps: int = 12, seed: int = 0) -> Sequences:
    lengths = torch.randint(3, steps + 1, (num,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = steps
    return simulator().simulate(num, steps, lengths=lengths, seed=seed)


def make_model(seed: int = 0) -> HMM:
    generator = torch.Generator().manual_seed(seed)
    return HMM(nn.BernoulliEmission(2, 3, noise=0.5, generator=generator), generator=generator)


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def loss_per_step(model: HMM, data: Sequences) -> float:
    return -model.log_prob(data).sum().item() / data.num_observed


# What is learned


def test_recovers_the_parameters_up_to_the_order_of_states():
    model = make_model(1)
    data = simulator().simulate(300, 30, seed=1)
    history = fit(model, data, steps=150, learning_rate=0.1, schedule="cosine", batch_size=60)
    probs, transition = model.emission.logits.sigmoid(), model.transition.log_probs().exp()
    initial = model.initial().softmax(-1)
    order = [0, 1] if probs[0, 0] < probs[1, 0] else [1, 0]
    torch.testing.assert_close(probs[order], PROBS, atol=0.03, rtol=0)
    torch.testing.assert_close(transition[order][:, order], torch.tensor([[0.9, 0.1], [0.3, 0.7]]), atol=0.03, rtol=0)
    torch.testing.assert_close(initial[order], torch.tensor([0.8, 0.2]), atol=0.08, rtol=0)
    assert loss_per_step(model, data) <= loss_per_step(simulator(), data)
    assert (history.num_steps, history.stop_reason, history.step[-1]) == (150, "finished", 150)
    assert history.learning_rate[0] == pytest.approx(0.1)
    assert history.learning_rate[-1] < 1e-3
    assert history.seconds > 0


def test_loss_is_in_nats_for_each_observed_step():
    model, data = make_case("gaussian")
    data = data.as_whole()
    expected = loss_per_step(model, data)
    history = fit(model, data, steps=1)
    assert history.loss == [pytest.approx(expected)]


def test_loss_of_a_subset_is_for_each_step_too():
    model, data = make_case("gaussian")
    assert data.num_total == 10
    assert len(data) == 4
    expected = loss_per_step(model, data)
    assert fit(model, data, validation=data, steps=1, evaluate_every=1).loss == [pytest.approx(expected)]


def test_minibatch_losses_average_to_the_whole():
    model, data = make_model(), make_data(6)
    expected = loss_per_step(model, data)
    history = fit(model, data, steps=3, batch_size=2, learning_rate=1e-9)
    assert sum(history.loss) / 3 == pytest.approx(expected, rel=1e-5)
    assert len(set(history.loss)) == 3


@pytest.mark.parametrize("guided", [False, True])
def test_steps_are_those_of_plain_pyro(guided):
    data = make_data()
    model, guide = noisy_model() if guided else (make_model(), None)
    same, same_guide = noisy_model() if guided else (make_model(), lambda data: None)
    found = fit(model, data, guide, steps=5, learning_rate=0.05, clip_norm=None, seed=3).loss
    scaled = [pyro.poutine.scale(fn, 1 / data.num_observed) for fn in (same, same_guide)]
    plain = SVI(*scaled, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    same_guide(data)
    pyro.set_rng_seed(3)
    assert [plain.step(data.trim()) for _ in range(5)] == pytest.approx(found, rel=1e-6)
    for name, value in same.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["inputs", "autoregressive", "autoregressive symbols", "labels", "left to right"])
def test_every_kind_of_model_learns(name):
    model, data = make_case(name)
    before = loss_per_step(model, data)
    history = fit(model, data, steps=30, learning_rate=0.05, batch_size=3)
    assert loss_per_step(model, data) < before
    assert history.num_steps == 30


def test_other_losses():
    data = make_data(5)
    expected = fit(make_model(), data, steps=4).loss
    model = make_model()
    sequential = functools.partial(model.model, vectorized=False)
    actual = fit(sequential, data, steps=4, loss=TraceEnum_ELBO()).loss
    assert actual == pytest.approx(expected, rel=1e-5)
    assert fit(make_model(), data, steps=4, loss=RenyiELBO(num_particles=2)).loss == pytest.approx(expected, rel=1e-5)


@contextmanager
def watch_gradients(found: list[dict[str, Tensor]], draws_of_a_step: int | None = None) -> Iterator[None]:
    """Notes the gradient of each step, before it is clipped; if asked for, each step has the same random numbers."""
    real_step = ClippedAdam.step

    def step(self: ClippedAdam, loss: Any) -> Any:
        found.append({name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None})
        done = real_step(self, loss)
        if draws_of_a_step is not None:
            torch.default_generator.manual_seed(draws_of_a_step)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClippedAdam, "step", step)
        yield


def bayesian() -> tuple[HMM, PyroModule]:
    """A prior on transitions, sampled by a guide, and one on emissions, a factor."""
    generator = torch.Generator().manual_seed(0)
    emission = nn.BernoulliEmission(2, 3, prior=dist.Beta(torch.tensor(2.0), 3.0), generator=generator)
    model = HMM(emission, generator=generator)
    model.transition.logits = PyroSample(dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    return model, AutoNormal(model)


def with_fixed_noise() -> tuple[Any, Any]:
    """A latent variable of each sequence, one of all, and a factor; the same noise for each in every minibatch."""
    noise = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pyro.clear_param_store()
    return latent_model, functools.partial(latent_guide, noise=noise)


@pytest.mark.parametrize(
    ("make", "data"), [(bayesian, make_data(9)), (with_fixed_noise, programs.make_data(9))], ids=["global", "local"]
)
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_gradients_of_minibatches_average_to_that_of_all_data(make, data, batch_size):
    """In the mean weighted by their sizes: 9 sequences in 4s are two minibatches of 4 and one of 1."""
    found: list[dict[str, Tensor]] = []
    with watch_gradients(found, draws_of_a_step=0):
        model, guide = make()
        fit(model, data, guide, steps=1)
        num = math.ceil(9 / batch_size)
        model, guide = make()
        history = fit(model, data, guide, steps=num, batch_size=batch_size, learning_rate=1e-12)
    whole, *parts = found
    assert len(parts) == num
    sizes = [min(batch_size, 9 - begun) for begun in range(0, 9, batch_size)]
    for name, expected in whole.items():
        mean = sum(size / 9 * part[name] for size, part in zip(sizes, parts, strict=True))
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(parts[0][name], expected, rtol=0.1) for name, expected in whole.items())
    norms = [math.sqrt(sum(gradient.square().sum().item() for gradient in part.values())) for part in parts]
    assert history.gradient_norm == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("vectorize", [False, True])
def test_importance_weighted_bound(batch_size, vectorize):
    """log of the mean of the weights of each sequence, from the definition."""
    data, num = programs.make_data(), 3
    found: list[dict[str, Tensor]] = []
    loss = RenyiELBO(alpha=0, num_particles=num, vectorize_particles=vectorize)
    options = {"validation": data, "evaluate_every": 1, "batch_size": batch_size, "learning_rate": 1e-12, "seed": 3}
    with watch_gradients(found):
        history = fit(level_model, data, level_guide, steps=1, loss=loss, **options)

    def bound(batch: Sequences) -> Tensor:
        if vectorize:
            noise = torch.randn(num, len(batch), 1, dtype=torch.float64)
        else:
            noise = torch.stack([torch.randn(len(batch), 1, dtype=torch.float64) for _ in range(num)])
        q = dist.Normal(names["weight"] * batch.x.sum(1) / batch.lengths, names["scale"])
        weights = []
        for level in q.loc + q.scale * noise.squeeze(-1):
            prior = dist.Normal(torch.zeros_like(level), 1.0).log_prob(level)
            weights.append(programs.log_likelihood(batch, names["loc"], level) + prior - q.log_prob(level))
        return (torch.stack(weights).logsumexp(0) - math.log(num)).sum()

    names = {name: value.detach().requires_grad_() for name, value in pyro.get_param_store().items()}
    batch = next(Minibatches(data, batch_size, 3))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = -bound(batch) / len(batch) * len(data) / data.num_observed
        torch.manual_seed(3)
        held_out = -sum(bound(some).item() for some in data.batches(batch_size or 6)) / data.num_observed
    expected.backward()
    assert history.loss == [pytest.approx(expected.item(), rel=1e-7)]
    assert history.validation == [pytest.approx(held_out, rel=1e-7)]
    for name, value in names.items():
        factor = value.detach() if name == "scale" else 1.0
        torch.testing.assert_close(found[0][name], value.grad * factor)


def test_importance_weighted_bound_is_nearly_the_likelihood():
    data, particles = programs.make_data(), {"num_particles": 40, "vectorize_particles": True}
    losses = []
    for options in (particles, {"loss": RenyiELBO(**particles)}):
        history = fit(level_model, data, level_guide, steps=10, learning_rate=1e-12, **options)
        losses.append(sum(history.loss) / 10)
    exact = -importance_log_prob(level_model, data, level_guide, num_particles=4000, progress=False).log_prob.sum()
    elbo, weighted = losses
    assert weighted == pytest.approx(exact.item() / data.num_observed, abs=0.01)
    assert elbo > weighted + 0.02


def test_non_contiguous_parameters_are_trained():
    model = make_model()
    model.emission.logits = torch.nn.Parameter(torch.randn(3, 2).T)
    before = model.emission.logits.detach().clone()
    fit(model, make_data(), steps=3)
    assert (model.emission.logits != before).all()


def test_frozen_parameters_stay():
    model = make_model()
    model.transition.logits.requires_grad_(False)
    before = state_of(model)
    fit(model, make_data(), steps=3)
    assert torch.equal(model.transition.logits, before["transition.logits"])
    assert not model.transition.logits.requires_grad
    assert not torch.equal(model.emission.logits, before["emission.logits"])


def test_gradients_from_before_do_not_count_and_none_are_left():
    data, model, same = make_data(), make_model(), make_model()
    same.log_prob(data).sum().backward()
    assert fit(model, data, steps=3).loss == fit(same, data, steps=3).loss
    assert_same_state(state_of(same), state_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


# Held-out data


def overfitting() -> tuple[HMM, Sequences, Sequences]:
    model = HMM(nn.GaussianEmission(4, 2, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    return model, *(Sequences(torch.randn(n, 6, 2, generator=generator)) for n in (3, 30))


def test_validation_is_the_loss_of_the_held_out_data():
    model, data, held_out = make_model(), make_data(), make_data(7, seed=1)
    history = fit(model, data, steps=7, evaluate_every=3, validation=held_out, batch_size=4)
    assert history.evaluated == [3, 6, 7]
    assert history.best_step == 7
    assert history.validation[-1] == pytest.approx(loss_per_step(model, held_out), rel=1e-5)


def test_best_parameters_are_restored_and_patience_stops():
    model, data, held_out = overfitting()
    history = fit(model, data, steps=400, learning_rate=0.05, evaluate_every=5, patience=3, validation=held_out)
    assert history.stop_reason == "patience"
    assert history.num_steps < 400
    assert history.evaluations_since_best == 3
    assert history.best_step == history.num_steps - 15
    assert history.validation[-1] > min(history.validation) + 1e-3
    assert loss_per_step(model, held_out) == pytest.approx(min(history.validation), rel=1e-5)


def test_best_parameters_are_restored_without_patience():
    model, data, held_out = overfitting()
    history = fit(model, data, steps=60, learning_rate=0.1, evaluate_every=5, validation=held_out)
    assert history.stop_reason == "finished"
    assert history.best_step < 60
    assert loss_per_step(model, held_out) == pytest.approx(min(history.validation), rel=1e-5)


def test_without_validation_the_last_parameters_are_kept():
    model, data, _ = overfitting()
    history = fit(model, data, steps=20)
    assert history.evaluated == []
    assert history.best_step is None
    assert loss_per_step(model, data) < history.loss[-1]


def test_modes():
    seen = []

    class Watched(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(input)

    model = NeuralHMM(initial=nn.Initial(2), transition=nn.Transition(2), emission=nn.NeuralEmission(2, Watched(2, 3)))
    model.initial.eval()
    seen.clear()
    fit(model, make_data(3), steps=2, evaluate_every=1, validation=make_data(3))
    assert set(seen) == {(True, True), (False, False)}
    assert model.training
    assert model.emission.net.training
    assert not model.initial.training


# Randomness


def noisy_model() -> tuple[HMM, PyroModule]:
    """A model with a prior and dropout, and its guide: every step draws random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 3))
        model = NeuralHMM(
            initial=nn.Initial(2), transition=nn.Transition(2), emission=nn.NeuralEmission(2, net, "bernoulli")
        )
        model.transition.logits = PyroSample(dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    return model, AutoNormal(model)


def test_same_seed_same_numbers_and_the_random_state_is_not_touched():
    data = make_data()

    def run(seed: int) -> tuple[list[float], dict[str, Tensor]]:
        model, guide = noisy_model()
        history = fit(model, data, guide, steps=8, batch_size=10, seed=seed)
        return history.loss, state_of(guide) | state_of(model)

    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    losses, state = run(0)
    assert torch.equal(torch.rand(2), expected)
    again, same_state = run(0)
    assert again == losses
    assert_same_state(same_state, state)
    assert run(1)[0] != losses


def test_evaluations_do_not_change_the_fit():
    data = make_data()
    runs = []
    for options in ({}, {"validation": make_data(5, seed=2), "evaluate_every": 2}):
        model, guide = noisy_model()
        runs.append(fit(model, data, guide, steps=6, **options).loss)
    assert runs[0] == runs[1]


def test_particles():
    data = make_data()
    model, guide = noisy_model()
    one = fit(model, data, guide, steps=20, learning_rate=1e-9).loss
    model, guide = noisy_model()
    many = fit(model, data, guide, steps=20, learning_rate=1e-9, num_particles=10).loss
    assert torch.tensor(many).std() < 0.6 * torch.tensor(one).std()


@pytest.mark.parametrize("make", [with_fixed_noise, bayesian])
def test_particles_side_by_side(make):
    """With the noise of each sequence fixed they are all the same; else they have the same mean."""
    data = programs.make_data() if make is with_fixed_noise else make_data(6)
    found: list[dict[str, Tensor]] = []
    losses = []
    with watch_gradients(found):
        for vectorize in (False, True):
            model, guide = make()
            options = {"num_particles": 100, "vectorize_particles": vectorize, "batch_size": 4, "learning_rate": 1e-9}
            losses.append(fit(model, data, guide, steps=1, **options).loss[0])
    tolerance = 1e-6 if make is with_fixed_noise else 0.05
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=tolerance, atol=2 * tolerance)


# Checkpoints and interrupts


@pytest.fixture(params=[1, 5])
def read_every(request, monkeypatch):
    """How many steps pass until they are looked at: 1 on a CPU, several on a GPU."""
    monkeypatch.setattr(svi, "_read_every", lambda device: request.param)
    return request.param


@contextmanager
def interrupt_at(step: int) -> Iterator[None]:
    """Raises KeyboardInterrupt in the middle of a step: after its gradient, before its update."""
    calls = 0

    def interrupting(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return real_step(*args)

    real_step = ClippedAdam.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClippedAdam, "step", interrupting)
        yield


@pytest.mark.parametrize("schedule", ["cosine", None, functools.partial(torch.optim.lr_scheduler.StepLR, step_size=4)])
@pytest.mark.parametrize("interrupted_at", [1, 2, 6, 12])
def test_resumed_fit_gives_the_same_numbers(tmp_path, schedule, interrupted_at, read_every):
    data, held_out = make_data(11), make_data(5, seed=1)
    options = {
        "steps": 12,
        "batch_size": 4,
        "schedule": schedule,
        "validation": held_out,
        "evaluate_every": 3,
        "learning_rate": 0.1,
    }

    def run(**more: Any):
        model, guide = noisy_model()
        history = fit(model, data, guide, **options, **more)
        return history, state_of(model) | state_of(guide)

    expected, expected_state = run()
    path = tmp_path / "fit.pt"
    with interrupt_at(interrupted_at):
        broken, _ = run(checkpoint=path)
    assert broken.stop_reason == "interrupted"
    assert broken.loss == expected.loss[: interrupted_at - 1]
    assert path.exists() == (interrupted_at > 1)
    resumed, state = run(checkpoint=path)
    assert resumed.loss == expected.loss
    assert resumed.learning_rate == expected.learning_rate
    assert (resumed.evaluated, resumed.validation) == (expected.evaluated, expected.validation)
    assert_same_state(state, expected_state)
    assert resumed.seconds >= broken.seconds
    assert resumed.stop_reason == "finished"


def test_checkpoint_that_does_not_tell_of_gradients_and_weights(tmp_path):
    path, data = tmp_path / "fit.pt", make_data()
    expected = fit(make_model(), data, steps=5)
    fit(make_model(), data, steps=3, checkpoint=path)
    content = torch.load(path, weights_only=True)
    for name in ("gradient_norm", "kl_weight"):
        del content["state"]["history"][name]
    for name in ("annealing", "annealed", "vectorize_particles"):
        del content["settings"][name]
    torch.save(content, path)
    resumed = fit(make_model(), data, steps=5, checkpoint=path)
    assert resumed.loss == expected.loss
    assert [math.isnan(norm) for norm in resumed.gradient_norm] == [True, True, True, False, False]
    assert resumed.gradient_norm[3:] == expected.gradient_norm[3:]
    assert resumed.kl_weight == [1.0] * 5


def test_periodic_checkpoint_of_a_run_that_died(tmp_path):
    class Die(Trace_ELBO):
        calls = 0

        def loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == 8:
                raise RuntimeError("out of memory")
            return super().loss_and_grads(*args, **kwargs)

    data, path = make_data(), tmp_path / "fit.pt"
    options = {"steps": 10, "batch_size": 7, "checkpoint_every": 3}
    model = make_model()
    expected = fit(model, data, **options)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(make_model(), data, loss=Die(), checkpoint=path, **options)
    saved = torch.load(path, weights_only=True)
    assert len(saved["state"]["history"]["loss"]) == 6
    Same = type("Die", (Trace_ELBO,), {})
    resumed_model = make_model()
    resumed = fit(resumed_model, data, loss=Same(), checkpoint=path, **options)
    assert resumed.loss == expected.loss
    assert_same_state(state_of(resumed_model), state_of(model))


def test_interrupt_in_the_update_does_not_overwrite_the_checkpoint(tmp_path, monkeypatch, read_every):
    path, data = tmp_path / "fit.pt", make_data()
    fit(make_model(), data, steps=4, checkpoint=path)
    before = path.read_bytes()
    real_step, calls = torch.optim.Adam.step, []

    def step(self, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        real_step(self, *args, **kwargs)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        history = fit(make_model(), data, steps=9, checkpoint=path)
    assert (history.stop_reason, history.num_steps) == ("interrupted", 6)
    assert path.read_bytes() == before
    resumed = fit(make_model(), data, steps=9, checkpoint=path)
    assert resumed.loss == fit(make_model(), data, steps=9).loss


def test_finished_fit_is_returned_as_it_was_and_can_go_on(tmp_path):
    data, path = make_data(), tmp_path / "fit.pt"
    model = make_model()
    first = fit(model, data, steps=5, batch_size=8, checkpoint=path)
    written = path.read_bytes()
    same = make_model()
    again = fit(same, data, steps=5, batch_size=8, checkpoint=path)
    assert again.loss == first.loss
    assert_same_state(state_of(same), state_of(model))
    assert path.read_bytes() == written
    longer = fit(make_model(), data, steps=9, batch_size=8, checkpoint=path)
    assert longer.loss == fit(make_model(), data, steps=9, batch_size=8).loss


def test_patience_holds_over_a_checkpoint(tmp_path):
    options = {"steps": 400, "learning_rate": 0.05, "evaluate_every": 5, "patience": 3}
    path = tmp_path / "fit.pt"
    model, data, held_out = overfitting()
    first = fit(model, data, validation=held_out, checkpoint=path, **options)
    other, _, _ = overfitting()
    again = fit(other, data, validation=held_out, checkpoint=path, **options)
    assert again.stop_reason == "patience"
    assert again.validation == first.validation
    assert_same_state(state_of(other), state_of(model))


def test_interrupt_keeps_what_was_learned(read_every):
    model, data = make_model(), make_data()
    with interrupt_at(31):
        history = fit(model, data, steps=50, learning_rate=0.1)
    assert (history.stop_reason, history.num_steps) == ("interrupted", 30)
    assert loss_per_step(model, data) < history.loss[0] - 0.05
    same = make_model()
    fit(same, data, steps=30, learning_rate=0.1)
    assert_same_state(state_of(model), state_of(same))


def test_checkpoint_of_another_fit(tmp_path):
    path = tmp_path / "fit.pt"
    fit(make_model(), make_data(), steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="learning_rate"):
        fit(make_model(), make_data(), steps=2, checkpoint=path, learning_rate=0.5)
    with pytest.raises(ValueError, match="num_sequences"):
        fit(make_model(), make_data(29), steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="another model"):
        fit(HMM(nn.BernoulliEmission(3, 3)), make_data(), steps=2, checkpoint=path)


# Parameters and Pyro's store


def test_store_is_neither_used_nor_polluted():
    data = make_data()
    expected = fit(make_model(), data, steps=3).loss
    assert len(pyro.get_param_store()) == 0
    pyro.param("mine", torch.tensor(1.0))
    stale = make_model(seed=9)
    stale(data)
    names = set(pyro.get_param_store())
    before = state_of(stale)
    model = make_model()
    assert fit(model, data, steps=3).loss == expected
    assert set(pyro.get_param_store()) == names
    assert_same_state(state_of(stale), before)
    assert pyro.get_param_store()._params["emission.logits"] is stale.emission.logits


def plain_model(data: Sequences) -> None:
    logits = pyro.param("logits", torch.zeros(2, 3))
    start = pyro.param("start", torch.tensor([0.6, 0.4]), constraint=dist.constraints.simplex)
    with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
        z = None
        for t in pyrohmm.markov("time", data.num_steps, dim=-1, lengths=data.lengths):
            z = pyro.sample("z", dist.Categorical(start if z is None else torch.ones(2)))
            pyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=data.x[:, t])


def test_parameters_of_plain_functions_are_in_the_store():
    data = make_data()
    history = fit(plain_model, data, steps=20, learning_rate=0.1)
    store = pyro.get_param_store()
    assert set(store) == {"logits", "start"}
    assert (store["logits"] != 0).any()
    assert history.loss[-1] < history.loss[0]
    # As with SVI, a second fit goes on from there.
    assert fit(plain_model, data, steps=1).loss[0] < (history.loss[0] + history.loss[-1]) / 2


def test_checkpoint_of_plain_functions(tmp_path):
    data, path = make_data(), tmp_path / "fit.pt"
    expected = fit(plain_model, data, steps=8).loss
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    fit(plain_model, data, steps=5, checkpoint=path)
    pyro.clear_param_store()
    assert fit(plain_model, data, steps=8, checkpoint=path).loss == expected
    for name, value in pyro.get_param_store().items():
        assert torch.equal(value, values[name])


def test_module_with_a_plain_guide():
    model, _ = noisy_model()
    data = make_data()

    def guide(data: Sequences) -> None:
        loc = pyro.param("loc", torch.zeros(2, 2))
        pyro.sample("transition.logits", dist.Normal(loc, 0.1).to_event(2))

    before = state_of(model)
    fit(model, data, guide, steps=5)
    assert set(pyro.get_param_store()) == {"loc"}
    assert (pyro.param("loc") != 0).any()
    assert not torch.equal(model.emission.net[0].weight, before["emission.net.0.weight"])


def test_autoguide_of_a_plain_model():
    def model(data: Sequences) -> None:
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        logits = pyro.param("logits", torch.tensor([[-2.0, 2.0, 0.0], [1.0, -1.0, 2.0]]))
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            z = None
            for t in pyrohmm.markov("time", data.num_steps, dim=-1, lengths=data.lengths):
                z = pyro.sample("z", dist.Categorical(torch.ones(2) if z is None else rows[z]))
                pyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=data.x[:, t])

    guide = AutoNormal(model)
    fit(model, make_data(100), guide, steps=200, learning_rate=0.05, batch_size=50)
    assert set(pyro.get_param_store()) == {"logits"}
    rows = guide.median()["rows"]
    torch.testing.assert_close(rows, torch.tensor([[0.9, 0.1], [0.3, 0.7]]), atol=0.1, rtol=0)


def test_object_with_model_and_guide():
    class Pair:
        def __init__(self) -> None:
            self.hmm, self.guided = make_model(), 0

        def model(self, data: Sequences) -> None:
            self.hmm(data)

        def guide(self, data: Sequences) -> None:
            self.guided += 1

    pair = Pair()
    assert fit(pair, make_data(), steps=3).num_steps == 3
    assert pair.guided >= 3


def test_bound_method_is_known_as_its_module():
    model = make_model()
    fit(model.model, make_data(), steps=2)
    assert len(pyro.get_param_store()) == 0


# Errors


def test_loss_that_is_not_finite_leaves_the_last_good_parameters(read_every):
    class Breaks(Trace_ELBO):
        calls = 0

        def loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().loss_and_grads(*args, **kwargs) * (math.nan if self.calls == 4 else 1.0)

    data, model, same = make_data(), make_model(), make_model()
    with pytest.raises(FloatingPointError, match=r"step 4: the loss is nan.*learning_rate"):
        fit(model, data, steps=9, loss=Breaks())
    fit(same, data, steps=3)
    assert_same_state(state_of(model), state_of(same))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("options", "steps_begun"),
    [({}, 10), ({"validation": make_data(3), "evaluate_every": 4}, 4), ({"checkpoint": "fit.pt"}, 5)],
)
def test_a_gradient_is_found_to_be_not_finite_some_steps_later(options, steps_begun, tmp_path, monkeypatch):
    """The steps in between, whose gradients are finite, change nothing either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(svi, "_read_every", lambda device: 20)
    model, same, data = make_model(), make_model(), make_data()
    calls = []

    def break_third(gradient: Tensor) -> Tensor:
        calls.append(gradient)
        return gradient * (math.nan if len(calls) == 3 else 1.0)

    model.emission.logits.register_hook(break_third)
    with pytest.raises(FloatingPointError, match=r"step 3: the gradient is not finite, in \['emission.logits'\]"):
        fit(model, data, steps=10, checkpoint_every=5, learning_rate=0.1, **options)
    assert len(calls) == steps_begun
    assert not (tmp_path / "fit.pt").exists()
    fit(same, data, steps=2, learning_rate=0.1)
    assert_same_state(state_of(model), state_of(same))


def test_when_losses_are_read_changes_no_number(monkeypatch):
    runs = []
    for every in (1, 5, 100):
        monkeypatch.setattr(svi, "_read_every", lambda device, every=every: every)
        model, guide = noisy_model()
        options = {"validation": make_data(5, seed=1), "evaluate_every": 4, "schedule": "cosine"}
        history = fit(model, make_data(), guide, steps=13, batch_size=8, **options)
        history.seconds = 0.0
        runs.append((history, state_of(model) | state_of(guide)))
    for history, state in runs[1:]:
        assert history == runs[0][0]
        assert_same_state(state, runs[0][1])


def test_parameters_that_no_run_meets_are_told_of():
    class Level(PyroModule):
        def __init__(self):
            super().__init__()
            self.level, self.forgotten = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))
            self.frozen = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, data: Sequences) -> None:
            with pyro.plate("sequences", data.num_total, subsample=data.index):
                pyro.sample("x", dist.Normal(self.level, 1.0).expand([data.num_steps, 3]).to_event(2), obs=data.x)

    history = fit(Level(), Sequences(torch.ones(4, 5, 3)), steps=2)
    assert history.notes == ["not trained, since the programs did not meet them: forgotten"]
    assert fit(make_model(), make_data(), steps=2).notes == []


def test_parameters_that_appear_later_are_trained():
    def model(data: Sequences) -> None:
        plain_model(data)
        for i in data.index.tolist():
            pyro.factor(f"factor_{i}", -(pyro.param(f"x_{i}", torch.tensor(1.0)) ** 2))

    fit(model, make_data(6), steps=6, batch_size=2, learning_rate=0.1)
    values = {name: value for name, value in pyro.get_param_store().items() if name.startswith("x_")}
    assert len(values) == 6
    assert all(value < 1 for value in values.values())


def test_gradient_that_is_not_finite():
    model, data = make_model(), make_data()
    model.emission.logits.register_hook(lambda gradient: gradient * math.nan)
    before = state_of(model)
    with pytest.raises(FloatingPointError, match=r"step 1: the gradient is not finite, in \['emission.logits'\]"):
        fit(model, data, steps=2)
    assert_same_state(state_of(model), before)


def test_impossible_data():
    model = HMM(nn.BernoulliEmission(2, 3), use_labels=True, transition=nn.Transition(2, torch.eye(2) > 0))
    data = Sequences(torch.zeros(1, 2, 3), labels=torch.tensor([[0, 1]]))
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is inf.*impossible"):
        fit(model, data, steps=2)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_site_and_the_sequences_are_named_that_break_a_loss(num_particles, read_every):
    """At the first draw that is large, of the one sequence for which that is not allowed."""
    data = programs.make_data()
    values: list[Tensor] = []

    def guide(data: Sequences) -> None:
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            pyro.sample("level", dist.Normal(pyro.param("loc_q", torch.zeros(()).to(data.x)), 1.0))

    def model(data: Sequences) -> None:
        loc = pyro.param("loc", torch.zeros(()).to(data.x))
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            level = pyro.sample("level", dist.Normal(loc, 1.0))
            broken = (data.index.unsqueeze(-1) == 4) & (level > 1)
            values.extend(level[broken].flatten().detach())
            pyro.factor("check", torch.where(broken, torch.nan, -level.square()))

    with pyro.validation_enabled(False), pytest.raises(FloatingPointError) as raised:
        fit(model, data, guide, steps=200, batch_size=2, num_particles=num_particles, seed=1)
    message = str(raised.value)
    assert "the loss is nan: site 'check' of the model has a log-probability of nan, in the sequences [4]; " in message
    assert not message.startswith("step 1:")
    # In the same minibatch, by the same draw.
    assert values[0] == values[-1]


@pytest.mark.parametrize("validated", [False, True])
def test_impossible_sequences_are_named(validated, read_every):
    model = HMM(nn.BernoulliEmission(2, 3), use_labels=True, transition=nn.Transition(2, torch.eye(2) > 0))
    labels = torch.tensor([[0, 0], [0, 1], [-1, -1], [1, 0]])
    data = Sequences(torch.zeros(4, 2, 3), labels=labels)
    message = r"site 'time' of the model has a log-probability of -inf, in the sequences \[1, 3\]"
    with pyro.validation_enabled(validated), pytest.raises(FloatingPointError, match=message):
        fit(model, data, steps=2)


@pytest.mark.parametrize("validated", [False, True])
def test_inputs_that_are_too_large(validated, read_every):
    """A loop names the site in it; with validation on it is its own error that is passed on."""
    inputs = torch.zeros(5, 4, 1)
    inputs[3, 2] = 3e38
    data = Sequences(torch.ones(5, 4, 3), inputs=inputs)
    net = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(net.weight, 1.0)
    model = HMM(nn.NeuralEmission(2, net, "poisson", context=1))
    kind = ValueError if validated else FloatingPointError
    with pyro.validation_enabled(validated), pytest.raises(kind) as raised:
        fit(model, data, steps=2)
    message = " ".join([str(raised.value), *raised.value.__notes__]) if validated else str(raised.value)
    assert "loop 'time': site(s) ['x'] broke: observation_logits: expected no NaN" in message
    assert "site 'time' of the model has a log-probability of nan, in the sequences [3]" in message
    assert ("the first run: " if validated else "step 1: ") in message


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("place", ["guide", "scale", "parameter"])
def test_what_is_named_when_a_program_breaks(place, validated, read_every):
    data = programs.make_data()
    start = math.nan if place == "parameter" else 0.0

    def guide(data: Sequences) -> None:
        loc = pyro.param("loc_q", torch.tensor(start).to(data.x))
        loc = loc + torch.where(data.index == 4, torch.nan if place == "guide" else 0.0, 0.0).unsqueeze(-1)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            pyro.sample("level", dist.Normal(loc, 1.0))

    def model(data: Sequences) -> None:
        log_scale = pyro.param("log_scale", torch.tensor(-1e4 if place == "scale" else 0.0).to(data.x))
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            level = pyro.sample("level", dist.Normal(torch.zeros(()).to(data.x), 1.0))
            pyro.sample("x", dist.Normal(level, log_scale.exp()), obs=data.x[:, :1])

    told = {
        "guide": "site 'level' of the guide has a value of nan, in the sequences [4]",
        "scale": "site 'x' of the model has a log-probability of nan, in the sequences [0, 1, 2, 3, 4] and 1 more",
        "parameter": "parameter 'loc_q' of the guide has a value of nan",
    }
    kind = ValueError if validated else FloatingPointError
    with pyro.validation_enabled(validated), pytest.raises(kind) as raised:
        fit(model, data, guide, steps=2)
    message = " ".join(raised.value.__notes__) if validated else str(raised.value)
    assert message.startswith("the first run: " if validated else "step 1: ")
    assert told[place] in message


def test_the_step_is_told_of_at_which_pyro_refuses_a_parameter(read_every):
    data, runs = programs.make_data(), []

    def guide(data: Sequences) -> None:
        runs.append(1)
        noise = torch.where((data.index == 4) & (len(runs) > 3), torch.nan, 0.0).unsqueeze(-1)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            pyro.sample("level", dist.Normal(pyro.param("loc_q", torch.zeros(()).to(data.x)) + noise, 1.0))

    with pytest.raises(ValueError, match="Expected parameter loc") as raised:
        fit(level_model, data, guide, steps=9)
    (note,) = raised.value.__notes__
    assert note.startswith("step 3: site 'level' of the guide has a value of nan, in the sequences [4]; ")


def test_errors_of_programs_that_have_nothing_to_do_with_it_have_no_note():
    calls = []

    def model(data: Sequences) -> None:
        plain_model(data)
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as raised:
        fit(model, make_data(), steps=9)
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps: expected an int"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ({"num_particles": 0}, ValueError, "num_particles"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate: expected a positive finite number"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm"),
        ({"schedule": "linear"}, ValueError, "schedule"),
        ({"patience": 3}, ValueError, "patience: expected None since there is no validation"),
        ({"validation": torch.zeros(3)}, TypeError, "validation: expected pyrohmm.data.Sequences, got Tensor"),
        ({"loss": "elbo"}, TypeError, "loss: expected a pyro.infer.ELBO, got str"),
        ({"loss": Trace_ELBO(), "num_particles": 2}, ValueError, "num_particles: expected 1 since"),
        ({"loss": Trace_ELBO(), "vectorize_particles": True}, ValueError, "vectorize_particles: expected False since"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"checkpoint": "no/such/folder/fit.pt"}, ValueError, "checkpoint: expected a file in an existing folder"),
        ({"guide": 3}, TypeError, "guide: expected a Pyro program, got int"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        fit(make_model(), make_data(3), **options)


def test_wrong_model_and_data():
    data = make_data(3)
    with pytest.raises(TypeError, match="model: expected a Pyro program"):
        fit(3, data)
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        fit(make_model(), data.x)
    with pytest.raises(ValueError, match="data: expected at least one observed step"):
        fit(make_model(), Sequences(data.x, mask=torch.zeros(data.x.shape[:2], dtype=torch.bool)))
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        fit(lambda data: None, data)
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        fit(model, data)


def test_progress_bar(capsys):
    fit_svi(make_model(), make_data(3), steps=3, validation=make_data(3), evaluate_every=1)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "validation=" in shown
    fit(make_model(), make_data(3), steps=3)
    assert capsys.readouterr().err == ""
