import copy
import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyrohmm import fit_svi
from pyrohmm.data import Sequences
from pyrohmm.models import DeepMarkovModel
from pyrohmm.nn import Emitter, GaussianTransition

INFERENCES = ["mean-field", "left-right", "right-left", "both"]


def some_model(inference="right-left", family="bernoulli", seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    emission = Emitter(2, 3, (5,), family, generator=generator)
    model = DeepMarkovModel(emission, inference=inference, hidden=4, generator=generator, **kwargs)
    with torch.no_grad():
        for parameter in model.flows.parameters():  # not the identity
            parameter.normal_(0, 0.3, generator=generator)
    return model


def some_data(num_steps=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.bernoulli(torch.full((4, num_steps, 3), 0.5), generator=generator).to(dtype)
    return Sequences(x, torch.tensor([num_steps, 1, min(3, num_steps), num_steps]))


def linear_gaussian(num_sequences=20, num_steps=5):
    """A model with linear parts, data from it, and the exact log-likelihood of each sequence by Kalman filtering."""
    W, scale = torch.tensor([[0.9, 0.3], [-0.3, 0.8]]), 0.4
    C = torch.tensor([[1.0, 0.0], [0.5, 1.0], [-1.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    model = DeepMarkovModel(
        Emitter(2, 3, family="gaussian", generator=generator),
        GaussianTransition(2, scale=scale, generator=generator),
        hidden=16,
        generator=generator,
    )
    with torch.no_grad():
        model.transition.net.weight.copy_(W)
        model.transition.initial.copy_(torch.tensor([1.0, -1.0]))
        model.emission.net[0].weight.copy_(C)
        model.emission.net[0].bias.zero_()
        noise = model.emission(torch.zeros(2)).base_dist.scale.double()
    for part in (model.transition, model.emission):
        part.requires_grad_(False)
    # Pyro's first observation comes after a transition from the initial vector, which is known here.
    kalman = dist.GaussianHMM(
        dist.Normal(model.transition.initial.double(), 1e-4).to_event(1),
        W.mT.double(),
        dist.Normal(torch.zeros(2).double(), scale).to_event(1),
        C.mT.double(),
        dist.Normal(torch.zeros(3).double(), noise).to_event(1),
        duration=num_steps,
    )
    data = model.simulate(num_sequences, num_steps, seed=0)
    return model, data, kalman.log_prob(data.x.double())


@pytest.mark.parametrize("inference", INFERENCES)
def test_linear_gaussian_likelihood_by_importance_sampling(inference):
    """Weights of the programs' own densities, from a guide that has learned nothing, average to the exact one."""
    parts, data, exact = linear_gaussian(5, 2)
    model = DeepMarkovModel(
        parts.emission,
        parts.transition,
        inference=inference,
        hidden=4,
        num_flows=1,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model.combiner.out.bias[2:] = 1.0  # wide, so that no weight is far above the others
        h = model.posterior(data).sample((50_000,))
        replayed = poutine.trace(poutine.condition(model.model, {"h": h})).get_trace(data)
        replayed.compute_log_prob()
        weights = sum(replayed.nodes[name]["log_prob"] for name in "hx") - model.posterior(data).log_prob(h)
    estimate = weights.logsumexp(0) - torch.tensor(50_000.0).log()
    assert torch.allclose(estimate.double(), exact, atol=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["right-left", "both"])
def test_linear_gaussian_bound_approaches_the_exact_likelihood(inference):
    model, data, exact = linear_gaussian()
    if inference == "both":
        model = DeepMarkovModel(model.emission, model.transition, inference="both", hidden=8)
    start = model.bound(data, 50).detach()
    fit_svi(model, data, steps=600, learning_rate=0.02, schedule="cosine", loss=TraceMeanField_ELBO(), progress=False)
    gap = (exact - model.bound(data, 200).detach()).mean()
    assert (exact - start).mean() > 10 * gap
    assert -0.02 < gap < 0.3  # nats a sequence of 15 numbers


@pytest.mark.parametrize("inference", INFERENCES)
@pytest.mark.parametrize("num_flows", [0, 1])
def test_bound_is_the_elbo_of_the_programs(inference, num_flows):
    model, data = some_model(inference, num_flows=num_flows), some_data()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = poutine.trace(model.guide).get_trace(data)
        replayed = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(data)
        replayed.compute_log_prob()
        torch.manual_seed(0)
        bound = model.bound(data)
    h = guide.nodes["h"]["value"]
    assert h.shape == (4, 6, 2)
    assert bound.shape == (4,)
    assert bound.sum().item() == pytest.approx((replayed.log_prob_sum() - guide.log_prob_sum()).item(), rel=1e-5)
    # By hand, of the longest sequence alone.
    with torch.no_grad():
        state, total = model.transition.initial, 0.0
        for t in range(6):
            total += model.transition(state).log_prob(h[0, t])
            state = h[0, t]
        each = dist.Bernoulli(logits=model.emission.net(h[0])).log_prob(data.x[0])
    assert replayed.nodes["x"]["log_prob"][0].item() == pytest.approx(each.sum().item(), rel=1e-5)
    assert replayed.nodes["h"]["log_prob"][0].item() == pytest.approx(total.item(), rel=1e-4)


def test_flows_start_at_the_identity():
    paths = []
    for num_flows in (0, 2):
        generator = torch.Generator().manual_seed(0)
        model = DeepMarkovModel(Emitter(2, 3, generator=generator), hidden=4, num_flows=num_flows, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            paths.append(poutine.trace(model.guide).get_trace(some_data()).nodes["h"])
    torch.testing.assert_close(*(path["value"] for path in paths))
    torch.testing.assert_close(*(path["fn"].log_prob(path["value"]) for path in paths))


@pytest.mark.parametrize("family", ["bernoulli", "gaussian"])
def test_padding_and_missing_entries_are_not_read(family):
    model = some_model("both", family)
    x, lengths = some_data().x, torch.tensor([6, 1, 3, 6])
    steps, entries = torch.ones(4, 6, dtype=torch.bool), torch.rand(4, 6, 3) < 0.7
    steps[0, 2] = False
    for mask in (steps, entries):
        bounds = []
        for filler in (0.0, 1.0, torch.nan):
            poisoned = x.clone()
            poisoned[~mask] = filler
            data = Sequences(poisoned, lengths, mask=mask)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                bounds.append(model.bound(data, 2))
        assert bounds[0].isfinite().all()
        assert torch.equal(bounds[0], bounds[1])
        assert torch.equal(bounds[0], bounds[2])


def test_a_sequence_does_not_depend_on_how_far_it_is_padded():
    model, data = some_model("both"), some_data()
    h = model.posterior(data).sample()
    alone = data[2].trim()
    assert alone.num_steps == 3
    expected = model.posterior(alone).log_prob(h[2:3, :3])
    assert torch.allclose(model.posterior(data).log_prob(h)[2:3], expected, atol=1e-5)


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_minibatches_count_for_the_whole_set(loss):
    model, data = some_model(), some_data()
    elbo = loss(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        whole = elbo.loss(model.model, model.guide, data)
        parts = sum(elbo.loss(model.model, model.guide, data[[i]]) for i in range(4)) / 4
    assert parts == pytest.approx(whole, rel=0.05)


def test_closed_form_divergences_have_the_same_mean_and_vary_less():
    model, data = some_model(), some_data(3)
    gradients = {}
    for loss in (Trace_ELBO, TraceMeanField_ELBO):
        drawn = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(100):
                value = loss().differentiable_loss(model.model, model.guide, data)
                drawn.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, model.combiner.parameters())]))
        gradients[loss] = torch.stack(drawn)
    sampled, exact = gradients.values()
    spread = sampled.std(0) / 100**0.5
    assert ((sampled.mean(0) - exact.mean(0)).abs() < 5 * spread + 1e-3).all()
    assert exact.var(0).sum() < 0.7 * sampled.var(0).sum()


@pytest.mark.parametrize("inference", INFERENCES)
def test_training_helps(inference):
    truth = some_model(seed=5)
    with torch.no_grad():
        truth.emission.net[-1].weight.mul_(5)
    data = truth.simulate(20, 6, seed=0)
    model = some_model(inference, num_flows=inference == "both", dropout=0.1)
    history = fit_svi(model, data, steps=40, learning_rate=0.03, loss=TraceMeanField_ELBO(), progress=False)
    assert sum(history.loss[-10:]) < 0.9 * sum(history.loss[:10])


@pytest.mark.parametrize("inference", ["left-right", "right-left", "both"])
def test_all_parameters_are_trained(inference):
    model = some_model(inference, seed=1, num_flows=1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit_svi(model, some_data(), steps=3, progress=False)
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_simulation_state_and_file(tmp_path):
    model, other = some_model(num_flows=1), some_model(num_flows=1, seed=1)
    state = torch.get_rng_state()
    data = model.simulate(3, 5, lengths=torch.tensor([5, 1, 2]), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.x.shape == (3, 5, 3)
    assert data.lengths.tolist() == [5, 1, 2]
    assert torch.equal(model.simulate(3, 5, lengths=torch.tensor([5, 1, 2]), seed=0).x, data.x)

    def bound(model):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return model.bound(data)

    assert not torch.equal(bound(model), bound(other))
    model.save(tmp_path / "model.pt")
    other.load(tmp_path / "model.pt")
    assert torch.equal(bound(model), bound(other))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    fresh = some_model(num_flows=1, seed=2)
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(bound(model), bound(fresh))
    plain = some_model()
    assert torch.equal(bound(plain), bound(copy.deepcopy(plain)))
    with pytest.raises(ValueError, match="path: expected the parameters of a model like this one"):
        some_model("both").load(tmp_path / "model.pt")
    assert not list(pyro.get_param_store())


def test_in_double_precision_one_step_and_on_another_device():
    model = some_model("both").double()
    data = some_data(1, torch.float64)
    assert model.bound(data).dtype == torch.float64
    moved = some_model().to("meta")
    assert {p.device.type for p in [*moved.parameters(), *moved.buffers()]} == {"meta"}


def test_bad_arguments():
    with pytest.raises(TypeError, match="emission: expected a torch.nn.Module, got int"):
        DeepMarkovModel(3)
    with pytest.raises(ValueError, match="inference: expected one of"):
        some_model("sideways")
    with pytest.raises(ValueError, match="num_flows: expected an int of at least 0, got -1"):
        some_model(num_flows=-1)
    with pytest.raises(ValueError, match=r"transition: expected initial of shape \(2,\)"):
        some_model(transition=GaussianTransition(3))
    model = some_model()
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        model.model(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match=r"data: expected x of shape \(N, T, \*\(3,\)\)"):
        model.bound(Sequences(torch.zeros(2, 3, 4)))
    with pytest.raises(ValueError, match="num_steps: expected an int of at least 1, got 0"):
        model.simulate(3, 0)
    with pytest.raises(ValueError, match=r"lengths: expected shape \(3,\), got \(2,\)"):
        model.simulate(3, 4, lengths=torch.tensor([1, 2]))
