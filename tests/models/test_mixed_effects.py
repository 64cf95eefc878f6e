import copy
import io
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import pyrohmm
from pyrohmm import nn, ops
from pyrohmm.data import Sequences
from pyrohmm.models import HMM, MixedEffectsHMM
from tests.models.cases import net

K, D, C, V, L = 3, 2, 2, 4, 2
N, T = 4, 4


def regression(context: int) -> tuple[torch.nn.Module, ...]:
    initial, transition = nn.RegressionInitial(K, context), nn.RegressionTransition(K, context)
    for part in (initial, transition):
        torch.nn.init.normal_(part.weights)
    emission = nn.LinearRegressionEmission(K, D, context)
    torch.nn.init.normal_(emission.weight)
    return emission, initial, transition


def neural(context: int) -> tuple[torch.nn.Module, ...]:
    emission = nn.AutoregressiveEmission(K, net(K + context + D, 2 * D), "gaussian", dim=D, context=context)
    return emission, nn.Initial(K, context=context, hidden=4), nn.NeuralTransition(K, context=context, hidden=4)


def emission_only(context: int) -> tuple[torch.nn.Module, ...]:
    return nn.NeuralEmission(K, net(K + context, V), "categorical", context=context), nn.Initial(K), nn.Transition(K)


def transition_only(context: int) -> tuple[torch.nn.Module, ...]:
    return nn.GaussianEmission(K, D), nn.Initial(K), nn.RegressionTransition(K, context, shared=True)


PARTS = {
    "regression": regression,
    "neural": neural,
    "symbols": emission_only,
    "transition only": transition_only,
}
CASES = [(name, covariates) for name in PARTS for covariates in (False, True)]


def make(name="regression", covariates=True, covariance="diag", seed=0) -> tuple[MixedEffectsHMM, Sequences]:
    """A model in float64 and its data: lengths 4, 3, 1, 2, some steps missing, 4 sequences out of 10."""
    context = C if covariates else 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = nn.StepEncoder(V, 5, symbols=True) if name == "symbols" else nn.RecurrentEncoder(D, 6, context=context)
        encoder = nn.PooledEncoder(L, reader, covariance)
        emission, initial, transition = PARTS[name](context + L)
        model = MixedEffectsHMM(emission, initial, transition, encoder=encoder).double()
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(0, V, (N, T), generator=generator)
    x = torch.randn(N, T, D, generator=generator, dtype=torch.float64)
    inputs = torch.randn(N, T, C, generator=generator, dtype=torch.float64)
    data = Sequences(
        symbols if name == "symbols" else x,
        torch.tensor([4, 3, 1, 2]),
        inputs=inputs if covariates else None,
        mask=torch.rand(N, T, generator=generator) < 0.8,
        index=torch.tensor([7, 2, 9, 0]),
        num_total=10,
    )
    return model, data


def given(model: MixedEffectsHMM, data: Sequences, effects: Tensor) -> tuple[HMM, Sequences]:
    """The model and the data with the random effects as further covariates."""
    wide = effects.unsqueeze(1).expand(-1, data.num_steps, -1)
    inputs = wide if data.inputs is None else torch.cat([data.inputs, wide], -1)
    plain = HMM(model.emission, model.initial, model.transition, use_labels=model.use_labels)
    return plain, data._replace({"inputs": inputs})


def draws(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "covariates"), CASES)
def test_given_the_effects_it_is_a_plain_model_of_more_inputs(name, covariates):
    model, data = make(name, covariates)
    effects = draws(N, L)
    plain, wide = given(model, data, effects)
    expected = plain.log_prob(wide)
    fixed = pyro.condition(model.model, {"u": effects.unsqueeze(1)})
    with pyro.get_param_store().scope():
        factor = pyro.poutine.trace(fixed).get_trace(data).nodes["time"]["fn"].log_factor
    torch.testing.assert_close(factor.reshape(N), expected)
    torch.testing.assert_close(model.posterior(data, effects=effects).marginals, plain.posterior(wide).marginals)
    potentials = model.potentials(data, effects=effects)
    torch.testing.assert_close(ops.log_partition(*potentials, lengths=data.lengths), expected)


@pytest.mark.parametrize(("name", "covariates"), CASES)
def test_collapsed_elbo_and_gradient_equal_the_sequential_ones(name, covariates):
    model, data = make(name, covariates)
    results = []
    for elbo, vectorized in ((Trace_ELBO(), True), (TraceEnum_ELBO(max_plate_nesting=2), False)):
        torch.manual_seed(0)
        model.zero_grad()
        with pyro.get_param_store().scope():
            loss = elbo.loss_and_grads(
                lambda data, vectorized=vectorized: model.model(data, vectorized=vectorized), model.guide, data
            )
        results.append((loss, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (loss, gradients), (plain_loss, plain_gradients) = results
    assert loss == pytest.approx(plain_loss, abs=1e-9)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[parameter], rtol=1e-8, atol=1e-10)
        assert gradient.abs().sum() > 0, parameter


def one_effect() -> tuple[MixedEffectsHMM, Sequences]:
    generator = torch.Generator().manual_seed(1)
    transition = nn.RegressionTransition(2, 1, generator=generator)
    with torch.no_grad():
        transition.weights[0, 1] = transition.weights[1, 0] = 1.5
    encoder = nn.PooledEncoder(1, nn.StepEncoder(1, 8, generator=generator), generator=generator)
    with torch.no_grad():
        # Near the prior, and so no narrower than the posterior.
        encoder.net[-1].weight.mul_(0.1)
        encoder.net[-1].bias.zero_()
    emission = nn.LinearRegressionEmission(2, 1, 1, loc=torch.tensor([[-2.0], [2.0]]), weight=0.8)
    model = MixedEffectsHMM(emission, transition=transition, encoder=encoder).double()
    return model, model.simulate(3, 8, lengths=torch.tensor([8, 4, 1]), seed=0)


def at_nodes(model: MixedEffectsHMM, data: Sequences, effects: Tensor) -> Tensor:
    """log p(x_n | u) for u (Q, N), by the plain model."""
    repeated = data[torch.arange(len(data)).repeat(len(effects))]
    plain, wide = given(model, repeated, effects.reshape(-1, 1))
    return plain.log_prob(wide).reshape(effects.shape)


def log_evidence(model: MixedEffectsHMM, data: Sequences) -> Tensor:
    nodes, weights = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(40))
    log_joint = at_nodes(model, data, nodes.unsqueeze(1).expand(-1, len(data)))
    return (log_joint + (weights / math.sqrt(2 * math.pi)).log().unsqueeze(1)).logsumexp(0)


def elbo_by_quadrature(model: MixedEffectsHMM, data: Sequences) -> Tensor:
    """The ELBO of each sequence, the expectation under the guide by Gauss-Hermite quadrature, differentiable."""
    nodes, weights = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(40))
    law = model.random_effects(data)
    u = law.mean.squeeze(-1) + law.stddev.squeeze(-1) * nodes.unsqueeze(1)
    log_joint = at_nodes(model, data, u) + dist.Normal(0.0, 1.0).log_prob(u)
    return (weights / math.sqrt(2 * math.pi)) @ log_joint + law.entropy()


def test_one_particle_is_the_bound():
    model, data = one_effect()
    with torch.no_grad():
        exact, bound = log_evidence(model, data), elbo_by_quadrature(model, data)
        single = torch.stack([model.log_prob(data, num_particles=1, seed=seed) for seed in range(100)])
    error = single.std(0) / math.sqrt(len(single))
    assert ((single.mean(0) - bound).abs() < 4 * error).all()
    assert (bound < exact).all()


def test_fitted_bound_is_near_the_likelihood_and_many_particles_are_nearer():
    model, data = one_effect()
    for part in model.parts:
        part.requires_grad_(False)
    with torch.no_grad():
        exact = log_evidence(model, data)
        # The law of u starts near the prior, where weights vary much.
        torch.testing.assert_close(model.log_prob(data, num_particles=4000, seed=0), exact, rtol=0, atol=0.15)
    pyrohmm.fit_svi(model, data, steps=100, learning_rate=0.1, schedule="exponential", progress=False)
    with torch.no_grad():
        torch.testing.assert_close(log_evidence(model, data), exact)
        gap = exact - elbo_by_quadrature(model, data)
        assert (gap > 0).all() and gap.max() < 0.1
        torch.testing.assert_close(model.log_prob(data, num_particles=4000, seed=0), exact, rtol=0, atol=0.02)


def test_gradient_of_the_elbo_by_quadrature():
    model, data = one_effect()
    (-elbo_by_quadrature(model, data).sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(0)
    elbo = Trace_ELBO(num_particles=10_000, vectorize_particles=True, max_plate_nesting=2)
    with pyro.get_param_store().scope():
        loss = elbo.loss_and_grads(model.model, model.guide, data)
    assert loss == pytest.approx(-elbo_by_quadrature(model, data).sum().item(), abs=0.1)
    for name, p in model.named_parameters():
        assert expected[name].abs().max() > 1e-3, name
        torch.testing.assert_close(p.grad, expected[name], rtol=0.05, atol=0.05, msg=name)


@pytest.mark.slow
def test_recovery_of_effects_and_their_spread():
    def build(seed: int, **start: float) -> MixedEffectsHMM:
        generator = torch.Generator().manual_seed(seed)
        return MixedEffectsHMM(
            nn.LinearRegressionEmission(2, 1, 2, **start, generator=generator),
            transition=nn.RegressionTransition(2, 2, sticky=2.0, generator=generator),
            encoder=nn.PooledEncoder(1, nn.StepEncoder(1, 16, generator=generator), generator=generator),
        )

    truth = build(0, loc=torch.tensor([[-2.0], [2.0]]), weight=torch.tensor([0.5, 1.0]))
    with torch.no_grad():
        truth.transition.logits.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        truth.transition.weights[0, 1] = torch.tensor([1.0, 0.5])
        truth.transition.weights[1, 0] = torch.tensor([-1.0, -0.5])
    num_sequences, num_steps = 200, 50
    generator = torch.Generator().manual_seed(3)
    effects = torch.randn(num_sequences, 1, generator=generator)
    data = truth.simulate(
        num_sequences,
        num_steps,
        lengths=torch.randint(25, 51, (num_sequences,), generator=generator),
        inputs=torch.randn(num_sequences, num_steps, 1, generator=generator),
        effects=effects,
        seed=4,
    )
    # The weight's sign at the start settles that of u.
    model = build(1, loc=torch.tensor([[-1.0], [1.0]]), weight=torch.tensor([0.0, 0.2]))
    pyrohmm.fit_svi(
        model, data, steps=400, batch_size=50, learning_rate=0.05, schedule="exponential", seed=0, progress=False
    )
    with torch.no_grad():
        found = model.random_effects(data).mean
        assert torch.corrcoef(torch.cat([found, effects], 1).T)[0, 1] > 0.95
        weight, coefficients = model.emission.weight.squeeze(1), model.transition.coefficients
        torch.testing.assert_close(model.emission.loc, truth.emission.loc, rtol=0, atol=0.15)
        torch.testing.assert_close(weight[:, 0], torch.full((2,), 0.5), rtol=0, atol=0.1)
        # The standard deviation of the random intercept.
        torch.testing.assert_close(weight[:, 1], torch.ones(2), rtol=0, atol=0.2)
        torch.testing.assert_close(coefficients, truth.transition.coefficients, rtol=0, atol=0.2)
        # As likely as the truth, on the data that it is fitted to: about 11 parameters' worth of nats, or not below.
        gain = model.log_prob(data, seed=0).sum() - truth.log_prob(data, num_particles=1000, seed=0).sum()
        assert gain > -40


def test_guide_does_not_read_padding_or_what_is_missing():
    model, data = make()
    expected = model.random_effects(data).mean
    noise = torch.where(data.observed.unsqueeze(-1), data.x, math.nan)
    inputs = data.inputs.masked_fill(~data.valid.unsqueeze(-1), math.nan)
    wider = [torch.nn.functional.pad(value, (0, 0, 0, 3), value=math.nan) for value in (noise, inputs)]
    mask = torch.nn.functional.pad(data.mask, (0, 3))
    # Sequences puts zeros there; the guide itself must not read them either.
    poisoned = data._replace({"x": wider[0], "inputs": wider[1], "mask": mask})
    torch.testing.assert_close(model.random_effects(poisoned).mean, expected)
    for n, sequence in enumerate(data):
        torch.testing.assert_close(model.random_effects(sequence.trim()).mean[0], expected[n])
    assert expected.isfinite().all()


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_minibatch_is_scaled_to_the_whole_set(covariance):
    model, data = make(covariance=covariance)
    for rows in ([0, 1, 2, 3], [1], [2, 3]):
        some = data[rows]
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            loss = Trace_ELBO().loss(model.model, model.guide, some)
        # The same draws, one of each sequence, so that the loss is the very same sum.
        expected = model.log_prob(some, num_particles=1, seed=0).sum()
        assert loss == pytest.approx(-10 / len(some) * expected.item())


def test_log_prob_of_any_guide_and_its_gradient():
    model, data = one_effect()

    def prior(data: Sequences) -> None:
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            pyro.sample("u", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))

    estimate = model.log_prob(data, prior, num_particles=4000, seed=0)
    torch.testing.assert_close(estimate, log_evidence(model, data), rtol=0, atol=0.1)
    assert len(pyro.get_param_store()) == 0
    model.log_prob(data, num_particles=3, seed=0).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_more_particles_in_several_runs(monkeypatch):
    model, data = one_effect()
    runs = []
    model.emission.register_forward_pre_hook(lambda *_: runs.append(1))
    monkeypatch.setattr("pyrohmm.models.mixed_effects._AT_ONCE", 3 * data.x.shape[:2].numel() + 1)
    with torch.no_grad():
        estimate = model.log_prob(data, num_particles=200, seed=0)
        # Two runs of the loop's body for each three particles of three sequences.
        assert len(runs) == 2 * 67
        torch.testing.assert_close(estimate, log_evidence(model, data), rtol=0, atol=0.5)


def test_impossible_sequence():
    model, data = make("transition only")
    model.use_labels = True
    model.transition.mask = torch.eye(K, dtype=torch.bool)
    labels = torch.full((N, T), -1)
    labels[0, :2] = torch.tensor([0, 1])
    data = data._replace({"labels": labels})
    found = model.log_prob(data, num_particles=5)
    assert found[0] == -torch.inf and found[1:].isfinite().all()
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_one_state_one_step():
    emission = nn.LinearRegressionEmission(1, 1, 1, weight=0.5)
    model = MixedEffectsHMM(emission, encoder=nn.PooledEncoder(1, nn.StepEncoder(1, 4))).double()
    x = torch.tensor([[[0.3]], [[-1.0]]], dtype=torch.float64)
    # x = loc + u / 2 + noise.
    loc = emission.loc.item()
    expected = dist.Normal(loc, math.sqrt(1.25)).log_prob(x.flatten())
    estimate = model.log_prob(Sequences(x), num_particles=4000, seed=0)
    torch.testing.assert_close(estimate, expected, rtol=0, atol=0.05)


def test_marginals_averaged_over_the_effects():
    model, data = make()
    effects = draws(5, N, L)
    chain = model.posterior(data, effects=effects)
    assert chain.batch_shape == (5, N)
    for s in range(5):
        expected = model.posterior(data, effects=effects[s]).marginals
        torch.testing.assert_close(chain.marginals[s], expected)
    by_default = model.posterior(data, effects=model.random_effects(data).mean)
    torch.testing.assert_close(model.posterior(data).marginals, by_default.marginals)
    drawn = model.posterior(data, model.guide)
    assert drawn.batch_shape == (N,) and not torch.equal(drawn.marginals, by_default.marginals)


def test_filter_is_given_the_effects_as_inputs():
    model, data = make()
    effects = draws(N, L)
    _, wide = given(model, data, effects)
    state = model.filter_state(N)
    for t in range(T):
        state.update(data.x[:, t], wide.inputs[:, t], observed=data.observed[:, t])
    expected = ops.log_partition(*model.potentials(data, effects=effects), lengths=data.lengths)
    torch.testing.assert_close(state.log_likelihood, expected)


def test_simulation_follows_the_effects():
    def build(weight: float) -> MixedEffectsHMM:
        emission = nn.LinearRegressionEmission(1, 1, 1, loc=torch.zeros(1, 1), weight=weight)
        return MixedEffectsHMM(emission, encoder=nn.PooledEncoder(1, nn.StepEncoder(1, 4)))

    effects = torch.tensor([[-2.0], [0.0], [1.0]])
    means = build(3.0).simulate(3, 400, effects=effects, seed=0).x.mean((1, 2))
    torch.testing.assert_close(means, 3 * effects.squeeze(-1), rtol=0, atol=0.2)
    # New effects have the spread that the weight says.
    means = build(3.0).simulate(2000, 20, seed=0).x.mean((1, 2))
    assert means.std().item() == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize(("name", "covariates"), CASES)
def test_simulate(name, covariates):
    model, data = make(name, covariates)
    inputs = draws(3, 6, C) if covariates else None
    lengths = torch.tensor([6, 1, 4])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model.simulate(3, 6, lengths=lengths, inputs=inputs, seed=1)
    assert (torch.rand(3) == expected).all()
    again = model.simulate(3, 6, lengths=lengths, inputs=inputs, seed=1)
    assert torch.equal(first.x, again.x) and first.x.shape == (3, 6, *data.event_shape)
    fixed = model.simulate(3, 6, inputs=inputs, effects=draws(3, L), seed=1)
    assert not torch.equal(first.x, fixed.x)
    assert ((first.labels >= 0) == first.valid).all()
    assert model.log_prob(first, num_particles=2).isfinite().all()


def test_fit_svi_trains_all_parts_and_the_encoder_from_minibatches():
    model, data = make()
    data = data.as_whole()
    before = copy.deepcopy(model.state_dict())
    history = pyrohmm.fit_svi(model, data, steps=3, batch_size=2, seed=0, progress=False)
    assert history.num_steps == 3
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert len(pyro.get_param_store()) == 0


def test_state_dict_pickle_and_dtype(tmp_path):
    model, data = make(seed=0)
    other, _ = make(seed=1)
    expected = model.log_prob(data, seed=0)
    assert not torch.allclose(other.log_prob(data, seed=0), expected)
    model.save(tmp_path / "model.pt")
    other.load(tmp_path / "model.pt")
    torch.testing.assert_close(other.log_prob(data, seed=0), expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    torch.testing.assert_close(loaded.log_prob(data, seed=0), expected, rtol=0, atol=0)
    single = model.float().log_prob(data.to(dtype=torch.float32), num_particles=2)
    assert single.dtype == torch.float32 and single.isfinite().all()
    assert model.simulate(2, 3, inputs=torch.zeros(2, 3, C), seed=0).x.dtype == torch.float32


def test_relabelled_states_are_as_likely():
    model, data = make()
    expected, states = model.log_prob(data, seed=0), model.posterior(data).viterbi().states
    order = torch.tensor([2, 0, 1])
    model.relabel(order)
    torch.testing.assert_close(model.log_prob(data, seed=0), expected)
    model.align(states, data)
    assert torch.equal(model.posterior(data).viterbi().states, states)


def test_number_of_parameters_is_that_of_the_model_without_the_guide():
    model, _ = make()
    assert model.num_parameters == HMM(model.emission, model.initial, model.transition).num_parameters
    assert model.num_effects == L


def test_wrong_arguments():
    model, data = make()
    with pytest.raises(TypeError, match=r"encoder: expected a pyrohmm.nn.PooledEncoder, got StepEncoder"):
        MixedEffectsHMM(nn.LinearRegressionEmission(K, D, L), encoder=nn.StepEncoder(D, 4))
    with pytest.raises(ValueError, match="inputs: expected shape"):
        model.log_prob(data._replace({"inputs": None}))
    with pytest.raises(ValueError, match=r"effects: expected shape \(4, 2\), got \(4, 3\)"):
        model.posterior(data, effects=draws(N, 3))
    with pytest.raises(ValueError, match=r"effects: expected shape \(3, 2\), got list"):
        model.simulate(3, 2, inputs=draws(3, 2, C), effects=[1.0])
    with pytest.raises(ValueError, match="effects: expected None since there is a guide"):
        model.posterior(data, model.guide, effects=draws(N, L))
    with pytest.raises(ValueError, match="effects: expected None since there is a guide"):
        model.simulate(N, 2, effects=draws(N, L), guide=model.guide)
    with pytest.raises(ValueError, match="effects: expected the random effects .* use fit_svi"):
        pyrohmm.fit_em(model, data, steps=1, progress=False)
    with pytest.raises(ValueError, match="num_particles: expected at least 1, got 0"):
        model.log_prob(data, num_particles=0)
    with pytest.raises(ValueError, match="guide: expected a program that samples 'u'"):
        model.log_prob(data, lambda data: None)
    with pytest.raises(TypeError, match=r"data: expected pyrohmm.data.Sequences, got Tensor"):
        model.random_effects(data.x)
    with pytest.raises(ValueError, match=r"data: expected x of shape"):
        model.random_effects(Sequences(torch.zeros(2, 3, 5)))
