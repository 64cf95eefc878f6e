import copy
import io
from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

import pyrohmm
from pyrohmm import nn, ops
from pyrohmm.data import Sequences
from pyrohmm.models import HMM, NeuralHMM
from tests.models.cases import CASES, K, N, T, V, make, net

D = 2


def empty_guide(*args: object) -> None:
    pass


def loss_and_gradients(elbo, model: HMM, data: Sequences, *, vectorized: bool) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    pyro.clear_param_store()
    loss = elbo.loss_and_grads(lambda data: model.model(data, vectorized=vectorized), model.guide, data)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_the_body_runs_twice(name):
    """A third run would be the loop's, to see whether a step depends on older states: a third more work."""
    model, data = make(name)
    runs = []
    model.emission.register_forward_pre_hook(lambda *_: runs.append(1))
    poutine.trace(model.model).get_trace(data)
    assert len(runs) == 2


@pytest.mark.parametrize("name", CASES)
def test_collapsed_elbo_and_gradient_equal_the_sequential_ones(name):
    model, data = make(name)
    loss, gradients = loss_and_gradients(Trace_ELBO(), model, data, vectorized=True)
    plain_loss, plain_gradients = loss_and_gradients(TraceEnum_ELBO(max_plate_nesting=2), model, data, vectorized=False)
    assert loss == pytest.approx(plain_loss, abs=1e-9)
    assert gradients.keys() == plain_gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[parameter], rtol=1e-8, atol=1e-10)
        assert gradient.abs().sum() > 0, parameter


def by_enumeration(model: HMM, data: Sequences, i: int) -> Tensor:
    """log p of the i-th sequence from the parts alone: a sum over all paths, no Pyro program."""
    length, inputs = int(data.lengths[i]), data.inputs[i]
    law, paths = model.emission, []
    for path in product(range(K), repeat=length):
        z = torch.tensor(path)
        total = model.initial(inputs[0]).log_softmax(-1)[z[0]]
        for t in range(length):
            if t > 0:
                total = total + model.transition(z[t - 1], inputs[t]).log_softmax(-1)[z[t]]
            if model.use_labels and data.labels[i, t] not in (-1, z[t]):
                total = total - torch.inf
            if data.mask[i, t]:
                start = torch.zeros_like(data.x[i, 0]) if data.x.is_floating_point() else torch.tensor(-1)
                before = [data.x[i, t - lag] if t >= lag else start for lag in range(1, law.order + 1)]
                previous = torch.cat([value.reshape(-1) for value in before]) if before else None
                total = total + law(z[t], inputs[t], previous).log_prob(data.x[i, t])
        paths.append(total)
    return torch.stack(paths).logsumexp(0)


@pytest.mark.parametrize("name", CASES)
def test_log_prob_is_the_sum_over_all_paths(name):
    model, data = make(name)
    expected = torch.stack([by_enumeration(model, data, i) for i in range(N)])
    torch.testing.assert_close(model.log_prob(data), expected, rtol=1e-10, atol=1e-10)


def test_log_prob_and_posterior_equal_those_of_the_distribution():
    model, data = make("gaussian")
    chain = pyrohmm.MarkovChain(model.initial(), model.transition.matrix(), lengths=data.lengths, num_steps=T)
    hmm = pyrohmm.HiddenMarkovModel(chain, model.emission(torch.arange(K)))
    torch.testing.assert_close(model.log_prob(data), hmm.log_prob(data.x, data.mask))
    posterior, expected = model.posterior(data), hmm.posterior(data.x, data.mask)
    assert posterior.batch_shape == (N,)
    torch.testing.assert_close(posterior.marginals, expected.marginals)
    assert (posterior.viterbi().states == expected.viterbi().states).all()


@pytest.mark.parametrize("name", [name for name in CASES if make(name)[0].emission.closed_form])
def test_a_step_of_em_on_the_emission_is_uphill(name):
    model, data = make(name)
    data = data.as_whole()
    steps = data.observed.flatten()
    # Newest first, zeros before the start.
    lags = [torch.nn.functional.pad(data.x, (0, 0, lag, 0))[:, :T] for lag in range(1, model.emission.order + 1)]
    previous = torch.cat(lags, -1) if lags else None
    known = [None if value is None else value.flatten(0, 1)[steps] for value in (data.inputs, previous)]
    values = []
    for _ in range(6):
        values.append((model.log_prob(data).sum() + model.emission.log_prior()).item())
        weights = model.posterior(data).marginals.detach().flatten(0, 1)[steps]
        model.emission.maximize(model.emission.expected_statistics(data.x.flatten(0, 1)[steps], weights, *known))
    assert values[1] > values[0]
    assert all(new >= old - 1e-9 * abs(old) for old, new in pairwise(values))


@pytest.mark.parametrize("name", CASES)
def test_posterior_has_one_state_for_each_step(name):
    model, data = make(name)
    chain = model.posterior(data)
    torch.testing.assert_close(chain.marginals.sum((1, 2)), data.lengths.double())
    assert (chain.viterbi().states[~data.valid] == -1).all()


def test_log_prob_is_differentiable_and_not_scaled_by_the_minibatch():
    model, data = make("categorical")
    whole = data.as_whole()
    torch.testing.assert_close(model.log_prob(data), model.log_prob(whole))
    model.log_prob(data).sum().backward()
    assert model.emission.logits.grad.abs().sum() > 0


def test_minibatch_is_scaled_to_the_whole_set():
    model, data = make("categorical")
    loss = Trace_ELBO().loss(model, model.guide, data)
    assert loss == pytest.approx(-2.5 * model.log_prob(data).sum().item())


def test_missing_steps_and_padding_are_not_read():
    model, data = make("gaussian")
    other = Sequences(torch.where(data.observed[..., None], data.x, 99.0), data.lengths, data.inputs, mask=data.mask)
    # Sequences puts zeros there; the program itself must not read them either.
    object.__setattr__(other, "x", torch.where(data.observed[..., None], data.x, 99.0))
    torch.testing.assert_close(model.log_prob(other), model.log_prob(data))


def test_labels_restrict_the_path():
    model, data = make("labels")
    known = data.labels >= 0
    assert (model.posterior(data).marginals[known][:, 1] - 1).abs().max() < 1e-12
    model.use_labels = False
    assert model.posterior(data).marginals[known][:, 1].max() < 1


def test_all_labels_known_is_the_joint_probability():
    model, data = make("labels")
    data = data.as_whole()
    states = model.posterior(data).viterbi().states
    labelled = Sequences(data.x, data.lengths, labels=states, mask=data.mask)
    joint = model.log_prob(labelled)
    model.use_labels = False
    expected = model.log_prob(labelled) + model.posterior(labelled).log_prob(states)
    torch.testing.assert_close(joint, expected)


def test_impossible_sequence():
    model, data = make("labels")
    with torch.no_grad():
        model.transition.mask = torch.eye(K, dtype=torch.bool)
    labels = data.labels.clone()
    labels[0, :2] = torch.tensor([0, 1])
    data = Sequences(data.x, data.lengths, labels=labels)
    assert model.log_prob(data)[0] == -torch.inf
    assert model.log_prob(data)[1:].isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_simulate_gives_data_of_the_model(name):
    model, data = make(name)
    lengths = torch.tensor([6, 1, 4])
    inputs = torch.randn(3, 6, 2, dtype=torch.float64).round()
    simulated = model.simulate(3, 6, lengths=lengths, inputs=inputs, seed=1)
    assert simulated.x.shape == (3, 6, *data.event_shape)
    assert simulated.labels.dtype == torch.int64
    assert ((simulated.labels >= 0) == simulated.valid).all()
    assert (simulated.inputs[0] == inputs[0]).all()
    assert model.log_prob(simulated).isfinite().all()


def test_simulation_follows_the_law():
    # The last observation is copied where the state is 1, inverted where it is 0: nothing is left to chance but z.
    emission = nn.AutoregressiveEmission(2, torch.nn.Linear(3, 1), "bernoulli", dim=1)
    model = NeuralHMM(initial=nn.Initial(2), transition=nn.Transition(2), emission=emission)
    with torch.no_grad():
        model.initial.logits.copy_(torch.tensor([0.3, 0.7]).log())
        model.transition.logits.copy_(torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log())

    class Copy(torch.nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            copied = features[..., 2:] * 2 - 1
            return 100 * torch.where(features[..., 1:2] == 1, copied, -copied)

    emission.net = Copy()
    data = model.simulate(4000, 4, seed=0)
    z, x = data.labels, data.x[..., 0]
    assert (z[:, 0] == 1).double().mean().item() == pytest.approx(0.7, abs=0.03)
    for state, stay in ((0, 0.6), (1, 0.9)):
        following = z[:, 1:][z[:, :-1] == state]
        assert (following == state).double().mean().item() == pytest.approx(stay, abs=0.03)
    before = torch.cat([torch.zeros(4000, 1), x[:, :-1]], 1)
    assert (x == torch.where(z == 1, before, 1 - before)).all()


def test_simulate_seed_leaves_the_random_state_alone():
    model, _ = make("categorical")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model.simulate(3, 4, seed=1)
    assert (torch.rand(3) == expected).all()
    assert (first.x == model.simulate(3, 4, seed=1).x).all()
    assert not (first.x == model.simulate(3, 4, seed=2).x).all()
    torch.manual_seed(5)
    unseeded = model.simulate(3, 4)
    torch.manual_seed(5)
    assert (unseeded.x == model.simulate(3, 4).x).all()


def test_parameter_store_stays_empty_and_is_not_read():
    model, data = make("categorical")
    expected = model.log_prob(data)
    with torch.no_grad():
        other = copy.deepcopy(model)
        other.emission.logits.add_(torch.randn_like(other.emission.logits))
    other(data)  # as Pyro does: this one's parameters are in the store now
    assert "emission.logits" in pyro.get_param_store()
    torch.testing.assert_close(model.log_prob(data), expected, rtol=0, atol=0)
    model.posterior(data)
    model.simulate(2, 3)
    assert pyro.get_param_store()._params["emission.logits"] is other.emission.logits
    pyro.clear_param_store()
    for use in (model.log_prob, model.posterior, lambda data: model.simulate(2, 3)):
        use(data)
        assert len(pyro.get_param_store()) == 0


def test_frozen_parameters_stay_frozen():
    model, data = make("categorical")
    model.emission.logits.requires_grad_(False)
    model.log_prob(data)
    assert not model.emission.logits.requires_grad
    assert model.initial.logits.requires_grad
    assert model.num_parameters == K + K * K


@pytest.mark.parametrize("name", CASES)
def test_state_dict_and_pickle_round_trip(name):
    model, data = make(name, seed=0)
    other, _ = make(name, seed=1)
    expected = model.log_prob(data)
    assert not torch.allclose(other.log_prob(data), expected)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.log_prob(data), expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert sum(value.numel() for value in torch.load(io.BytesIO(buffer.getvalue())).values()) >= model.num_parameters


def test_whole_model_can_be_saved():
    model, data = make("embedded")
    expected = model.log_prob(data)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    torch.testing.assert_close(loaded.log_prob(data), expected)


def test_to_dtype():
    model, data = make("gaussian")
    expected = model.log_prob(data)
    actual = model.float().log_prob(data.to(dtype=torch.float32))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


class RowPriors(PyroModule):
    """A guide that puts every row at its own place."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.randn(K, K, dtype=torch.float64))

    def forward(self, data: Sequences) -> None:
        pyro.sample("transition.logits", dist.Delta(self.loc, event_dim=2))


def with_prior(guide=None) -> tuple[HMM, Sequences]:
    _, data = make("categorical")
    model = HMM(nn.CategoricalEmission(K, 4), guide=guide).double()
    zero = torch.zeros((), dtype=torch.float64)
    model.transition.logits = PyroSample(dist.Normal(zero, 1.0).expand([K, K]).to_event(2))
    return model, data


def test_priors_are_sampled_once_outside_of_the_plate():
    model, data = with_prior()
    site = poutine.trace(model).get_trace(data).nodes["transition.logits"]
    assert site["value"].shape == (K, K)
    assert site["scale"] == 1.0


@pytest.mark.parametrize("in_plain_function", [False, True])
def test_given_guide_is_used(in_plain_function):
    guide = RowPriors()
    model, data = with_prior((lambda data: guide(data)) if in_plain_function else guide)
    plain = HMM(model.emission, model.initial).double()
    with torch.no_grad():
        plain.transition.logits.copy_(guide.loc)
    torch.testing.assert_close(model.log_prob(data), plain.log_prob(data))
    torch.testing.assert_close(model.posterior(data).marginals, plain.posterior(data).marginals)
    assert (model.simulate(3, 4, seed=0).x == plain.simulate(3, 4, seed=0).x).all()


def test_posterior_without_the_guide_that_a_prior_needs():
    model, data = with_prior()
    with pytest.raises(ValueError, match=r"transition\.logits"):
        model.posterior(data)


def test_autoguide_and_svi_by_hand():
    model, data = with_prior()
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    losses = [svi.step(data) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    chain = pyrohmm.posterior(model, guide)(data)["time"]
    assert chain.batch_shape == (N,)


def test_defaults_and_generator():
    models = [HMM(nn.BernoulliEmission(4, D), generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert (models[0].transition.logits == models[1].transition.logits).all()
    assert (models[0].initial.logits == models[1].initial.logits).all()
    assert models[0].num_states == 4
    assert models[0].num_parameters == 4 + 16 + 8


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: HMM(dist.Normal(0, 1)), TypeError, "emission: expected a torch.nn.Module"),
        (lambda: HMM(torch.nn.Linear(1, 1)), TypeError, "emission: expected an int attribute num_states"),
        (lambda: HMM(nn.BernoulliEmission(3, 2), nn.Initial(2)), ValueError, "initial: expected 3 states"),
        (lambda: HMM(nn.BernoulliEmission(3, 2), None, nn.Transition(2)), ValueError, "transition: expected 3 states"),
        (lambda: HMM(nn.BernoulliEmission(3, 2), guide=3), TypeError, "guide: expected a callable"),
    ],
)
def test_wrong_parts(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_wrong_data():
    model, data = make("labels")
    with pytest.raises(ValueError, match=r"expected x of shape \(N, T, \*\(2,\)\)"):
        model.log_prob(Sequences(torch.zeros(2, 3, 5)))
    with pytest.raises(ValueError, match="labels below 3"):
        model.log_prob(Sequences(torch.zeros(2, 3, D), labels=torch.full((2, 3), 3)))
    needs_inputs, _ = make("inputs")
    with pytest.raises(ValueError, match="inputs"):
        needs_inputs.log_prob(Sequences(data.x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_sequences": 0, "num_steps": 2}, "num_sequences"),
        ({"num_sequences": 2, "num_steps": 0}, "num_steps"),
        ({"num_sequences": 2, "num_steps": 2, "lengths": torch.tensor([1])}, "lengths"),
        ({"num_sequences": 2, "num_steps": 2, "lengths": torch.tensor([1, 3])}, "lengths"),
        ({"num_sequences": 2, "num_steps": 2, "inputs": torch.zeros(2, 3, 1)}, "inputs"),
    ],
)
def test_wrong_simulation(arguments, message):
    model, _ = make("categorical")
    with pytest.raises(ValueError, match=message):
        model.simulate(**arguments)


def test_matrix_valued_observations():
    # A matrix-valued observation by a family of one's own, with a memory of one step.
    def family(params: Tensor):
        return dist.Normal(params.unflatten(-1, (2, 2)), 1.0).to_event(2)

    emission = nn.AutoregressiveEmission(K, net(K + 4, 4), family, dim=4)
    model = NeuralHMM(initial=nn.Initial(K), transition=nn.Transition(K), emission=emission)
    data = model.simulate(3, 4, seed=0)
    assert data.x.shape == (3, 4, 2, 2)
    assert model.log_prob(data).shape == (3,)


def test_latent_parameters_come_from_the_fitted_guide():
    model = HMM(nn.CategoricalEmission(2, 3, generator=torch.Generator().manual_seed(0)))
    model.transition.logits = PyroSample(dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    data = Sequences.from_list([[0, 0, 2, 2], [2, 0]])
    for method in (model.log_prob, model.posterior):
        with pytest.raises(ValueError, match="'transition.logits' is not fixed: pass a guide"):
            method(data)
    guide = AutoDelta(model)
    pyrohmm.fit_svi(model, data, guide, steps=3, progress=False)
    fixed = HMM(model.emission, initial=model.initial)
    with torch.no_grad():
        fixed.transition.logits.copy_(guide.median()["transition.logits"])
        torch.testing.assert_close(model.log_prob(data, guide), fixed.log_prob(data))
        torch.testing.assert_close(model.posterior(data, guide).marginals, fixed.posterior(data).marginals)
    assert model.simulate(3, 4, seed=0, guide=guide).x.shape == (3, 4)


def test_what_is_no_sequences():
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor; see Sequences.from_list"):
        HMM(nn.CategoricalEmission(2, 3)).log_prob(torch.zeros(2, 3))


# Relabelling

ORDER = torch.tensor([2, 0, 1])


def relabelled(data: Sequences) -> Sequences:
    """The data, their labels by the new numbers of the states."""
    labels = torch.where(data.labels < 0, -1, ORDER.argsort()[data.labels.clamp(min=0)])
    return data._replace({"labels": labels})


@pytest.mark.parametrize("name", CASES)
def test_relabel_permutes_the_posterior_and_nothing_else(name):
    model, data = make(name)
    log_prob, posterior = model.log_prob(data).detach(), model.posterior(data)
    marginals, transitions = posterior.marginals.detach(), posterior.transition_marginals.detach()
    model.relabel(ORDER)
    data = relabelled(data)
    torch.testing.assert_close(model.log_prob(data), log_prob, rtol=1e-10, atol=1e-10)
    posterior = model.posterior(data)
    torch.testing.assert_close(posterior.marginals, marginals[..., ORDER], rtol=1e-10, atol=1e-10)
    expected = transitions[..., ORDER[:, None], ORDER]
    torch.testing.assert_close(posterior.transition_marginals, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_a_relabelled_model_is_the_same_program_in_both_forms_and_is_saved(name):
    model, data = make(name)
    model.relabel(ORDER)
    loss, gradients = loss_and_gradients(Trace_ELBO(), model, data, vectorized=True)
    plain_loss, plain_gradients = loss_and_gradients(TraceEnum_ELBO(max_plate_nesting=2), model, data, vectorized=False)
    assert loss == pytest.approx(plain_loss, abs=1e-9)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[parameter], rtol=1e-8, atol=1e-10)
    other, _ = make(name, seed=1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.log_prob(data), model.log_prob(data), rtol=0, atol=0)
    assert model.simulate(3, 4, inputs=torch.zeros(3, 4, 2, dtype=torch.float64), seed=0).x.shape[:2] == (3, 4)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("labels", "left to right")])
def test_align_undoes_relabel(name):
    model, data = make(name)
    # States that differ, so that there is something to tell them apart by.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    other = copy.deepcopy(model)
    posterior = model.posterior(data)
    other.relabel(ORDER)
    for reference in (model, posterior, posterior.viterbi().states):
        again = copy.deepcopy(other)
        if isinstance(reference, Tensor) and len(reference.unique()) < K + 1:
            continue  # a state that is never decoded cannot be told from labels
        permutation = again.align(reference, data)
        assert torch.equal(ORDER[permutation], torch.arange(K))
        torch.testing.assert_close(again.posterior(data).marginals, posterior.marginals)


def test_align_with_fewer_and_with_more_states():
    probs = torch.eye(3) * 8 + 1
    model = HMM(nn.CategoricalEmission(3, 3, probs=probs))
    data = Sequences.from_list([[2, 2, 2, 0, 0, 0, 1, 1]])
    permutation = model.align(torch.tensor([[0, 0, 0, -1, -1, -1, 1, 1]]), data)
    assert permutation.tolist() == [2, 1, 0]
    small = HMM(nn.CategoricalEmission(2, 3))
    with pytest.raises(ValueError, match="at least as many states as in the reference"):
        small.align(model, data)


class Own(PyroModule):
    """A part of one's own, as little as there must be."""

    num_states = K

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        return torch.zeros(K)


def test_relabel_refuses_before_it_changes_anything():
    model, _ = with_prior()
    before = model.initial.logits.clone()
    with pytest.raises(ValueError, match="relabel: expected parameters without priors, got PyroSample for transition"):
        model.relabel(ORDER)
    with pytest.raises(ValueError, match="permutation: expected each of 0, ..., 2 once"):
        make("poisson")[0].relabel([0, 1])
    own = HMM(nn.CategoricalEmission(K, 4), initial=Own())
    with pytest.raises(TypeError, match="initial: expected a method relabel"):
        own.relabel(ORDER)
    assert torch.equal(model.initial.logits, before)


# Free parameters


def dimension_of_the_family(model: HMM) -> int:
    """In how many directions the probabilities of a model of symbols can move: the rank of their Jacobian."""
    states, parameters = torch.arange(model.num_states), list(model.parameters())
    logits = model.initial(), model.transition(states), model.emission(states).logits
    probabilities = torch.cat([table.softmax(-1).flatten() for table in logits])
    rows = []
    for probability in probabilities:
        gradients = torch.autograd.grad(probability, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return int(torch.linalg.matrix_rank(torch.stack(rows)))


@pytest.mark.parametrize(
    "model",
    [
        HMM(nn.CategoricalEmission(K, V)),
        HMM(nn.CategoricalEmission(K, V), nn.Initial(K, mask=torch.tensor([True, False, True]))),
        HMM(nn.CategoricalEmission(K, V), transition=nn.Transition(K, torch.ones(K, K).triu().bool())),
        HMM(nn.CategoricalEmission(1, V)),
    ],
)
def test_free_parameters_are_the_dimension_of_the_family(model):
    assert model.double().num_free_parameters == dimension_of_the_family(model)


def test_frozen_parameters_are_not_free():
    model = HMM(nn.CategoricalEmission(K, V))
    model.transition.logits.requires_grad_(False)
    assert model.num_free_parameters == (K - 1) + K * (V - 1)
    model.requires_grad_(False)
    assert model.num_free_parameters == 0


def test_free_parameters_of_neural_parts_all_count():
    for name in ("embedded", "inputs"):
        model, _ = make(name)
        table = 1 if name == "embedded" else 0  # the initial law is a table of K logits, one of them not free
        assert model.num_free_parameters == model.num_parameters - table


def test_a_part_of_ones_own_counts_in_full_and_what_is_shared_counts_once():
    class Own(PyroModule):
        num_states = K

        def __init__(self, net: torch.nn.Module):
            super().__init__()
            self.net = net

        def forward(self, inputs: Tensor | None = None) -> Tensor:
            return self.net(torch.zeros(1))

    net = torch.nn.Linear(1, K)
    emission = nn.NeuralEmission(K, torch.nn.Linear(K, 4), "categorical")
    emission.extra = net
    model = HMM(emission, Own(net))
    assert model.num_free_parameters == 2 * K + (4 * K + 4) + K * (K - 1)


@pytest.mark.parametrize("name", CASES)
def test_the_law_of_each_observation_in_each_state(name):
    model, data = make(name)
    law = model.emission_law(data)
    assert law.event_shape == model.emission.event_shape
    log_prob = law.log_prob(data.x).movedim(0, -1)
    model.use_labels = False
    expected = model.potentials(data).observation
    seen = data.observed
    torch.testing.assert_close(log_prob.expand(N, T, K)[seen], expected.expand(N, T, K)[seen])
    assert not list(pyro.get_param_store())


def test_the_law_of_observations_needs_parameters_with_values():
    model, data = make("poisson")
    model.emission.log_rate = PyroSample(dist.Normal(0.0, 1.0).expand([K, D]).to_event(2))
    with pytest.raises(
        ValueError, match="model: expected parameters without PyroSample priors, got .'emission.log_rate"
    ):
        model.emission_law(data)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("extra", ["nothing", "allowed", "entries"])
def test_potentials_are_those_of_the_program(name, extra):
    model, data = make(name)
    generator = torch.Generator().manual_seed(3)
    if extra == "allowed":
        allowed = torch.rand(*data.x.shape[:2], K, generator=generator) < 0.5
        allowed[..., 1] = True
        data = Sequences(data.x, data.lengths, data.inputs, data.labels, data.mask, allowed=allowed)
    if extra == "entries":
        if not data.event_shape:
            pytest.skip("a symbol has no entries")
        entries = torch.rand(data.x.shape, generator=generator) < 0.7
        poisoned = torch.where(entries, data.x, torch.nan)
        data = Sequences(poisoned, data.lengths, data.inputs, data.labels, mask=entries)
    chain = model.posterior(data)
    log_z = ops.log_partition(*model.potentials(data), lengths=data.lengths)
    torch.testing.assert_close(log_z, model.log_prob(data))
    marginals = ops.smooth(*model.potentials(data), lengths=data.lengths).state_marginals
    torch.testing.assert_close(marginals, chain.marginals)
    assert log_z.isfinite().all()
    if extra == "allowed":
        assert (marginals[data.valid & ~data.allowed[..., 0]][:, 0] == 0).all()
    # The plain sequential program says the same.
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=2)
    flat = data.as_whole()
    with pyro.poutine.block(), torch.no_grad(), pyro.get_param_store().scope():
        loss = elbo.loss(pyro.infer.config_enumerate(lambda d: model(d, vectorized=False)), lambda d: None, flat)
    expected = (log_z.sum() + model.log_prior()).detach()
    torch.testing.assert_close(torch.tensor(-loss, dtype=torch.float64), expected)


def test_priors_of_parts_are_a_factor_of_the_program():
    model, data = make("categorical")
    model.emission = nn.CategoricalEmission(3, 4, prior=dist.Dirichlet(2 * torch.ones(4))).double()
    data = data.as_whole()
    trace = pyro.poutine.trace(model).get_trace(data)
    trace.compute_log_prob()
    assert trace.nodes["prior"]["log_prob_sum"].item() == pytest.approx(model.log_prior().item())
    total = model.log_prob(data).sum() + model.log_prior()
    torch.testing.assert_close(trace.log_prob_sum(), total)


def test_allowed_of_another_number_of_states():
    model, data = make("categorical")
    data = Sequences(data.x, data.lengths, allowed=torch.ones(*data.x.shape, 5) > 0)
    with pytest.raises(ValueError, match=r"data: expected allowed of shape \(N, T, 3\), got \(4, 4, 5\)"):
        model.log_prob(data)
