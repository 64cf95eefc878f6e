import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import Tensor

from pyrohmm import nn, ops
from pyrohmm.data import Sequences
from pyrohmm.models import HMM, FilterState, FilterUpdate, NeuralHMM
from pyrohmm.testing import enumeration
from tests.models.cases import CASES, C, D, K, N, T, make, net


def poisoned(data: Sequences) -> Tensor:
    """x with values that must not be read where it is missing or past the length."""
    hidden = ~data.observed.reshape(N, -1, *(1 for _ in data.event_shape))
    return data.x.masked_fill(hidden, float("nan") if data.x.is_floating_point() else -7)


def feed(state: FilterState, data: Sequences, t: int) -> FilterUpdate:
    x = poisoned(data)[:, t]
    return state.update(x, data.inputs[:, t], observed=data.observed[:, t], labels=data.labels[:, t])


def prefix(data: Sequences, t: int) -> Sequences:
    return Sequences(
        data.x[:, :t],
        data.lengths.clamp(max=t),
        inputs=data.inputs[:, :t],
        labels=data.labels[:, :t],
        mask=data.mask[:, :t],
    )


def potentials_of(model: HMM, data: Sequences, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """The potentials of the i-th sequence, from the parts alone."""
    states, length, law = torch.arange(K), int(data.lengths[i]), model.emission
    transitions = [model.transition(states, data.inputs[i, t]).log_softmax(-1) for t in range(1, length)]
    observations = []
    for t in range(length):
        known = int(data.labels[i, t]) if model.use_labels else -1
        row = torch.where((states == known) | (known < 0), 0.0, -torch.inf).double()
        if data.mask[i, t]:
            start = torch.zeros_like(data.x[i, 0]) if data.x.is_floating_point() else torch.tensor(-1)
            before = [data.x[i, t - lag] if t >= lag else start for lag in range(1, law.order + 1)]
            previous = torch.cat([value.reshape(-1) for value in before]) if before else None
            row = row + torch.stack([law(z, data.inputs[i, t], previous).log_prob(data.x[i, t]) for z in states])
        observations.append(row)
    transition = torch.stack(transitions) if transitions else torch.zeros(K, K).double()
    return model.initial(data.inputs[i, 0]).log_softmax(-1), transition, torch.stack(observations)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_filter_of_all_at_once(name):
    model, data = make(name)
    chain = model.posterior(data)
    expected = ops.filter(*chain.potentials, lengths=data.lengths)
    state = model.filter_state(N)
    for t in range(T):
        update, inside = feed(state, data, t), data.lengths > t
        torch.testing.assert_close(update.log_probs[inside], expected.log_probs[inside, t], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(update.log_evidence, expected.log_evidence[:, t], rtol=1e-10, atol=1e-10)
        assert update.log_probs is state.log_probs
    torch.testing.assert_close(state.log_likelihood, model.log_prob(data).detach(), rtol=1e-10, atol=1e-10)
    assert state.num_steps == T


@pytest.mark.parametrize("name", CASES)
def test_equals_the_sum_over_all_paths(name):
    model, data = make(name)
    for i in range(N):
        with torch.no_grad():
            initial, transition, observation = potentials_of(model, data, i)
        expected = enumeration.filter(initial, transition, observation)
        state = model.filter_state(lag=T)
        for t in range(int(data.lengths[i])):
            observed = bool(data.mask[i, t])
            update = state.update(data.x[i, t] if observed else None, data.inputs[i, t], labels=data.labels[i, t])
            torch.testing.assert_close(update.log_probs, expected.log_probs[t], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(update.log_evidence, expected.log_evidence[t], rtol=1e-10, atol=1e-10)
            so_far = initial, transition[:t] if t else torch.zeros(K, K).double(), observation[: t + 1]
            marginals = enumeration.smooth(*so_far).state_marginals
            torch.testing.assert_close(state.smooth(), marginals.flip(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lag", [0, 1, 2, 7])
@pytest.mark.parametrize("name", CASES)
def test_fixed_lag_smoothing_equals_smoothing_of_the_prefix(name, lag):
    model, data = make(name)
    state = model.filter_state(N, lag=lag)
    for t in range(T):
        feed(state, data, t)
        expected = model.posterior(prefix(data, t + 1)).marginals[:, max(t - lag, 0) :].flip(1)
        assert state.smooth().shape == expected.shape
        inside = data.lengths > t
        torch.testing.assert_close(state.smooth()[inside], expected[inside].detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_what_was_predicted_is_what_was_forecast(name):
    model, data = make(name)
    state = model.filter_state(N)
    for t in range(T):
        forecast = state.forecast(1, data.inputs[:, t : t + 1])
        torch.testing.assert_close(feed(state, data, t).predicted, forecast[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["inputs", "gaussian"])
def test_forecast_is_an_update_without_observations(name):
    model, data = make(name)
    state, after = model.filter_state(N), model.filter_state(N)
    for t in range(2):
        feed(state, data, t)
        feed(after, data, t)
    forecast = state.forecast(2, data.inputs[:, 2:])
    for t in range(2):
        after.update(inputs=data.inputs[:, t + 2])
        torch.testing.assert_close(forecast[:, t], after.log_probs, rtol=1e-10, atol=1e-10)
    assert state.num_steps == 2


@pytest.mark.parametrize("name", CASES)
def test_goes_on_from_its_state_dict_to_the_same_numbers(name):
    model, data = make(name)
    state = model.filter_state(N, lag=2)
    for when in range(T):
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        restored = model.filter_state(N, lag=2)
        restored.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        expected, actual = feed(state, data, when), feed(restored, data, when)
        for ours, theirs in zip(actual, expected, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(restored.smooth(), state.smooth())
        assert torch.equal(restored.log_likelihood, state.log_likelihood)
        assert restored.num_steps == when + 1


def test_a_state_dict_does_not_change_with_later_updates():
    model, data = make("autoregressive")
    state = model.filter_state(N, lag=1)
    feed(state, data, 0)
    saved = state.state_dict()
    first = feed(state, data, 1)
    state.load_state_dict(saved)
    assert torch.equal(feed(state, data, 1).log_probs, first.log_probs)


def test_the_window_and_the_memory_do_not_grow():
    model, data = make("inputs")
    state = model.filter_state(N, lag=2)
    for _ in range(10):
        feed(state, data, 0)
    saved = state.state_dict()
    assert len(saved["window"]) == 3
    model, data = make("autoregressive")
    state = model.filter_state(N)
    for _ in range(10):
        feed(state, data, 0)
    saved = state.state_dict()
    assert saved["previous"].shape == (N, 2 * D)
    assert saved["window"][0][2] is None


@pytest.mark.parametrize("batch_shape", [(), (1,), (2, 3)])
def test_any_batch_shape(batch_shape):
    model, _ = make("inputs")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*batch_shape, 3, D, generator=generator, dtype=torch.float64)
    inputs = torch.randn(*batch_shape, 3, C, generator=generator, dtype=torch.float64)
    state = model.filter_state(batch_shape, lag=1)
    for t in range(3):
        state.update(x[..., t, :], inputs[..., t, :])
    data = Sequences(x.reshape(-1, 3, D), inputs=inputs.reshape(-1, 3, C))
    torch.testing.assert_close(state.log_likelihood, model.log_prob(data).detach().reshape(batch_shape))
    expected = model.posterior(data).marginals[:, 1:].flip(1).reshape(*batch_shape, 2, K)
    torch.testing.assert_close(state.smooth(), expected.detach())
    assert state.forecast(2, inputs[..., :2, :]).shape == (*batch_shape, 2, K)


def test_one_state():
    model = HMM(nn.PoissonEmission(1, 2))
    state = model.filter_state(3, lag=1)
    x = torch.tensor([[1.0, 2.0]] * 3)
    for _ in range(2):
        update = state.update(x)
        torch.testing.assert_close(update.log_evidence, model.emission(torch.tensor(0)).log_prob(x).detach())
    assert torch.equal(state.smooth(), torch.ones(3, 2, 1))


def test_many_states_take_the_kernel_to_the_same_numbers():
    model = HMM(nn.GaussianEmission(40, 2), transition=nn.Transition(40, torch.ones(40, 40).triu().bool())).double()
    x = torch.randn(50, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = model.filter_state(50)
    for t in range(4):
        state.update(x[:, t])
    torch.testing.assert_close(state.log_likelihood, model.log_prob(Sequences(x)).detach(), rtol=1e-10, atol=1e-10)


def test_all_missing_tells_nothing():
    model, _ = make("gaussian")
    state = model.filter_state(2)
    for missing in (
        {"x": None},
        {"x": torch.full((2, D), float("nan")), "observed": False},
        {"x": torch.full((2, D), float("nan")), "observed": torch.tensor([False, False])},
    ):
        update = state.update(**missing)
        torch.testing.assert_close(update.log_probs, update.predicted)
        assert update.log_evidence.abs().max() < 1e-12


@pytest.mark.parametrize("name", ["gaussian", "poisson", "labels"])
def test_missing_entries_and_allowed_states(name):
    model, data = make(name)
    generator = torch.Generator().manual_seed(3)
    entries = torch.rand(data.x.shape, generator=generator) < 0.6
    allowed = torch.rand(N, T, K, generator=generator) < 0.7
    allowed[..., 1] = True  # the known label of all cases
    data = Sequences(data.x, data.lengths, labels=data.labels, mask=entries, allowed=allowed)
    expected = ops.filter(*model.posterior(data).potentials, lengths=data.lengths)
    state = model.filter_state(N)
    for t in range(T):
        x = data.x[:, t].masked_fill(~data.entries[:, t], float("nan"))
        update = state.update(x, observed=data.entries[:, t], labels=data.labels[:, t], allowed=data.allowed[:, t])
        inside = data.lengths > t
        torch.testing.assert_close(update.log_probs[inside], expected.log_probs[inside, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.log_likelihood, model.log_prob(data).detach(), rtol=1e-10, atol=1e-10)


def test_impossible_observations():
    mask = torch.eye(2, dtype=torch.bool)
    emission = nn.CategoricalEmission(2, 3)
    with torch.no_grad():
        emission.logits.copy_(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]).log())
    model = HMM(emission, transition=nn.Transition(2, mask))
    state = model.filter_state(2, lag=2)
    evidence = [state.update(torch.tensor(x)).log_evidence for x in ([0, 0], [0, 2], [1, 1])]
    assert torch.stack(evidence).isfinite().tolist() == [[True, True], [True, False], [True, False]]
    assert state.log_likelihood.isfinite().tolist() == [True, False]
    assert state.log_probs[1].tolist() == [-torch.inf] * 2
    torch.testing.assert_close(state.smooth(), torch.tensor([[[1.0, 0.0]] * 3, [[0.0, 0.0]] * 3]))


def test_integers_and_numbers_of_another_precision():
    model, data = make("poisson")
    state = model.float().filter_state(N, lag=1)
    for t in range(2):
        state.update(None if t == 0 else data.x[:, t])
        state.smooth()
    counts = model.filter_state(N)
    counts.update(data.x[:, 0].long())
    floats = model.filter_state(N)
    floats.update(data.x[:, 0].float())
    torch.testing.assert_close(counts.log_probs, floats.log_probs)
    assert counts.log_likelihood.dtype == torch.float64


def test_matrix_valued_observations():
    def family(params: Tensor):
        return dist.Normal(params.unflatten(-1, (2, 2)), 1.0).to_event(2)

    emission = nn.AutoregressiveEmission(K, net(K + 8, 4), family, dim=4, order=2)
    model = NeuralHMM(initial=nn.Initial(K), transition=nn.Transition(K), emission=emission)
    data = model.simulate(3, 4, seed=0)
    state = model.filter_state(3)
    for t in range(4):
        state.update(data.x[:, t])
    torch.testing.assert_close(state.log_likelihood.float(), model.log_prob(data).detach())


def test_no_gradients_and_nothing_in_the_parameter_store():
    model, data = make("inputs")
    pyro.clear_param_store()
    state = model.filter_state(N, lag=1)
    assert not any(value.requires_grad for value in feed(state, data, 0))
    state.forecast(1, data.inputs[:, :1])
    assert len(pyro.get_param_store()) == 0


def test_to_and_repr():
    model, data = make("autoregressive")
    state = model.filter_state(N, lag=1)
    feed(state, data, 0)
    feed(state, data, 1)
    assert state.to("cpu") is state
    expected = state.log_probs
    meta = state.to("meta")
    assert meta.log_likelihood.device.type == meta.log_probs.device.type == "meta"
    assert expected.device.type == "cpu"
    assert repr(state) == "FilterState(2 steps, batch_shape=(4,), lag=1)"


def test_a_wrong_update_changes_nothing():
    model, data = make("inputs")
    state = model.filter_state(N)
    feed(state, data, 0)
    before = state.log_probs
    with pytest.raises(ValueError, match="inputs"):
        state.update(data.x[:, 1])
    assert state.log_probs is before
    assert state.num_steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(N)}, r"x: expected a tensor of shape \(4, 2\)"),
        ({"x": [0.0, 1.0]}, r"x: expected a tensor.*got list"),
        ({"x": torch.full((N, D), torch.nan)}, r"x: expected finite numbers.*index \[0, 0\]; pass observed="),
        ({"x": torch.zeros(N, D), "observed": torch.ones(N)}, "observed: expected bool of shape"),
        ({"x": torch.zeros(N, D), "inputs": torch.zeros(C)}, r"inputs: expected shape \(4,\) and then \(C\)"),
        ({"labels": torch.zeros(N)}, "labels: expected int64"),
        ({"labels": torch.full((N,), K)}, "labels: expected states below 3, got 3"),
        ({"allowed": torch.ones(N, K)}, r"allowed: expected bool of shape \(4, 3\), got torch.float32"),
    ],
)
def test_wrong_arguments_of_update(arguments, message):
    model, _ = make("labels")
    with pytest.raises(ValueError, match=message):
        model.filter_state(N).update(**arguments)


def test_wrong_arguments_elsewhere():
    model, data = make("gaussian")
    with pytest.raises(TypeError, match="lag: expected an int"):
        model.filter_state(lag=1.5)
    with pytest.raises(ValueError, match="lag: expected at least 0, got -1"):
        model.filter_state(lag=-1)
    with pytest.raises(ValueError, match="batch_shape: expected at least 1, got 0"):
        model.filter_state(0)
    state = model.filter_state(N)
    with pytest.raises(ValueError, match="smooth: expected at least one update"):
        state.smooth()
    with pytest.raises(ValueError, match="steps: expected an int of at least 1, got 0"):
        state.forecast(0)
    with pytest.raises(ValueError, match="inputs: expected 3 steps"):
        state.forecast(3, data.inputs)
    with pytest.raises(ValueError, match=r"state: expected lag 0, got 1"):
        state.load_state_dict(model.filter_state(N, lag=1).state_dict())
    with pytest.raises(ValueError, match=r"state: expected batch_shape \[4\], got \[\]"):
        state.load_state_dict(model.filter_state().state_dict())
    with pytest.raises(ValueError, match="state: expected the keys"):
        state.load_state_dict({})
    with pytest.raises(ValueError, match="state: expected previous observations"):
        state.load_state_dict(make("autoregressive")[0].filter_state(N).state_dict())


def test_priors_are_refused():
    model = HMM(nn.CategoricalEmission(K, 4))
    model.transition.logits = PyroSample(dist.Normal(torch.zeros(K, K), 1.0).to_event(2))
    with pytest.raises(ValueError, match="without priors, got pyro.nn.PyroSample for transition.logits"):
        model.filter_state()
