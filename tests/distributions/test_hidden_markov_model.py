"""HiddenMarkovModel, held to the sum over all paths, and to what torch and Pyro expect of a distribution."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import transform_to

from pyrohmm import HiddenMarkovModel, MarkovChain
from pyrohmm.testing import assert_close_to_oracle as assert_close
from pyrohmm.testing import enumeration

B, T, K = 2, 3, 2
LENGTHS = torch.tensor([3, 1])

# Emission: how to make it, and the event shapes of its parameters.
EMISSIONS = {
    "normal": (lambda loc, scale: dist.Normal(loc, scale.exp()), [(), ()]),
    "torch normal": (lambda loc, scale: torch.distributions.Normal(loc, scale.exp()), [(), ()]),
    "categorical": (lambda logits: dist.Categorical(logits=logits), [(3,)]),
    "bernoulli": (lambda logits: dist.Bernoulli(logits=logits).to_event(1), [(2,)]),
    "multivariate": (
        lambda loc, factor: dist.MultivariateNormal(loc, scale_tril=torch.eye(2).double() + factor.tril(-1)),
        [(2,), (2, 2)],
    ),
    "matrix": (lambda loc: dist.Normal(loc, 1.0).to_event(2), [(2, 3)]),
}
FORMS = {"K": (K,), "BK": (B, K), "TK": (T, K), "BTK": (B, T, K)}


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parameters(kind, form, num_steps=T):
    """Parameters of the emission, and each of them for every sequence, step and state (B, T, K, ...)."""
    batch = [num_steps if size == "T" else FORMS[form][i] for i, size in enumerate(form)]
    own = [draw(*batch, *event, seed=len(event)).requires_grad_() for event in EMISSIONS[kind][1]]
    every = []
    for value, event in zip(own, EMISSIONS[kind][1], strict=True):
        full = value.unsqueeze(1) if form == "BK" else value
        every.append(full.expand(B, num_steps, K, *event))
    return own, every


def emission_logits(kind, every, x):
    """log p(x_t | z_t = k) of every sequence, step and state, one distribution at a time: (B, T, K)."""
    make = EMISSIONS[kind][0]
    logits = [
        make(*(value[b, t, k] for value in every)).log_prob(x[b, t])
        for b in range(x.shape[0])
        for t in range(x.shape[1])
        for k in range(K)
    ]
    return torch.stack(logits).reshape(*x.shape[:2], K)


def log_laws(initial, transition):
    return initial.log_softmax(-1), transition.log_softmax(-1)


def prior_potentials(form, transitions="shared"):
    batch = (B,) if "B" in form else ()
    time = T - 1 if transitions == "each" else 1
    return draw(*batch, K, seed=1).requires_grad_(), draw(*batch, time, K, K, seed=2).requires_grad_()


def build(kind, form, *, transitions="shared", lengths=None, num_steps=T):
    initial, transition = prior_potentials(form, transitions)
    own, every = parameters(kind, form)
    prior = MarkovChain(initial, transition, lengths=lengths, num_steps=num_steps)
    # Lengths alone give the prior a batch shape; an emission of batch shape (T, K) then has to be called one.
    said = "T" in form if lengths is not None else None
    return HiddenMarkovModel(prior, EMISSIONS[kind][0](*own), time_varying=said), (initial, transition, *own), every


def data(kind, every, num_steps=T):
    torch.manual_seed(0)
    make = EMISSIONS[kind][0]
    return make(*(value[:, :, 0].detach() for value in every)).sample()[:, :num_steps]


def gradients(function, tensors):
    return torch.autograd.grad(function, tensors, retain_graph=True)


# Values, against the sum over all paths.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EMISSIONS)
def test_log_prob_filter_posterior(kind, form):
    hmm, tensors, every = build(kind, form)
    x = data(kind, every)
    assert hmm.batch_shape == ((B,) if "B" in form else ())
    assert hmm.event_shape == x.shape[1:]
    assert hmm.num_steps == T

    observation = emission_logits(kind, every, x)
    potentials = (*log_laws(*tensors[:2]), observation)
    assert_close(hmm.observation_logits(x), observation)
    expected = enumeration.log_partition(*potentials)
    assert_close(hmm.log_prob(x), expected)
    weight = draw(B, seed=3)
    assert_close(gradients((weight * hmm.log_prob(x)).sum(), tensors), gradients((weight * expected).sum(), tensors))

    filtered = hmm.filter(x)
    assert_close(tuple(filtered), tuple(enumeration.filter(*potentials)))
    posterior = hmm.posterior(x)
    smooth = enumeration.smooth(*potentials, transitions="each")
    assert_close(posterior.marginals, smooth.state_marginals)
    assert_close(posterior.transition_marginals, smooth.transition_marginals)
    assert_close(posterior.entropy(), enumeration.entropy(*potentials))
    assert (posterior.mode == enumeration.viterbi(*potentials).states).all()


@pytest.mark.parametrize("form", FORMS)
def test_more_batch_dimensions_in_the_value_and_fewer(form):
    hmm, _, every = build("bernoulli", form)
    x = torch.stack([data("bernoulli", every), 1 - data("bernoulli", every)])
    assert_close(hmm.log_prob(x), torch.stack([hmm.log_prob(each) for each in x]))
    assert_close(hmm.posterior(x).marginals, torch.stack([hmm.posterior(each).marginals for each in x]))
    one = x[0, 0]
    assert_close(hmm.log_prob(one), hmm.log_prob(one.expand(B, T, 2)) if "B" in form else hmm.log_prob(x)[0, 0])


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["categorical", "multivariate"])
def test_ragged_with_poisoned_padding(kind, form, transitions):
    hmm, tensors, every = build(kind, form, transitions=transitions, lengths=LENGTHS)
    x = data(kind, every)
    observation = emission_logits(kind, every, x)
    beyond = torch.arange(T) >= LENGTHS.unsqueeze(-1)
    poison = -1 if kind == "categorical" else torch.nan
    poisoned = x.masked_fill(beyond[(..., *(None,) * (x.dim() - 2))], poison)

    potentials = (*log_laws(*tensors[:2]), observation)
    expected = enumeration.log_partition(*potentials, lengths=LENGTHS)
    assert_close(hmm.log_prob(poisoned), expected)
    smooth = enumeration.smooth(*potentials, lengths=LENGTHS)
    assert_close(hmm.posterior(poisoned).marginals, smooth.state_marginals)
    assert_close(tuple(hmm.filter(poisoned)), tuple(enumeration.filter(*potentials, lengths=LENGTHS)))
    actual = gradients(hmm.log_prob(poisoned).sum(), tensors)
    assert_close(actual, gradients(expected.sum(), tensors))

    states, drawn = hmm.sample_with_states((5,))
    assert ((states == -1) == beyond).all()
    assert (drawn[:, beyond] == 0).all()
    assert hmm.log_prob(drawn).isfinite().all()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("form", FORMS)
def test_missing_observations(form, lengths):
    hmm, tensors, every = build("multivariate", form, lengths=lengths)
    x = data("multivariate", every)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    observation = torch.where(mask.unsqueeze(-1), emission_logits("multivariate", every, x), 0.0)
    potentials = (*log_laws(*tensors[:2]), observation)
    beyond = torch.zeros(B, T, dtype=torch.bool) if lengths is None else torch.arange(T) >= lengths.unsqueeze(-1)
    missing = x.masked_fill((~mask | beyond).unsqueeze(-1), torch.nan)
    expected = enumeration.log_partition(*potentials, lengths=lengths)
    assert_close(hmm.log_prob(missing, mask=mask), expected)
    assert_close(
        hmm.posterior(missing, mask).marginals, enumeration.smooth(*potentials, lengths=lengths).state_marginals
    )
    assert_close(hmm.filter(missing, mask).log_probs, enumeration.filter(*potentials, lengths=lengths).log_probs)
    assert_close(gradients(hmm.log_prob(missing, mask).sum(), tensors), gradients(expected.sum(), tensors))
    # One sequence under several masks.
    assert_close(hmm.log_prob(x[0], mask)[0], hmm.log_prob(x, mask)[0])
    assert hmm.log_prob(x[0], mask).shape == (B,)
    # Nothing seen: nothing learned.
    nothing = torch.zeros(T, dtype=torch.bool)
    assert_close(hmm.log_prob(x * torch.nan, nothing), torch.zeros(B, dtype=torch.float64))


def test_conditioned_prior():
    unary = draw(B, T, K, seed=5)
    initial, transition = draw(K, seed=1), draw(K, K, seed=2)
    prior = MarkovChain(initial, transition, unary)
    own, every = parameters("normal", "K")
    hmm, x = HiddenMarkovModel(prior, EMISSIONS["normal"][0](*own)), data("normal", every)
    laws = log_laws(initial, transition)
    both = enumeration.log_partition(*laws, unary + emission_logits("normal", every, x))
    assert_close(hmm.log_prob(x), both - enumeration.log_partition(*laws, unary))
    assert hmm.sample().shape == (B, T)
    for method in (hmm.filter, lambda value: hmm.forecast(value, 1), lambda value: hmm.to_discrete_hmm()):
        with pytest.raises(ValueError, match="expected a prior without observation_logits"):
            method(x)


def test_impossible_sequence():
    prior = MarkovChain(torch.zeros(2), torch.eye(2).log(), num_steps=2)
    hmm = HiddenMarkovModel(prior, dist.Categorical(torch.eye(2)))
    x = torch.tensor([[0, 0], [0, 1]])
    # 0.5 a path, and an emission that Categorical keeps just above zero.
    assert_close(hmm.log_prob(x)[0], torch.tensor(math.log(0.5)), tolerance=1e-6)
    logits = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], requires_grad=True)
    hmm = HiddenMarkovModel(prior, dist.Categorical(logits=logits))
    log_prob = hmm.log_prob(x)
    assert log_prob[1] == -torch.inf
    assert hmm.posterior(x).mode.tolist() == [[0, 0], [-1, -1]]
    assert hmm.log_prob(x[1:]).exp().sum() == 0
    forecast = hmm.forecast(x, 2)
    assert not forecast.prior.marginals.isnan().any()
    blocked = MarkovChain(torch.zeros(2), torch.eye(2).log(), torch.full((2, 2), -torch.inf))
    assert HiddenMarkovModel(blocked, dist.Categorical(torch.ones(2, 2))).log_prob(x[0]) == -torch.inf


# Construction: what is the time of the emission.


def test_open_number_of_steps():
    initial, transition = draw(K, seed=1), draw(K, K, seed=2)
    own, every = parameters("normal", "TK", num_steps=4)
    x = data("normal", every, num_steps=4)
    # The emission tells it.
    hmm = HiddenMarkovModel(MarkovChain(initial, transition), EMISSIONS["normal"][0](*own))
    assert hmm.num_steps == 4
    assert hmm.event_shape == (4,)
    assert hmm.sample().shape == (4,)
    assert hmm.mean.shape == (4,)
    expected = enumeration.log_partition(*log_laws(initial, transition), emission_logits("normal", every, x))
    assert_close(hmm.log_prob(x), expected)
    ragged = MarkovChain(initial, transition, lengths=torch.tensor([2, 3]))
    ragged = HiddenMarkovModel(ragged, EMISSIONS["normal"][0](*(value.unsqueeze(0) for value in own)))
    assert ragged.event_shape == (4,)
    assert ragged.sample().shape == (2, 4)
    # Nobody tells it but the value.
    hmm = HiddenMarkovModel(MarkovChain(initial, transition), dist.Normal(torch.zeros(K), 1.0))
    assert hmm.event_shape == (1,)
    assert hmm.log_prob(x).shape == (B,)
    assert hmm.log_prob(x[:, :2]).shape == (B,)
    with pytest.raises(ValueError, match="num_steps: expected a number of steps"):
        hmm.sample()


def test_lengths_shorter_than_the_data():
    prior = MarkovChain(torch.zeros(K), torch.zeros(K, K), lengths=torch.tensor([1, 2]))
    hmm = HiddenMarkovModel(prior, dist.Normal(torch.zeros(K), 1.0))
    x = torch.randn(2, 5)
    assert_close(hmm.log_prob(x), hmm.log_prob(x[:, :2]))
    with pytest.raises(ValueError, match="at least 2 steps, the largest of lengths, in dimension -1, got 1"):
        hmm.log_prob(x[:, :1])


def test_time_varying_can_be_said():
    free = MarkovChain(torch.zeros(K), torch.zeros(K, K))
    loc = torch.tensor([[0.0, 1.0], [5.0, 6.0], [7.0, 8.0]])
    x = torch.randn(3, 4)
    hmm = HiddenMarkovModel(free, dist.Normal(loc, 1.0), time_varying=False)
    assert hmm.batch_shape == (3,)
    each = torch.stack([HiddenMarkovModel(free, dist.Normal(loc[b], 1.0)).log_prob(x[b]) for b in range(3)])
    assert_close(hmm.log_prob(x), each, tolerance=1e-5)
    assert HiddenMarkovModel(free, dist.Normal(loc, 1.0)).event_shape == (3,)
    told = HiddenMarkovModel(
        MarkovChain(torch.zeros(K), torch.zeros(K, K), num_steps=4), hmm.emission, time_varying=False
    )
    assert told.sample((5,)).shape == (5, 3, 4)
    assert told.mean.shape == (3, 4)
    with pytest.raises(RuntimeError):
        told.expand((1,))
    batched = MarkovChain(torch.zeros(5, K), torch.zeros(K, K))
    hmm = HiddenMarkovModel(batched, dist.Normal(loc, 1.0), time_varying=True)
    assert (hmm.batch_shape, hmm.event_shape) == ((5,), (3,))
    # One step that stands for all of them.
    shared = HiddenMarkovModel(free, dist.Normal(loc[:1], 1.0), time_varying=True)
    assert_close(shared.log_prob(x[:, :2]), HiddenMarkovModel(free, dist.Normal(loc[0], 1.0)).log_prob(x[:, :2]))


@pytest.mark.parametrize(
    ("prior_batch", "num_steps", "emission_batch", "time_varying", "message"),
    [
        ((), 3, (4,), None, r"expected batch shape \(..., 2\) that ends in the prior's 2 states, got \(4,\)"),
        ((), 3, (), None, r"got \(\)"),
        ((), 3, (2,), True, r"expected batch shape \(..., T, 2\)"),
        ((), 3, (4, 2), None, r"expected batch shape \(..., 3, 2\), .* got \(4, 2\); see the argument time_varying"),
        ((5,), 3, (3, 2), None, r"broadcasts with the prior's \(5,\), got \(3, 2\), read as \(..., K\); see"),
        ((5,), 3, (4, 3, 2), None, r"broadcasts with the prior's \(5,\), got \(4, 3, 2\), read as \(..., T, K\)"),
    ],
)
def test_emission_that_does_not_fit(prior_batch, num_steps, emission_batch, time_varying, message):
    prior = MarkovChain(torch.zeros(*prior_batch, 2), torch.zeros(2, 2), num_steps=num_steps)
    with pytest.raises(ValueError, match=f"emission: .*{message}"):
        HiddenMarkovModel(prior, dist.Normal(torch.zeros(emission_batch), 1.0), time_varying=time_varying)


def test_bad_values():
    hmm, _, every = build("bernoulli", "K")
    x = data("bernoulli", every)
    with pytest.raises(ValueError, match=r"value: expected shape \(..., T, 2\), got \(2, 3, 1\)"):
        hmm.log_prob(x[..., :1])
    with pytest.raises(ValueError, match=r"value: expected shape \(..., T, 2\), got \(2,\)"):
        hmm.log_prob(x[0, 0])
    with pytest.raises(ValueError, match="value: expected 3 steps in dimension -2, got 2"):
        hmm.log_prob(x[:, :2])
    with pytest.raises(ValueError, match="within the support"):
        hmm.log_prob(x + 0.5)
    with pytest.raises(TypeError, match=r"mask: expected a bool tensor, got torch.float32"):
        hmm.log_prob(x, torch.ones(3))
    with pytest.raises(ValueError, match=r"mask: expected shape \(..., 3\), got \(2,\)"):
        hmm.log_prob(x, torch.tensor([True, False]))


# Sampling and moments.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EMISSIONS)
def test_sample_shapes(kind, form):
    hmm, _, every = build(kind, form)
    torch.manual_seed(0)
    states, x = hmm.sample_with_states((4, 5))
    assert states.shape == (4, 5, *hmm.batch_shape, T)
    assert x.shape == hmm.shape((4, 5))
    assert hmm().shape == hmm.shape()
    assert x.dtype == data(kind, every).dtype
    assert not x.requires_grad
    assert hmm.log_prob(x).shape == (4, 5, *hmm.batch_shape)


@pytest.mark.parametrize("form", ["K", "TK"])
def test_sample_frequencies(form):
    hmm, tensors, every = build("categorical", form)
    num_draws, num_symbols = 40_000, 3
    torch.manual_seed(1)
    states, x = hmm.sample_with_states((num_draws,))
    # All pairs of a path and a sequence: 2^3 * 3^3.
    sequences, paths = enumeration.paths(num_symbols, T), enumeration.paths(K, T)
    laws = []
    for z in paths:
        prior = tensors[0].log_softmax(-1)[z[0]] + tensors[1].log_softmax(-1)[0, z[:-1], z[1:]].sum()
        symbols = every[0][0].log_softmax(-1)[torch.arange(T), z]  # (T, symbols)
        laws.append(prior + symbols[torch.arange(T), sequences].sum(-1))
    probs = torch.stack(laws).exp().flatten().detach()
    assert math.isclose(probs.sum(), 1.0)
    digits = torch.tensor([1, 1, 1]).cumsum(0).flip(0) - 1
    code = (states * K**digits).sum(-1) * num_symbols**T + (x * num_symbols**digits).sum(-1)
    counts = torch.bincount(code, minlength=len(probs))
    deviation = (counts - num_draws * probs) / (num_draws * probs * (1 - probs)).sqrt()
    # The largest of 216 standard normals; with few expected counts the tail is a little longer.
    assert deviation.abs().max() < 4.5
    # And the sequences alone, against log_prob.
    assert_close(hmm.log_prob(sequences).exp().detach(), probs.reshape(len(paths), -1).sum(0))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["normal", "bernoulli", "multivariate", "matrix"])
def test_mean_and_variance(kind, form, lengths):
    hmm, tensors, every = build(kind, form, lengths=lengths)
    unary = torch.zeros(B, T, K, dtype=torch.float64)
    weight = enumeration.smooth(*log_laws(*tensors[:2]), unary, lengths=lengths).state_marginals
    given = EMISSIONS[kind][0](*every)
    weight = weight[(..., *(None,) * len(given.event_shape))]
    mean = (weight * given.mean).sum(2)
    variance = (weight * (given.variance + given.mean**2)).sum(2) - mean**2
    full = (*hmm.batch_shape, *hmm.event_shape)
    assert hmm.mean.shape == hmm.variance.shape == full
    assert_close(hmm.mean.expand(mean.shape), mean)
    assert_close(hmm.variance.expand(mean.shape), variance)
    assert_close(hmm.stddev, hmm.variance.sqrt())


# Forecasts, against log p(past, future) - log p(past).


FUTURE = 2


def joint(initial, transition, observation):
    """log p of whole sequences; a time-varying transition has one matrix a step."""
    return enumeration.log_partition(*log_laws(initial, transition), observation)


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0]), torch.tensor([1, 2])])
@pytest.mark.parametrize("form", ["K", "BK"])
def test_forecast(form, lengths):
    hmm, tensors, every = build("normal", form, lengths=lengths)
    past, future = draw(B, T, seed=8), draw(B, FUTURE, seed=9)
    poisoned = past.clone()
    each = [T] * B if lengths is None else lengths.tolist()
    for b, length in enumerate(each):
        poisoned[b, length:] = torch.nan
    law = hmm.forecast(poisoned, FUTURE)
    assert law.event_shape == (FUTURE,)
    assert law.batch_shape == (B,)
    longer = [value[:, :1].expand(B, T + FUTURE, K) for value in every]
    initial, transition = tensors[0].expand(B, K), tensors[1].expand(B, 1, K, K)
    expected, first = [], []
    for b, length in enumerate(each):
        whole = torch.cat([past[b, :length], future[b]]).unsqueeze(0)
        logits = emission_logits("normal", [value[b : b + 1] for value in longer], whole)
        before = joint(initial[b], transition[b], logits[:, :length]) if length else 0.0
        expected.append(joint(initial[b], transition[b], logits) - before)
        seen = logits[0].index_fill(0, torch.arange(length, length + FUTURE), 0.0)
        first.append(enumeration.smooth(*log_laws(initial[b], transition[b]), seen).state_marginals[length:])
    expected, first = torch.cat(expected), torch.stack(first)
    assert_close(law.log_prob(future), expected)
    assert_close(law.prior.marginals, first)
    assert_close(gradients(law.log_prob(future).sum(), tensors), gradients(expected.sum(), tensors))
    assert_close(law.mean, (first * longer[0][:, :FUTURE]).sum(-1))
    assert law.sample((4,)).shape == (4, B, FUTURE)


@pytest.mark.parametrize("form", ["TK", "BTK"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 1])])
def test_forecast_with_a_time_varying_future(form, lengths):
    hmm, tensors, every = build("bernoulli", form, transitions="each", lengths=lengths)
    past, future = data("bernoulli", every), torch.tensor([[[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]]).double()
    next_transition = draw(B, FUTURE, K, K, seed=11)
    next_logits = draw(*FORMS[form][:-2], FUTURE, K, 2, seed=12)
    law = hmm.forecast(
        past, FUTURE, transition_logits=next_transition, emission=dist.Bernoulli(logits=next_logits).to_event(1)
    )
    assert (law.batch_shape, law.event_shape) == ((B,), (FUTURE, 2))
    expected = []
    for b, length in enumerate([T] * B if lengths is None else lengths.tolist()):
        initial = tensors[0].expand(B, K)[b]
        transition = tensors[1].expand(B, T - 1, K, K)[b, : length - 1]
        seen = emission_logits("bernoulli", [every[0][b : b + 1]], past[b : b + 1])[:, :length]
        coming = emission_logits("bernoulli", [next_logits.expand(B, FUTURE, K, 2)[b : b + 1]], future[b : b + 1])
        whole = joint(initial, torch.cat([transition, next_transition[b]]), torch.cat([seen, coming], 1))
        expected.append(whole - joint(initial, transition, seen))
    assert_close(law.log_prob(future), torch.cat(expected))


def test_forecast_with_missing_observations_and_more_sequences():
    hmm, tensors, _ = build("normal", "K")
    past, future = draw(5, B, T, seed=8), draw(5, B, FUTURE, seed=9)
    mask = torch.tensor([True, False, True])
    law = hmm.forecast(past, FUTURE, mask=mask)
    assert law.batch_shape == (5, B)
    long = MarkovChain(*tensors[:2], num_steps=T + FUTURE)
    long = HiddenMarkovModel(long, hmm.emission)
    whole = torch.cat([past, future], -1)
    seen = torch.cat([mask, torch.ones(FUTURE, dtype=torch.bool)])
    assert_close(law.log_prob(future), long.log_prob(whole, seen) - hmm.log_prob(past, mask))


def test_forecast_from_nothing_is_the_prior():
    hmm = HiddenMarkovModel(MarkovChain(draw(K), draw(K, K)), dist.Normal(draw(K), 1.0))
    law = hmm.forecast(torch.zeros(0).double(), 3)
    x = draw(3, seed=4)
    assert_close(law.log_prob(x), hmm.log_prob(x))


def test_forecast_is_refused():
    hmm, _, every = build("bernoulli", "TK", transitions="each")
    x = data("bernoulli", every)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        hmm.forecast(x, 0)
    with pytest.raises(ValueError, match=r"transition_logits: expected \(..., steps, K, K\), since they differ"):
        hmm.forecast(x, 2)
    with pytest.raises(ValueError, match=r"transition_logits: expected \(..., 2, K, K\), got \(1, 2, 2\)"):
        hmm.forecast(x, 2, transition_logits=torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"emission: expected batch shape \(..., steps, K\), since it differs"):
        hmm.forecast(x, 2, transition_logits=torch.zeros(2, 2, 2).double())
    with pytest.raises(ValueError, match=r"emission: expected batch shape \(..., 2, 2\)"):
        hmm.forecast(x, 2, transition_logits=torch.zeros(2, 2, 2).double(), emission=dist.Normal(torch.zeros(3, 2), 1))


# Pyro's DiscreteHMM.


@pytest.mark.parametrize("duration", [None, T])
@pytest.mark.parametrize("transitions", [(), (1,), (T,), (B, 1), (B, T)])
@pytest.mark.parametrize("emissions", [(), (1,), (T,), (B, T)])
def test_from_discrete_hmm(duration, transitions, emissions):
    tensors = (draw(K, seed=1), draw(*transitions, K, K, seed=2), draw(*emissions, K, 2, seed=3))
    for tensor in tensors:
        tensor.requires_grad_()
    emission = dist.Normal(tensors[2], 1.0).to_event(1)
    theirs = dist.DiscreteHMM(tensors[0], tensors[1], emission, duration=duration)
    ours = HiddenMarkovModel.from_discrete_hmm(theirs)
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
    x = draw(B, T, 2, seed=4)
    assert_close(ours.log_prob(x), theirs.log_prob(x))
    weight = draw(B, seed=5)
    actual, expected = ((weight * hmm.log_prob(x)).sum() for hmm in (ours, theirs))
    assert_close(gradients(actual, tensors), gradients(expected, tensors))
    # The law of the last state.
    last = ours.filter(x).log_probs[:, -1]
    assert_close(last, theirs.filter(x).logits.log_softmax(-1))
    assert_close(HiddenMarkovModel.from_discrete_hmm(theirs.expand((3, B))).log_prob(x), ours.log_prob(x).expand(3, B))


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("form", ["K", "TK", "BTK"])
@pytest.mark.parametrize("kind", ["normal", "bernoulli", "categorical"])
def test_to_discrete_hmm(kind, form, transitions):
    ours, tensors, every = build(kind, form, transitions=transitions)
    theirs = ours.to_discrete_hmm()
    assert theirs.batch_shape == ours.batch_shape
    assert theirs.event_shape == ours.event_shape
    x = data(kind, every)
    assert_close(theirs.log_prob(x), ours.log_prob(x))
    assert_close(gradients(theirs.log_prob(x).sum(), tensors), gradients(ours.log_prob(x).sum(), tensors))
    back = HiddenMarkovModel.from_discrete_hmm(theirs)
    assert_close(back.log_prob(x), ours.log_prob(x))
    assert_close(back.prior.marginals, ours.prior.marginals)
    assert theirs.sample((2,)).shape == ours.sample((2,)).shape


def test_to_discrete_hmm_is_refused():
    with pytest.raises(ValueError, match="DiscreteHMM has none"):
        build("normal", "K", lengths=LENGTHS)[0].to_discrete_hmm()
    with pytest.raises(ValueError, match=r"expected an emission of batch shape \(K,\) or \(..., T, K\), got \(2, 2\)"):
        build("normal", "BK")[0].to_discrete_hmm()
    with pytest.raises(ValueError, match="num_steps"):
        build("normal", "K", num_steps=None)[0].to_discrete_hmm()


# What torch and Pyro expect of a distribution.


def test_class_attributes():
    assert not HiddenMarkovModel.has_enumerate_support
    assert HiddenMarkovModel.arg_constraints == {}
    assert torch.distributions.constraints.is_dependent(HiddenMarkovModel.support)
    for kind, discrete in (("normal", False), ("matrix", False), ("categorical", True), ("bernoulli", True)):
        hmm, _, every = build(kind, "BTK")
        assert hmm.support.is_discrete == discrete
        assert hmm.support.event_dim == hmm.event_dim == len(hmm.event_shape)
        assert hmm.support.check(data(kind, every)).shape == (B,)
        assert hmm.support.check(hmm.sample()).all()
        assert not hmm.has_enumerate_support
        assert not hmm.has_rsample
    positive = HiddenMarkovModel(MarkovChain(torch.zeros(2), torch.zeros(2, 2)), dist.Gamma(torch.ones(2), 1.0))
    assert (transform_to(positive.support)(torch.randn(4)) > 0).all()


def test_repr():
    prior = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=3)
    assert repr(HiddenMarkovModel(prior, dist.Normal(torch.zeros(2), torch.ones(2)))) == (
        "HiddenMarkovModel(MarkovChain(initial_logits: torch.Size([2]), transition_logits: torch.Size([1, 2, 2])), "
        "Normal(loc: torch.Size([2]), scale: torch.Size([2])))"
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda hmm: pickle.loads(pickle.dumps(hmm))])
def test_copies(copied):
    prior = MarkovChain(draw(K), draw(K, K), lengths=LENGTHS)
    hmm = HiddenMarkovModel(prior, dist.Normal(draw(K), 1.0).expand((1, T, K)))
    x = hmm.sample()
    assert_close(copied(hmm).log_prob(x), hmm.log_prob(x))


@pytest.mark.parametrize("form", FORMS)
def test_expand(form):
    hmm, _, _ = build("bernoulli", form, lengths=LENGTHS)
    x = hmm.sample((2,))
    for expanded in (hmm.expand((3, B)), hmm.expand((1, B)).expand((3, B)), hmm.expand_by((3,))):
        assert expanded.batch_shape == (3, B)
        assert expanded.event_shape == hmm.event_shape
        assert_close(expanded.log_prob(x.unsqueeze(1)), hmm.log_prob(x).unsqueeze(1).expand(2, 3, B))
        assert expanded.sample((4,)).shape == (4, 3, B, T, 2)
        assert expanded.posterior(x.unsqueeze(1)).batch_shape == (2, 3, B)
        assert_close(expanded.mean, hmm.mean.expand(3, B, T, 2))
        assert expanded.forecast(
            x[0], 1, emission=dist.Bernoulli(torch.full((1, K, 2), 0.5)).to_event(1)
        ).batch_shape == (3, B)
    with pytest.raises(RuntimeError):
        hmm.expand((5,))


def test_to_event_and_mask():
    hmm, _, every = build("bernoulli", "BTK")
    x = data("bernoulli", every)
    each = hmm.log_prob(x)
    event = hmm.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((), (B, T, 2))
    assert_close(event.log_prob(x), each.sum())
    mask = torch.tensor([True, False])
    assert_close(hmm.mask(mask).log_prob(x), torch.where(mask, each, 0.0))
    assert_close(hmm.mask(True).log_prob(x), each)
    assert hmm.mask(False).log_prob(x).tolist() == [0.0, 0.0]
    assert hmm.mask(mask).expand((3, B)).log_prob(x).shape == (3, B)


def test_validation_is_the_emissions():
    prior = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=2)
    strict = HiddenMarkovModel(prior, dist.Poisson(torch.ones(2)))
    with pytest.raises(ValueError, match="within the support"):
        strict.log_prob(torch.tensor([0.5, 1.0]))
    lenient = HiddenMarkovModel(prior, dist.Poisson(torch.ones(2), validate_args=False), validate_args=False)
    assert lenient.log_prob(torch.tensor([0.5, 1.0])).isfinite()
    assert not lenient.expand((3,))._validate_args


@pytest.mark.parametrize("dim", [-1, -2])
def test_sample_site_in_a_subsampled_plate(dim):
    lengths = torch.tensor([1, 4, 2, 3, 4, 4])
    x = draw(6, 4, seed=1).masked_fill(torch.arange(4) >= lengths.unsqueeze(-1), torch.nan)
    initial, transition, loc = draw(K, seed=2), draw(K, K, seed=3), draw(K, seed=4)

    def model():
        with pyro.plate("sequences", 6, subsample_size=4, dim=dim) as index:
            shape = (4,) + (1,) * (-1 - dim)
            prior = MarkovChain(initial, transition, lengths=lengths[index].view(shape))
            pyro.sample("x", HiddenMarkovModel(prior, dist.Normal(loc, 1.0)), obs=x[index].view(*shape, 4))
        return index

    torch.manual_seed(0)
    trace = poutine.trace(model).get_trace()
    index = trace.nodes["_RETURN"]["value"]
    expected = torch.zeros(1).double()
    for i in index:
        value = x[i : i + 1, : lengths[i]]
        parts = [loc.expand(1, value.shape[1], K), torch.zeros(1, value.shape[1], K)]
        expected += joint(initial, transition, emission_logits("normal", parts, value))
    assert_close(trace.log_prob_sum(), expected.squeeze() * 6 / 4)


def test_latent_site_and_predictive():
    prior = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=5)

    def model():
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("x", HiddenMarkovModel(prior, dist.Normal(torch.zeros(2), 1.0)))

    assert poutine.trace(model).get_trace().nodes["x"]["value"].shape == (2, 3, 5)
    assert Predictive(model, num_samples=7)()["x"].shape == (7, 2, 3, 5)
    assert Predictive(model, num_samples=7, parallel=True)()["x"].shape == (7, 2, 3, 5)
    # A continuous latent, so that continuous guides take it.
    assert AutoNormal(model)()["x"].shape == (2, 3, 5)
    assert math.isfinite(Trace_ELBO().loss(model, AutoNormal(model)))


def gaussian_program(x):
    """A program whose emission means are latent, with the data's plate."""
    prior = MarkovChain(torch.zeros(2).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), num_steps=x.shape[1])
    wide = dist.Normal(torch.tensor(0.0).double(), 10.0)

    def model():
        loc = pyro.sample("loc", wide.expand((2,)).to_event(1))
        with pyro.plate("sequences", len(x)):
            # Vectorised particles: loc is (particles, 1, K), which without a word would be read as (..., T, K).
            hmm = HiddenMarkovModel(prior, dist.Normal(loc, 1.0), time_varying=False)
            pyro.sample("x", hmm, obs=x)

    def log_joint(loc):
        hmm = HiddenMarkovModel(prior, dist.Normal(loc, 1.0))
        return hmm.log_prob(x).sum() + wide.log_prob(loc).sum()

    return model, log_joint


def test_vectorized_particles():
    model, log_joint = gaussian_program(draw(4, 5, seed=6))
    locs = draw(3, 2, seed=7)

    def guide():
        # A draw that depends on the particle and is known: the first particles of the plate take the first rows.
        pyro.sample("loc", dist.Delta(locs.unsqueeze(1), event_dim=1))

    particles = pyro.plate("particles", 3, dim=-2)
    trace = poutine.trace(
        poutine.replay(particles(model), trace=poutine.trace(particles(guide)).get_trace())
    ).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (3, 4)
    total = trace.nodes["x"]["log_prob"].sum(-1) + trace.nodes["loc"]["log_prob"].squeeze(-1)
    assert_close(total, torch.stack([log_joint(loc) for loc in locs]))

    delta = AutoDelta(model)
    one = Trace_ELBO().loss(model, delta)
    vectorized = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1).loss(model, delta)
    assert math.isclose(one, vectorized, rel_tol=1e-10)
    assert math.isclose(one, -log_joint(pyro.param("AutoDelta.loc").detach()), rel_tol=1e-10)


def test_traceenum_elbo_leaves_it_alone():
    model, _ = gaussian_program(draw(4, 5, seed=6))
    delta = AutoDelta(model)
    expected = Trace_ELBO().loss(model, delta)
    with pytest.warns(UserWarning, match="found no sample sites configured for enumeration"):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model, default="parallel"), delta)
    assert math.isclose(loss, expected, rel_tol=1e-10)


def test_svi_learns_the_parameters():
    torch.manual_seed(0)
    truth = HiddenMarkovModel(
        MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), num_steps=30),
        dist.Normal(torch.tensor([-2.0, 2.0]), 0.5),
    )
    x = truth.sample((30,))

    def model(x):
        initial = pyro.param("initial", torch.zeros(2))
        transition = pyro.param("transition", torch.zeros(2, 2))
        loc = pyro.param("loc", torch.tensor([-0.5, 0.5]))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        hmm = HiddenMarkovModel(MarkovChain(initial, transition, num_steps=30), dist.Normal(loc, scale))
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", hmm, obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(100)]
    assert losses[-1] < losses[0]
    # Exact marginalisation: the loss is minus the log-likelihood, which the fit exceeds that of the truth in.
    assert losses[-1] < -truth.log_prob(x).sum()
    assert_close(pyro.param("loc").detach(), torch.tensor([-2.0, 2.0]), tolerance=0.05)
    stay = pyro.param("transition").softmax(-1).diagonal().detach()
    assert_close(stay, torch.full((2,), 0.8808), tolerance=0.05)
