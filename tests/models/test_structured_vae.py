import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyrohmm import HiddenMarkovModel, MarkovChain, fit_em, fit_svi, nn
from pyrohmm.data import Sequences
from pyrohmm.infer import PathELBO
from pyrohmm.models import HMM, StructuredVAE, match_states, overlap

K, D, X = 3, 2, 4


def linear_decoder(event, *, code=D, scale=0.5):
    """x = W h + b, with noise of one size."""
    net = torch.nn.Linear(1 + code, 2 * event)
    with torch.no_grad():
        net.weight[event:] = 0.0
        net.bias[event:] = math.log(scale)
    return nn.NeuralEmission(1, net, "gaussian", context=code)


def make(num_states=K, *, covariance="full", family="gaussian", seed=0, dtype=torch.float64, **settings):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    emission = nn.GaussianEmission(num_states, D, covariance, generator=generator)
    with torch.no_grad():
        for parameter in emission.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    if family == "gaussian":
        decoder = linear_decoder(X)
    else:
        net = torch.nn.Sequential(torch.nn.Linear(1 + D, 6), torch.nn.Tanh(), torch.nn.Linear(6, X))
        decoder = nn.NeuralEmission(1, net, family, context=D)
    encoder = nn.StepEncoder(X, 6, generator=generator)
    return StructuredVAE(emission, decoder, encoder, generator=generator, **settings).to(dtype)


def ragged(model, *, missing=True, num_steps=5, dtype=torch.float64, entries=False):
    lengths = torch.tensor([num_steps, 1, min(3, num_steps)])
    data = model.simulate(3, num_steps, lengths=lengths, seed=1)
    mask = None
    if missing:
        mask = torch.rand(data.x.shape[: 3 if entries else 2], generator=torch.Generator().manual_seed(2)) < 0.6
        mask[0, 0] = True
    return Sequences(data.x.to(dtype), lengths, mask=mask)


@pytest.mark.parametrize("collapsed", [True, False])
def test_gradient_through_the_rounds(collapsed):
    model = make(collapsed=collapsed, num_rounds=3, family="bernoulli")
    data = ragged(model)
    elbo = Trace_ELBO() if collapsed else PathELBO(max_plate_nesting=1)
    direction = {
        name: torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3))
        for name, p in model.named_parameters()
    }

    def loss():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        return elbo.differentiable_loss(model.model, model.guide, data)

    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    slope = sum((g * direction[name]).sum() for name, g in zip(parameters, gradients, strict=True))
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(sign * step * direction[name])
            values.append(loss())
            for name, parameter in parameters.items():
                parameter.sub_(sign * step * direction[name])
    torch.testing.assert_close(slope, (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-6)
    assert all((g != 0).any() for g in gradients)
    pyro.clear_param_store()


def test_summing_out_the_states_given_the_codes_is_tighter():
    model = make()
    data = ragged(model)
    losses = {}
    for collapsed in (True, False):
        model.collapsed = collapsed
        elbo = Trace_ELBO() if collapsed else PathELBO(max_plate_nesting=1)
        values = []
        for seed in range(5):
            pyro.set_rng_seed(seed)
            values.append(elbo.loss(model.model, model.guide, data))
        losses[collapsed] = values
    # With the same draws of the codes.
    assert all(a < b for a, b in zip(losses[True], losses[False], strict=True))
    pyro.clear_param_store()


@pytest.mark.parametrize("num_states", [1, 3])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_log_prob_of_a_linear_decoder_is_that_of_a_gaussian_model(num_states, num_steps):
    model = make(num_states)
    data = ragged(model, num_steps=num_steps)
    with torch.no_grad():
        # So near that one wide Gaussian, the guide's, covers all.
        model.hmm.emission.loc.mul_(0.3)
        model.hmm.emission.log_scale.zero_()
        model.head.weight.zero_()
        model.head.bias.fill_(-5.0)
        law = model.hmm.emission(torch.arange(num_states))
        net = model.decoder.net
        weight, bias = net.weight[:X, 1:], net.weight[:X, 0] + net.bias[:X]
        noise = 0.25 * torch.eye(X, dtype=torch.float64)
        seen = dist.MultivariateNormal(law.mean @ weight.T + bias, weight @ law.covariance_matrix @ weight.T + noise)
        expected = HiddenMarkovModel(model.prior(data), seen).log_prob(data.x, data.observed)
        torch.testing.assert_close(model.log_prob(data, 5000), expected, atol=0.1, rtol=0)
        # A bound, on average, from fewer draws.
        few = torch.stack([model.log_prob(data, 2, seed=seed) for seed in range(30)]).mean(0)
        assert (few < expected + 0.1).all()


@pytest.mark.parametrize("entries", [False, True])
def test_what_is_missing_is_not_read(entries):
    model = make()
    data = ragged(model, entries=entries)
    mask = data.mask if entries else data.mask.unsqueeze(-1)
    spoiled = data._replace({"x": data.x.masked_fill(~mask, math.nan)})
    a, b = model.infer(data), model.infer(spoiled)
    torch.testing.assert_close(a.states.marginals, b.states.marginals, rtol=0, atol=0)
    torch.testing.assert_close(a.codes.mean, b.codes.mean, rtol=0, atol=0)
    full = model.impute(data)
    assert full.mask is None
    assert torch.equal(torch.where(mask, full.x, 0), data.x)
    filled = (~mask & data.valid.unsqueeze(-1)).expand(full.x.shape)
    assert torch.equal(full.x[filled], model.reconstruct(data)[filled])
    assert model.impute(full) is full


def test_a_gap_follows_from_the_states():
    model = make(num_rounds=3)
    data = model.simulate(1, 6, seed=0)
    mask = torch.tensor([[True, True, False, False, True, True]])
    data = Sequences(data.x, mask=mask)
    with torch.no_grad():
        found = model.infer(data)
        weights = found.states.marginals[0]
        # In the gap there are transitions alone.
        evidence = found.states.observation_logits[0]
        assert (evidence[2:4] == 0).all() and (evidence[[0, 1, 4, 5]] != 0).any(-1).all()
        law = model.hmm.emission(torch.arange(K))
        net = model.decoder.net
        mean = weights @ law.mean @ net.weight[:X, 1:].T + net.weight[:X, 0] + net.bias[:X]
        torch.testing.assert_close(model.reconstruct(data, 20_000)[0, 2:4], mean[2:4], atol=0.05, rtol=0)
        # No step of a sequence of which nothing was observed says anything: the prior is left, and no bound to pay.
        nothing = Sequences(data.x, mask=torch.zeros_like(mask))
        torch.testing.assert_close(model.posterior(nothing).marginals, model.prior(nothing).marginals)
        assert (model.posterior(nothing).marginals - found.states.marginals).abs().max() > 1e-3
        assert model.log_prob(nothing, 3).abs().max() < 1e-12


def test_padding_and_batches_change_nothing():
    model = make()
    data = ragged(model)
    found = model.infer(data)
    for n, length in enumerate(data.lengths.tolist()):
        alone = model.infer(data[n].trim())
        torch.testing.assert_close(found.states.marginals[n, :length], alone.states.marginals[0])
        torch.testing.assert_close(found.codes.mean[n, :length], alone.codes.mean[0])
    assert (model.reconstruct(data)[~data.valid] == 0).all()
    for program in (model.model, model.guide):
        sites = poutine.trace(program).get_trace(data[1:]).nodes
        assert all(sites[name]["scale"] == 1.5 for name in ("h", "x") if name in sites)
    pyro.clear_param_store()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
@pytest.mark.parametrize("collapsed", [True, False])
def test_fit(family, collapsed, dtype):
    model = make(family=family, collapsed=collapsed, dtype=dtype, num_rounds=2)
    data = ragged(model, dtype=dtype)
    history = fit_svi(
        model, data, loss=None if collapsed else PathELBO(), steps=8, batch_size=2, learning_rate=0.01, progress=False
    )
    assert all(map(math.isfinite, history.loss))
    assert model.posterior(data).marginals.dtype == dtype
    assert not list(pyro.get_param_store())
    other = make(family=family, seed=1, dtype=dtype, num_rounds=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(data), model.log_prob(data))


def test_a_law_whose_support_has_no_zero():
    def law(parameters):
        return dist.Gamma(parameters[..., :X].exp(), parameters[..., X:].exp()).to_event(1)

    torch.manual_seed(0)
    decoder = nn.NeuralEmission(1, torch.nn.Linear(1 + D, 2 * X), law, context=D)
    model = StructuredVAE(nn.GaussianEmission(K, D), decoder, nn.StepEncoder(X, 6))
    data = ragged(model, dtype=torch.float32)
    history = fit_svi(model, data, steps=2, progress=False)
    assert all(map(math.isfinite, history.loss))
    assert model.log_prob(data, 5).isfinite().all()


def test_inputs_and_order_of_the_states():
    torch.manual_seed(0)
    emission = nn.GaussianEmission(K, D)
    encoder = nn.RecurrentEncoder(X, 6, context=1)
    model = StructuredVAE(emission, linear_decoder(X), encoder, transition=nn.NeuralTransition(K, context=1))
    inputs = torch.randn(2, 4, 1)
    data = model.simulate(2, 4, inputs=inputs, lengths=torch.tensor([4, 2]), seed=0)
    assert data.labels.max() < K and (data.labels >= 0).sum() == 6
    assert torch.equal(data.x, model.simulate(2, 4, inputs=inputs, lengths=torch.tensor([4, 2]), seed=0).x)
    before = model.posterior(data).marginals
    assert before.shape == (2, 4, K)
    changed = model.posterior(Sequences(data.x, data.lengths, inputs=inputs + 1.0)).marginals
    assert not torch.allclose(before, changed)


def test_relabel():
    model = make()
    data = ragged(model)
    before, bound = model.posterior(data).marginals, model.log_prob(data)
    model.hmm.relabel([2, 0, 1])
    torch.testing.assert_close(model.posterior(data).marginals, before[..., [2, 0, 1]])
    torch.testing.assert_close(model.log_prob(data), bound)


def test_bad_arguments():
    decoder, encoder = linear_decoder(X), nn.StepEncoder(X, 6)
    with pytest.raises(ValueError, match="emission: expected vectors, without previous ones"):
        StructuredVAE(nn.CategoricalEmission(K, 3), decoder, encoder)
    with pytest.raises(TypeError, match="encoder: expected a pyrohmm.nn.Encoder, got Linear"):
        StructuredVAE(nn.GaussianEmission(K, D), decoder, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="decoder: expected an emission with context=3, got 2"):
        StructuredVAE(nn.GaussianEmission(K, 3), decoder, encoder)
    with pytest.raises(ValueError, match="decoder: expected an emission with num_states=1, got 2"):
        StructuredVAE(nn.GaussianEmission(K, D), nn.BernoulliEmission(2, 3), encoder)
    with pytest.raises(ValueError, match="num_rounds: expected at least 1, got 0"):
        StructuredVAE(nn.GaussianEmission(K, D), decoder, encoder, num_rounds=0)
    model = StructuredVAE(nn.GaussianEmission(K, D), decoder, encoder)
    with pytest.raises(ValueError, match=r"data: expected x of shape \(N, T, \*\(4,\)\), like the decoder"):
        model.posterior(Sequences(torch.zeros(2, 3, 5)))
    with pytest.raises(ValueError, match=r"data: expected allowed=None, got shape \(2, 3, 3\)"):
        model.posterior(Sequences(torch.zeros(2, 3, 4), allowed=torch.ones(2, 3, K, dtype=torch.bool)))
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        model.posterior(torch.zeros(2, 3, 4))
    poisson = StructuredVAE(nn.PoissonEmission(K, D), decoder, encoder)
    with pytest.raises(ValueError, match="emission: expected Gaussian laws, got Independent"):
        poisson.posterior(Sequences(torch.zeros(2, 3, 4)))
    symbols = nn.NeuralEmission(1, torch.nn.Linear(1 + D, 5), "categorical", context=D)
    model = StructuredVAE(nn.GaussianEmission(K, D), symbols, nn.StepEncoder(5, 6, symbols=True))
    with pytest.raises(ValueError, match="decoder: expected a law that has a mean, got Categorical"):
        model.reconstruct(Sequences(torch.zeros(2, 3, dtype=torch.int64)))


# A simulated truth: arms of a wheel, bent.


class Bend(torch.nn.Module):
    """The code itself, bent by a network which at the start is nothing."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
        torch.nn.init.zeros_(self.net[-1].weight)
        self.log_scale = torch.nn.Parameter(torch.full((2,), -1.0))

    def forward(self, features):
        loc = features[..., 1:] + self.net(features)
        return torch.cat([loc, self.log_scale.expand_as(loc)], -1)


def arms(num_sequences, num_steps, *, rate=0.3, width=0.1, stay=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    transition = torch.full((K, K), (1 - stay) / (K - 1)).fill_diagonal_(stay)
    lengths = torch.randint(num_steps // 2, num_steps + 1, (num_sequences,), generator=generator)
    chain = MarkovChain(torch.zeros(K), transition.log(), num_steps=num_steps)
    z = chain.sample((num_sequences,), generator=generator)
    along, across = torch.randn(2, num_sequences, num_steps, generator=generator)
    along, across = 1 + 0.3 * along, width * across
    angle = 2 * math.pi / K * z + rate * along.exp()
    x = torch.stack([along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], -1)
    x = 2 * x + 0.05 * torch.randn(x.shape, generator=generator)
    mask = torch.rand(num_sequences, num_steps, generator=generator) < 0.9
    return Sequences(x, lengths, labels=z, mask=mask)


def bent_model(collapsed, seed=0):
    torch.manual_seed(seed)
    # On a ring, as the data are, but between the arms.
    angle = 2 * math.pi / K * torch.arange(K) + 1.6
    emission = nn.GaussianEmission(K, 2, "full", loc=2 * torch.stack([angle.cos(), angle.sin()], -1), scale=0.7)
    decoder = nn.NeuralEmission(1, Bend(), "gaussian", context=2)
    return StructuredVAE(emission, decoder, nn.StepEncoder(2, 32), num_rounds=2, collapsed=collapsed)


def accuracy(model, data):
    chain = model.posterior(data)
    order = match_states(overlap(chain, data.labels))
    states = order.argsort()[chain.viterbi().states.clamp(min=0)]
    return (states == data.labels)[data.valid].float().mean().item()


@pytest.mark.parametrize("collapsed", [True, False])
def test_recovers_the_states(collapsed):
    data = arms(12, 15)
    model = bent_model(collapsed)
    with pyro.validation_enabled(False):
        history = fit_svi(
            model, data, loss=None if collapsed else PathELBO(), steps=60, learning_rate=0.03, progress=False
        )
    assert history.loss[-1] < history.loss[0] - 3
    assert accuracy(model, data) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("collapsed", [True, False])
def test_bent_arms_are_seen_better_than_by_gaussians(collapsed):
    data, held_out = arms(60, 30, rate=0.6, width=0.05), arms(30, 30, rate=0.6, width=0.05, seed=1)
    model = bent_model(collapsed)
    with pyro.validation_enabled(False):
        fit_svi(
            model,
            data,
            loss=None if collapsed else PathELBO(),
            steps=1200,
            batch_size=20,
            learning_rate=0.01,
            schedule="cosine",
            progress=False,
        )
    plain = HMM(nn.GaussianEmission(K, 2, "full"))
    fit_em(plain, data, restarts=10, initialization="kmeans", seed=0, progress=False)
    ours = model.log_prob(held_out, 100).sum() / held_out.num_observed
    theirs = plain.log_prob(held_out).sum() / held_out.num_observed
    print(f"accuracy {accuracy(model, held_out):.3f}, plain {accuracy(plain, held_out):.3f}")
    print(f"nats per step {ours:.3f}, plain {theirs:.3f}")
    gaps = (model.reconstruct(held_out) - held_out.x)[held_out.observed].square().mean()
    assert gaps < 0.2
    assert accuracy(model, held_out) > 0.9
    assert ours > theirs + (0.4 if collapsed else 0.1)
