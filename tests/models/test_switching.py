import copy
import math
from itertools import product

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.distributions import MultivariateNormal

import pyrohmm
from pyrohmm import MarkovChain, fit_svi
from pyrohmm.data import Sequences
from pyrohmm.infer import initialize_switching
from pyrohmm.infer.importance import importance_log_prob
from pyrohmm.models import SwitchingLDS, SwitchingNLDS, SwitchingSSM, overlap
from pyrohmm.models.evenness import evenness
from pyrohmm.models.isolation import own_parameters
from pyrohmm.nn import Emitter, Initial, NeuralTransition, SwitchingDynamics, Transition
from pyrohmm.nn.switching import raw


def some_model(kind="lds", seed=0, num_states=2, **settings):
    generator = torch.Generator().manual_seed(seed)
    settings = {"hidden": 4, "generator": generator, **settings}
    if kind == "lds":
        return SwitchingLDS(num_states, 2, 3, **settings)
    return SwitchingNLDS(num_states, 2, 3, units=4, emission_units=(4,), **settings)


def some_data(dtype=torch.float32, entries=False, inputs=False):
    """Ragged, a sequence of one step, missing steps, and NaN past the length and where nothing was measured."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 6, 3, generator=generator).to(dtype)
    mask = torch.rand((4, 6, 3) if entries else (4, 6), generator=generator) < 0.7
    mask[1, 0] = True
    lengths = torch.tensor([6, 1, 3, 5])
    valid = torch.arange(6) < lengths.unsqueeze(-1)
    x[~valid] = torch.nan
    x[~mask] = torch.nan
    known = torch.randn(4, 6, 2, generator=generator).to(dtype) if inputs else None
    return Sequences(x, lengths, mask=mask, inputs=known)


MODELS = {
    "linear": lambda: some_model(),
    "one state": lambda: some_model(num_states=1),
    "recurrent": lambda: some_model(recurrent="latent"),
    "recurrent, mean-field": lambda: some_model(recurrent="latent", inference="mean-field"),
    "neural, recurrent by observations": lambda: some_model("nlds", recurrent="observed", inference="right-left"),
    "neural transitions of path and inputs": lambda: some_model(
        recurrent="latent", transition=NeuralTransition(2, context=4, hidden=4), inference="left-right"
    ),
}


@pytest.mark.parametrize("entries", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_bound_and_gradient_equal_those_of_the_enumerated_sequential_program(name, entries):
    model = MODELS[name]().double()
    data = some_data(torch.float64, entries, inputs="inputs" in name)
    found = []
    for elbo, vectorized in ((Trace_ELBO, True), (TraceEnum_ELBO, False)):
        pyro.set_rng_seed(3)
        with own_parameters(model):
            loss = elbo(max_plate_nesting=2).differentiable_loss(model.model, model.guide, data, vectorized=vectorized)
            grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        found.append((loss.detach(), grads))
    torch.testing.assert_close(found[0][0], found[1][0])
    for (parameter, _), one, other in zip(model.named_parameters(), found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=parameter: f"{name}: {text}")
    assert max(float(grad.abs().max()) for grad in found[0][1]) > 1e-3


def exact_log_prob(model, x):
    """log p(x) of a sequence (T, P) of a linear model: a mixture of Gaussians, one for each path of states."""
    A, b = model.dynamics.weight, model.dynamics.bias
    scale, first = (
        torch.nn.functional.softplus(s) + 1e-4 for s in (model.dynamics.raw_scale, model.dynamics.initial_raw_scale)
    )
    C, d = model.emission.net[0].weight, model.emission.net[0].bias
    noise = torch.nn.functional.softplus(model.emission.raw_scale) + 1e-4
    initial, transition = model.initial().log_softmax(-1), model.transition.log_probs()
    T, scores = len(x), []
    for path in product(range(model.num_states), repeat=T):
        mean, cov = [model.dynamics.initial_loc[path[0]]], {(0, 0): first[path[0]].square().diag()}
        score = initial[path[0]]
        for t in range(1, T):
            k = path[t]
            score = score + transition[path[t - 1], k]
            mean.append(A[k] @ mean[-1] + b[k])
            for s in range(t):
                cov[t, s] = A[k] @ cov[t - 1, s]
                cov[s, t] = cov[t, s].mT
            cov[t, t] = A[k] @ cov[t - 1, t - 1] @ A[k].mT + scale[k].square().diag()
        joint = torch.cat([torch.cat([C @ cov[t, s] @ C.mT for s in range(T)], -1) for t in range(T)])
        joint = joint + noise.square().repeat(T).diag()
        loc = torch.cat([C @ m + d for m in mean])
        scores.append(score + MultivariateNormal(loc, joint).log_prob(x.flatten()))
    return torch.stack(scores).logsumexp(0)


def test_importance_sampling_finds_the_exact_likelihood():
    model = some_model().double()
    with torch.no_grad():
        # Paths that a guide near its start proposes well.
        model.dynamics.weight.mul_(0.4)
        model.dynamics.bias.copy_(torch.tensor([[0.5, 0.5], [-0.5, 0.5]]))
        model.dynamics.raw_scale.copy_(raw(torch.full((2, 2), 0.9)))
        model.emission.raw_scale.copy_(raw(torch.full((3,), 1.5)))
        model.combiner.out.weight.mul_(0.1)
        model.combiner.out.bias.copy_(torch.tensor([0.0, 0.0, 1.1, 1.1]))
    data = model.simulate(5, 3, seed=0)
    exact = torch.stack([exact_log_prob(model, x) for x in data.x]).detach()
    found = importance_log_prob(model, data, num_particles=2000, chunk_size=10000, progress=False)
    assert (found.effective_sample_size > 50).all()
    torch.testing.assert_close(found.log_prob, exact, atol=0.1, rtol=0)
    with own_parameters(model), torch.no_grad():
        bound = -Trace_ELBO(num_particles=10).loss(model.model, model.guide, data)
    assert bound < exact.sum() - 0.1


def rotation(angle):
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def two_regimes(seed=0, num_sequences=30, num_steps=60):
    """Two rotations, to the left and to the right, seen in six noisy entries."""
    truth = SwitchingLDS(2, 2, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        truth.dynamics.weight.copy_(torch.stack([0.99 * rotation(0.4), 0.99 * rotation(-0.3)]))
        truth.dynamics.bias.zero_()
        truth.dynamics.raw_scale.copy_(raw(torch.full((2, 2), 0.1)))
        truth.transition.logits.copy_(torch.tensor([[0.96, 0.04], [0.04, 0.96]]).log())
        truth.emission.net[0].weight.normal_(generator=torch.Generator().manual_seed(seed))
        truth.emission.raw_scale.copy_(raw(torch.full((6,), 0.2)))
    return truth.simulate(num_sequences, num_steps, seed=seed)


@pytest.mark.parametrize("kind", ["lds", "nlds"])
def test_finds_two_regimes(kind):
    data = two_regimes()
    x = data.x.clone()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.97
    train = Sequences(x[:20], mask=mask[:20])
    settings = {"generator": torch.Generator().manual_seed(1), "hidden": 16}
    if kind == "lds":
        model = SwitchingLDS(2, 2, 6, **settings)
    else:
        model = SwitchingNLDS(2, 2, 6, units=8, emission_units=(16,), **settings)
    initialize_switching(model, train, restarts=3)
    history = fit_svi(model, train, steps=40, learning_rate=0.01, batch_size=10, progress=False)
    assert sum(history.loss[-10:]) < sum(history.loss[:10]) - 1
    model.align(data.labels[:20], train)
    for part, observed in ((data[:20], mask[:20]), (data[20:], mask[20:])):
        states = model.decode(Sequences(part.x, mask=observed))
        assert (states == part.labels).double().mean() > 0.95


def test_simulation_follows_the_model():
    model = SwitchingLDS(2, 1, 1, recurrent="latent", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Below 0 the first state, which pushes up; above the second, which pushes down.
        model.transition.logits.zero_()
        model.transition.weights.copy_(torch.tensor([[-200.0], [200.0]]))
        model.dynamics.weight.fill_(1.0)
        model.dynamics.bias.copy_(torch.tensor([[1.0], [-1.0]]))
        model.dynamics.raw_scale.fill_(-20.0)
        model.dynamics.initial_loc.copy_(torch.tensor([[0.5], [0.5]]))
        model.dynamics.initial_raw_scale.fill_(-20.0)
        model.emission.net[0].weight.fill_(2.0)
        model.emission.net[0].bias.fill_(1.0)
        model.emission.raw_scale.fill_(-20.0)
    data = model.simulate(3, 5, lengths=torch.tensor([5, 1, 3]), seed=0)
    assert data.labels[0, 1:].tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(data.x[0, :, 0], torch.tensor([2.0, 0.0, 2.0, 0.0, 2.0]), atol=0.05, rtol=0)
    assert data.labels[1, 1:].tolist() == [-1] * 4 and (data.x[1, 1:] == 0).all()


def test_posterior_marginals_and_states():
    model, data = some_model(recurrent="latent", num_states=3), some_data()
    before = torch.get_rng_state()
    one, many = model.posterior(data, seed=0), model.posterior(data, 50, seed=0)
    assert isinstance(one, MarkovChain) and one.batch_shape == (4,) and many.batch_shape == (50, 4)
    assert one.initial_logits.requires_grad
    marginals, states = model.marginals(data, 50), model.decode(data, 50)
    torch.testing.assert_close(marginals, many.marginals.mean(0).detach())
    assert torch.equal(states >= 0, data.valid)
    assert torch.equal(states[data.valid], marginals.argmax(-1)[data.valid])
    assert torch.equal(before, torch.get_rng_state())
    assert model.training and not pyro.get_param_store().keys()


def test_posterior_is_that_given_the_path():
    model, data = some_model(recurrent="latent"), some_data()
    with own_parameters(model):
        trace = pyro.poutine.trace(model.guide).get_trace(data)
        chain = pyrohmm.posterior(pyro.condition(model.model, {"h": trace.nodes["h"]["value"].squeeze(1)}))(data)
        replayed = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=trace)).get_trace(data)
    factor = replayed.nodes["time"]["fn"].log_factor.squeeze(-1)
    potentials = replayed.nodes["time"]["infer"]["pyrohmm_potentials"]
    expected = MarkovChain.from_potentials(*potentials[:3], lengths=data.lengths)
    torch.testing.assert_close(chain["time"].marginals, expected.marginals)
    torch.testing.assert_close(factor, pyrohmm.ops.log_partition(*potentials[:3], lengths=data.lengths))


def test_relabelled_states_keep_the_bound():
    model, data, order = some_model("nlds", recurrent="latent", num_states=3), some_data(), [2, 0, 1]
    marginals = model.marginals(data)
    model.relabel(order)
    torch.testing.assert_close(model.marginals(data), marginals[..., order])
    labels = torch.randint(3, (4, 6), generator=torch.Generator().manual_seed(0))
    before = overlap(model.decode(data), labels, 3, 3)
    permutation = model.align(labels, data)
    after = overlap(model.decode(data), labels, 3, 3)
    torch.testing.assert_close(after, before[permutation])
    assert after.diagonal().sum() >= before.diagonal().sum()


@pytest.mark.parametrize("recurrent", [None, "latent"])
def test_all_parameters_are_trained(recurrent):
    model = SwitchingNLDS(2, 2, 6, recurrent=recurrent, generator=torch.Generator().manual_seed(0))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit_svi(model, two_regimes(num_sequences=4, num_steps=10), steps=3, progress=False)
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_minibatches_have_the_scale_of_the_set():
    model, data = some_model(), some_data()
    path = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))

    def log_prob(rows):
        program = pyro.condition(model.model, {"h": path[rows]})
        with own_parameters(model):
            return pyro.poutine.trace(program).get_trace(data[rows]).log_prob_sum()

    torch.testing.assert_close(sum(log_prob([n]) for n in range(4)) / 4, log_prob([0, 1, 2, 3]))


def test_saved_and_loaded(tmp_path):
    model, other, data = some_model(evenness=1.0), some_model(seed=1), some_data()
    initialize_switching(model, data, restarts=1)
    model.runs.fill_(7)
    model.save(tmp_path / "model.pt")
    other.load(tmp_path / "model.pt")
    assert int(other.runs) == 7
    torch.testing.assert_close(other.marginals(data), model.marginals(data))
    copied = copy.deepcopy(model)
    copied.load_state_dict(other.state_dict())
    torch.testing.assert_close(copied.marginals(data), model.marginals(data))
    with pytest.raises(ValueError, match="path: expected the parameters of a model like this one"):
        some_model(num_states=3).load(tmp_path / "model.pt")


def test_weight_of_evenness_falls_with_the_runs():
    model, data = some_model(evenness=2.0, evenness_runs=4), some_data()
    weights, sizes = [], []
    with own_parameters(model):
        for _ in range(6):
            trace = pyro.poutine.trace(model.guide).get_trace(data)
            trace = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=trace)).get_trace(data)
            node = trace.nodes["evenness"]
            assert node["fn"].log_factor.shape == (4, 1)
            potentials = trace.nodes["time"]["infer"]["pyrohmm_potentials"]
            chain = MarkovChain.from_potentials(*potentials[:3], lengths=data.lengths)
            weights.append(float((node["fn"].log_factor.sum() / evenness(chain).sum()).detach()))
            sizes.append(int(model.runs))
        assert weights == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0, 0.0], abs=1e-6)
        assert sizes == [1, 2, 3, 4, 5, 6]
        model.eval()
        trace = pyro.poutine.trace(model.guide).get_trace(data)
        replayed = pyro.poutine.trace(pyro.poutine.replay(model.model, trace=trace)).get_trace(data)
    assert "evenness" not in replayed.nodes and int(model.runs) == 6
    model.train()
    model.posterior(data)
    assert int(model.runs) == 6


def test_evenness_makes_states_even():
    data = two_regimes(num_sequences=6, num_steps=10)
    found = []
    for weight in (0.0, 5.0):
        model = some_model_of_six(weight)
        fit_svi(model, data, steps=30, learning_rate=0.03, progress=False)
        found.append(float(evenness(model.posterior(data, 20, seed=0)).mean().detach()))
    assert found[1] > found[0]


def some_model_of_six(weight):
    generator = torch.Generator().manual_seed(0)
    model = SwitchingLDS(2, 2, 6, hidden=4, evenness=weight, evenness_runs=1000, generator=generator)
    with torch.no_grad():
        model.initial.logits.copy_(torch.tensor([4.0, 0.0]))
        model.transition.logits.copy_(torch.tensor([[4.0, 0.0], [4.0, 0.0]]))
    return model


def test_parts_and_errors():
    dynamics, emission = SwitchingDynamics(2, 2), Emitter(2, 3)
    model = SwitchingSSM(dynamics, emission, Initial(2), Transition(2), hidden=4)
    assert model.num_states == 2
    assert model.posterior(Sequences(torch.ones(2, 4, 3)), 3).batch_shape == (3, 2)
    for arguments, match in (
        ({"emission": Emitter(3, 3)}, "emission: expected one of vectors of size 2, like the dynamics, got 3"),
        ({"transition": Transition(3)}, "transition: expected 2 states, like the dynamics, got 3"),
        ({"recurrent": "path"}, "recurrent: expected None, 'latent' or 'observed', got 'path'"),
        ({"inference": "backward"}, "inference: expected one of"),
        ({"evenness": -1.0}, "evenness: expected a weight of at least 0, got -1.0"),
        ({"evenness_runs": 0}, "evenness_runs: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            SwitchingSSM(**{"dynamics": dynamics, "emission": emission, "hidden": 4, **arguments})
    with pytest.raises(ValueError, match=r"expected x of shape \(N, T, \*\(3,\)\)"):
        model.posterior(Sequences(torch.ones(2, 4, 5)))
    with pytest.raises(TypeError, match="expected pyrohmm.data.Sequences, got Tensor"):
        model.path(torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match="Let a guide sample 'h'"):
        model(Sequences(torch.ones(2, 4, 3)))
    with pytest.raises(ValueError, match="num_steps: expected an int of at least 1"):
        model.simulate(2, 0)
    with pytest.raises(ValueError, match="lengths: expected shape"):
        model.simulate(2, 3, lengths=torch.tensor([1]))
