"""MarkovChain, held to the list of all paths, and to what torch and Pyro expect of a distribution."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch.distributions import kl_divergence

from pyrohmm import HiddenMarkovModel, MarkovChain
from pyrohmm.testing import assert_close_to_oracle as assert_close
from pyrohmm.testing import enumeration, random_chain
from pyrohmm.testing.strategies import chains
from tests.distributions.brute_force import as_law, path_laws

examples = settings(max_examples=50, derandomize=True)

RAGGED = torch.tensor([3, 0, 4, 1])


def build(raw, observed=True):
    return MarkovChain(*raw.logits[: 3 if observed else 2], lengths=raw.lengths, num_steps=raw.logits[2].shape[-2])


def unobserved(raw):
    return raw._replace(observation_logits=torch.zeros_like(raw.observation_logits))


def some_chain(batch_shape=(4,), *, transitions="each", lengths=RAGGED, seed=0, **kwargs):
    return random_chain(
        3, 4, batch_shape, transitions=transitions, lengths=lengths, poison=lengths is not None, seed=seed, **kwargs
    )


def padded(paths, num_steps):
    return torch.nn.functional.pad(paths, (0, num_steps - paths.shape[-1]))


def weighted_sum(result, seed=7):
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed), dtype=result.dtype)
    return (weight * result).sum()


def gradients(function, raw):
    return torch.autograd.grad(function, raw.logits, retain_graph=True, allow_unused=True, materialize_grads=True)


# Values, against the list of all paths.


@examples
@given(raw=chains(max_steps=4))
def test_log_prob_of_every_path(raw):
    chain = build(raw)
    num_steps = raw.observation_logits.shape[-2]
    for n, (paths, expected) in enumerate(path_laws(as_law(raw))):
        value = padded(paths, num_steps).reshape(-1, *(1,) * len(chain.batch_shape), num_steps)
        log_prob = chain.log_prob(value).reshape(len(paths), -1)[:, n]
        assert_close(log_prob, expected)
        assert math.isclose(log_prob.exp().sum(), 1.0 if chain.log_normalizer.flatten()[n] > -torch.inf else 0.0)


@examples
@given(raw=chains())
def test_decoding_marginals_and_entropy(raw):
    chain, law = build(raw), as_law(raw)
    oracle = {"lengths": law.lengths}
    log_z = enumeration.log_partition(*law.logits, **oracle)
    normalizer = torch.where(log_z > -torch.inf, log_z, 0.0)
    assert_close(chain.log_normalizer, log_z)

    states, log_prob = chain.viterbi()
    assert_close(log_prob, enumeration.viterbi(*law.logits, **oracle).log_prob - normalizer)
    # Equally probable paths may be told in any order, so the path is judged by its probability.
    assert_close(chain.log_prob(states), log_prob)
    assert (chain.mode == states).all()
    several = chain.k_best(3)
    assert_close(several.log_prob, enumeration.k_best(*law.logits, 3, **oracle).log_prob - normalizer.unsqueeze(-1))

    smooth = enumeration.smooth(*law.logits, **oracle, transitions="each")
    assert_close(chain.marginals, smooth.state_marginals)
    assert_close(chain.transition_marginals, smooth.transition_marginals)
    assert_close(chain.entropy(), enumeration.entropy(*law.logits, **oracle))


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
@pytest.mark.parametrize("observed", [True, False])
def test_without_unary_potentials_and_with(transitions, observed):
    raw = some_chain((2,), transitions=transitions, lengths=None)
    chain = build(raw, observed)
    law = as_law(raw if observed else unobserved(raw))
    for n, (paths, expected) in enumerate(path_laws(law)):
        assert_close(chain.log_prob(paths.unsqueeze(1))[:, n], expected)
    assert_close(chain.log_normalizer, enumeration.log_partition(*law.logits))
    assert_close(chain.entropy(), enumeration.entropy(*law.logits))


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("impossible", [0.0, 0.2])
def test_gradients(transitions, impossible):
    raw = some_chain(transitions=transitions, impossible=impossible).requires_grad()
    chain, law = build(raw), as_law(raw)
    log_z = enumeration.log_partition(*law.logits, lengths=law.lengths)
    possible = log_z > -torch.inf
    assert possible.sum() > 1

    value = chain.viterbi().states
    actual = chain.log_prob(value)[possible]
    expected = torch.stack(
        [
            law[(paths == value[n, : paths.shape[-1]]).all(-1)].squeeze()
            for n, (paths, law) in enumerate(path_laws(law))
            if possible[n]
        ]
    )
    assert_close(gradients(weighted_sum(actual), raw), gradients(weighted_sum(expected), raw))

    for actual, expected in [
        (chain.entropy(), enumeration.entropy(*law.logits, lengths=law.lengths)),
        (chain.marginals, enumeration.smooth(*law.logits, lengths=law.lengths).state_marginals),
    ]:
        assert_close(gradients(weighted_sum(actual), raw), gradients(weighted_sum(expected), raw))


def test_log_prob_gradient_does_not_expand_a_shared_matrix_over_time():
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    path = torch.tensor([0, 0, 1, 1, 1, 0])
    MarkovChain(logits[0], logits, num_steps=6).log_prob(path).backward()
    # Three leave state 1 (1 1 0), two leave state 0 (0 1); the first state is 0. Each row pays softmax times visits.
    assert_close(
        logits.grad,
        torch.tensor([[0.0, 0.0], [1 - 1.5, 2 - 1.5]], dtype=torch.float64) + torch.tensor([[0.5, -0.5], [0.0, 0.0]]),
    )


def test_length_zero_and_no_steps():
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), lengths=torch.tensor([0, 0]))
    assert chain.num_steps == 0
    empty = torch.zeros(2, 0, dtype=torch.int64)
    assert chain.log_prob(empty).tolist() == [0.0, 0.0]
    assert chain.sample().shape == (2, 0)
    assert chain.entropy().tolist() == [0.0, 0.0]


# Impossible paths, rows without a possible transition, sequences without a possible path.


def test_forbidden_transition_is_an_impossible_path():
    stay = torch.eye(2).log()
    chain = MarkovChain(torch.zeros(2), stay, num_steps=3)
    assert_close(chain.log_prob(torch.tensor([[0, 0, 0], [0, 1, 1]])).exp(), torch.tensor([0.5, 0.0]))


def test_row_without_a_transition_conditions_on_staying_out_of_it():
    dead_end = torch.tensor([[0.5, 0.5], [0.0, 0.0]], dtype=torch.float64).log()
    chain = MarkovChain(torch.zeros(2, dtype=torch.float64), dead_end, num_steps=3)
    # Of 000 and 001 only: entering state 1 before the end leads nowhere.
    laws = chain.log_prob(enumeration.paths(2, 3)).exp()
    assert_close(laws, torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0], dtype=torch.float64))
    assert set(map(tuple, chain.sample((50,)).tolist())) == {(0, 0, 0), (0, 0, 1)}
    assert_close(chain.entropy(), torch.tensor(math.log(2), dtype=torch.float64))
    assert_close(chain.viterbi().log_prob.exp(), torch.tensor(0.5, dtype=torch.float64))


def test_no_possible_path():
    unary = torch.zeros(2, 3, 2)
    unary[1, 1] = -torch.inf
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), unary)
    assert chain.log_normalizer[1] == -torch.inf
    decoded = chain.viterbi()
    assert decoded.states[1].tolist() == [-1, -1, -1]
    assert chain.sample()[1].tolist() == [-1, -1, -1]
    # What decoding returns can be scored, with validation on.
    assert chain.log_prob(decoded.states)[1] == -torch.inf
    assert chain.marginals[1].sum() == 0
    assert chain.entropy()[1] == 0
    assert kl_divergence(chain, chain).tolist() == [0.0, 0.0]
    free = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=3)
    assert kl_divergence(free, chain).tolist() == [0.0, torch.inf]
    assert kl_divergence(chain, MarkovChain(torch.zeros(2), torch.zeros(2, 2), torch.ones(3, 2)))[1] == 0.0


# Construction.


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
@pytest.mark.parametrize("impossible", [0.0, 0.2])
def test_from_potentials(transitions, impossible):
    raw = some_chain(transitions=transitions, impossible=impossible, seed=3).requires_grad()
    chain = MarkovChain.from_potentials(*raw.logits, lengths=raw.lengths)
    smooth = enumeration.smooth(*raw.logits, lengths=raw.lengths, transitions="each")
    entropy = enumeration.entropy(*raw.logits, lengths=raw.lengths)
    assert_close(chain.marginals, smooth.state_marginals)
    assert_close(chain.transition_marginals, smooth.transition_marginals)
    assert_close(chain.entropy(), entropy)
    assert_close(chain.log_normalizer == -torch.inf, smooth.log_partition == -torch.inf)
    assert_close(gradients(weighted_sum(chain.entropy()), raw), gradients(weighted_sum(entropy), raw))


def test_from_potentials_of_one_step():
    chain = MarkovChain.from_potentials(torch.tensor([1.0, 2.0]), torch.ones(2, 2), torch.tensor([[3.0, 1.0]]))
    assert_close(chain.marginals, torch.tensor([[4.0, 3.0]]).softmax(-1), tolerance=1e-6)


def test_padding_is_never_read():
    clean = some_chain(lengths=None)
    ragged = clean._replace(lengths=RAGGED)
    poisoned = build(some_chain())
    assert any(logits.isnan().any() for logits in some_chain().logits)
    reference = build(ragged)
    value = torch.zeros(4, 4, dtype=torch.int64)
    assert_close(poisoned.log_prob(value), reference.log_prob(value))
    assert_close(
        poisoned.log_prob(value.double().masked_fill(reference.marginals.sum(-1) == 0, torch.nan)),
        reference.log_prob(value),
    )
    assert not any(parameter.isnan().any() for parameter in poisoned.potentials)


def test_open_number_of_steps():
    initial, transition = torch.randn(2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    chain = MarkovChain(initial, transition)
    assert chain.event_shape == (1,)
    for num_steps in (1, 2, 4):
        paths = enumeration.paths(2, num_steps)
        assert_close(chain.log_prob(paths), MarkovChain(initial, transition, num_steps=num_steps).log_prob(paths))
    with pytest.raises(ValueError, match="num_steps: expected a number of steps"):
        chain.sample()
    with pytest.raises(ValueError, match="num_steps"):
        _ = chain.marginals


def test_lengths_alone_leave_the_number_of_steps_open_upwards():
    lengths = torch.tensor([2, 3])
    chain = MarkovChain(torch.zeros(2), torch.eye(2), lengths=lengths)
    assert chain.event_shape == (3,)
    assert chain.num_steps == 3
    assert chain.sample().shape == (2, 3)
    path = torch.tensor([[0, 1, 9, 9, 9], [1, 1, 0, 9, 9]])
    assert_close(chain.log_prob(path), chain.log_prob(path[:, :3]))
    with pytest.raises(ValueError, match="at least 3 steps, the largest of lengths, in dimension -1, got 2"):
        chain.log_prob(path[:, :2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0, 0.0], torch.zeros(2, 2)), TypeError, "initial_logits: expected a tensor, got list"),
        ((torch.zeros(2), None), TypeError, "transition_logits: expected a tensor, got NoneType"),
        ((torch.zeros(2), torch.zeros(2)), ValueError, "transition_logits: expected at least 2"),
        ((torch.zeros(()), torch.zeros(1, 1)), ValueError, "initial_logits: expected at least 1"),
        ((torch.zeros(2), torch.zeros(3, 3)), ValueError, r"transition_logits: expected last dimensions \(2, 2\)"),
        ((torch.zeros(2), torch.zeros(2, 2), torch.zeros(3)), ValueError, "observation_logits: expected at least 2"),
        ((torch.zeros(2), torch.zeros(2, 2, 2), torch.zeros(4, 2)), ValueError, "disagree on the number of steps"),
        ((torch.tensor([0.0, torch.nan]), torch.zeros(2, 2)), ValueError, "initial_logits: expected no NaN"),
        ((torch.zeros(2), torch.full((2, 2), torch.inf)), ValueError, "transition_logits: expected no NaN and no"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MarkovChain(*arguments)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"num_steps": -1}, ValueError, "num_steps: expected an integer >= 0, got -1"),
        ({"num_steps": 2.0}, ValueError, "num_steps: expected an integer >= 0, got 2.0"),
        ({"num_steps": 3, "lengths": torch.tensor([2, 4])}, ValueError, r"lengths: expected values in 0..3, got 4"),
        ({"lengths": torch.tensor([2, -1])}, ValueError, "lengths: expected values in 0..2, got -1"),
        ({"lengths": [2, 3]}, TypeError, "lengths: expected a tensor, got list"),
        ({"lengths": torch.tensor([2.0])}, TypeError, "lengths: expected an int64 tensor"),
    ],
)
def test_bad_keywords(keywords, error, message):
    with pytest.raises(error, match=message):
        MarkovChain(torch.zeros(2), torch.zeros(2, 2), **keywords)


def test_bad_values():
    chain = MarkovChain(torch.zeros(2, 3), torch.zeros(3, 3), num_steps=2)
    with pytest.raises(ValueError, match=r"value: expected 2 steps in dimension -1, got 3"):
        chain.log_prob(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"value: expected states in 0..2, got \[0, 3\] at index \(1,\)"):
        chain.log_prob(torch.tensor([[0, 0], [0, 3]]))
    with pytest.raises(ValueError, match=r"value: expected shape \(\.\.\., T\)"):
        chain.log_prob(torch.tensor(0))
    with pytest.raises(ValueError, match="k: expected a positive integer"):
        chain.k_best(0)


def test_validate_args_off_scores_what_is_no_path():
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=2, validate_args=False)
    assert_close(chain.log_prob(torch.tensor([[0, 1], [0, 2], [-1, 0]])).exp(), torch.tensor([0.25, 0.0, 0.0]))
    # Expanding keeps the choice.
    assert chain.expand((3,)).log_prob(torch.tensor([0, 5])).tolist() == [-torch.inf] * 3


# Sampling.


def test_sample_shapes_and_padding():
    chain = build(some_chain())
    states = chain.sample((5, 2))
    assert states.shape == (5, 2, 4, 4)
    assert states.dtype == torch.int64
    beyond = torch.arange(4) >= RAGGED.unsqueeze(-1)
    assert ((states == -1) == beyond).all()
    assert chain().shape == chain.shape()
    assert chain.log_prob(states).isfinite().all()


def test_sample_with_generator_repeats():
    chain = build(some_chain())
    before = torch.random.get_rng_state()
    first, second = (chain.sample((3,), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert (first == second).all()
    assert (torch.random.get_rng_state() == before).all()


@pytest.mark.parametrize("observed", [True, False])
def test_sample_frequencies(observed):
    raw = random_chain(2, 3, seed=2)
    chain = build(raw, observed)
    num_draws = 20_000
    states = chain.sample((num_draws,), generator=torch.Generator().manual_seed(0))
    probs = chain.log_prob(enumeration.paths(2, 3)).exp()
    counts = torch.bincount((states * torch.tensor([4, 2, 1])).sum(-1), minlength=8)
    deviation = (counts - num_draws * probs) / (num_draws * probs * (1 - probs)).sqrt()
    assert deviation.abs().max() < 4


# Expansion.


def test_expand_and_expand_again():
    raw = some_chain()
    chain = build(raw)
    value = chain.sample((2,))
    for expanded in (chain.expand((3, 4)), chain.expand((1, 4)).expand((3, 4)), chain.expand_by((3,))):
        assert expanded.batch_shape == (3, 4)
        assert expanded.event_shape == chain.event_shape
        assert_close(expanded.log_prob(value.unsqueeze(1)), chain.log_prob(value).unsqueeze(1).expand(2, 3, 4))
        assert expanded.sample((2,)).shape == (2, 3, 4, 4)
        for name in ("marginals", "transition_marginals", "mode", "log_normalizer"):
            expected = getattr(chain, name)
            assert_close(getattr(expanded, name), expected.expand(3, *expected.shape))
        assert_close(expanded.entropy(), chain.entropy().expand(3, 4))
        assert expanded.k_best(2).states.shape == (3, 4, 2, 4)
        assert expanded.viterbi().log_prob.shape == (3, 4)
        assert_close(kl_divergence(expanded, chain), torch.zeros(3, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        chain.expand((5,))


def test_expand_open_chain():
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2)).expand((3,))
    assert chain.log_prob(torch.tensor([0, 1, 1])).shape == (3,)
    assert chain.stationary_distribution().shape == (3, 2)
    assert chain.power(2).shape == (3, 2, 2)


def test_batch_of_lengths_alone():
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2), lengths=torch.tensor([1, 2, 3]))
    assert chain.batch_shape == (3,)
    assert_close(chain.log_prob(torch.tensor([0, 1, 1])).exp(), torch.tensor([0.5, 0.25, 0.125]))
    assert chain.marginals.shape == (3, 3, 2)


# Kullback-Leibler divergence.


def brute_force_kl(q, p):
    result = []
    for (_, q_law), (_, p_law) in zip(path_laws(q), path_laws(p), strict=True):
        possible = q_law > -torch.inf
        q_law, p_law = q_law[possible], p_law[possible]
        result.append((q_law.exp() * (q_law - p_law)).sum())
    return torch.stack(result)


@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("q_transitions", ["shared", "each"])
@pytest.mark.parametrize("p_transitions", ["shared", "each"])
@pytest.mark.parametrize("p_observed", [True, False])
def test_kl_divergence(lengths, q_transitions, p_transitions, p_observed):
    q_raw = some_chain(transitions=q_transitions, lengths=lengths, seed=1).requires_grad()
    p_raw = some_chain(transitions=p_transitions, lengths=lengths, seed=2).requires_grad()
    q, p = build(q_raw), build(p_raw, p_observed)
    q_law, p_law = as_law(q_raw), as_law(p_raw if p_observed else unobserved(p_raw))
    for actual, expected in [
        (kl_divergence(q, p), brute_force_kl(q_law, p_law)),
        (kl_divergence(p, q), brute_force_kl(p_law, q_law)),
        (kl_divergence(q, q), torch.zeros(4, dtype=torch.float64)),
    ]:
        assert_close(actual, expected)
    actual, expected = weighted_sum(kl_divergence(q, p)), weighted_sum(brute_force_kl(q_law, p_law))
    for raw in (q_raw, p_raw):
        assert_close(gradients(actual, raw), gradients(expected, raw))


def test_kl_divergence_with_forbidden_transitions():
    left_to_right = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64).log()
    free = torch.zeros(2, 2, dtype=torch.float64)
    start = torch.zeros(2, dtype=torch.float64)
    q, p = (MarkovChain(start, transition, num_steps=3) for transition in (left_to_right, free))
    # E_q[log q - log p]: log 2 more for each step out of the second state, which is sure.
    # p(z_1 = 1) = 1/2 and p(z_2 = 1) = 3/4.
    assert_close(kl_divergence(q, p), torch.tensor(1.25 * math.log(2), dtype=torch.float64))
    assert kl_divergence(p, q) == torch.inf


def test_kl_divergence_broadcasts():
    q = MarkovChain(torch.randn(3, 1, 2), torch.zeros(2, 2), num_steps=3)
    p = MarkovChain(torch.zeros(2), torch.randn(4, 1, 2, 2), num_steps=3)
    divergence = kl_divergence(q, p)
    assert divergence.shape == (3, 4)
    assert_close(
        divergence[1, 2],
        kl_divergence(
            MarkovChain(q.initial_logits[1, 0], torch.zeros(2, 2), num_steps=3),
            MarkovChain(torch.zeros(2), p.transition_logits[2], num_steps=3),
        ),
        tolerance=1e-5,
    )


def test_kl_divergence_to_a_chain_of_open_length():
    raw = some_chain()
    posterior = build(raw)
    initial, transition = torch.randn(3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    prior, told = MarkovChain(initial, transition), MarkovChain(initial, transition, lengths=RAGGED, num_steps=4)
    assert_close(kl_divergence(posterior, prior), kl_divergence(posterior, told))
    assert_close(kl_divergence(prior, posterior), kl_divergence(told, posterior))
    with pytest.raises(ValueError, match="num_steps"):
        kl_divergence(prior, prior)


def test_kl_divergence_of_different_shapes():
    def chain(num_states=2, num_steps=3, lengths=None):
        return MarkovChain(
            torch.zeros(num_states), torch.zeros(num_states, num_states), lengths=lengths, num_steps=num_steps
        )

    with pytest.raises(ValueError, match="chains of the same states and steps"):
        kl_divergence(chain(), chain(num_steps=4))
    with pytest.raises(ValueError, match="chains of the same states and steps"):
        kl_divergence(chain(), chain(num_states=3))
    with pytest.raises(ValueError, match="chains of the same lengths"):
        kl_divergence(chain(lengths=torch.tensor([2, 3])), chain())
    with pytest.raises(ValueError, match="chains of the same lengths"):
        kl_divergence(chain(lengths=torch.tensor([2, 3])), chain(lengths=torch.tensor([3, 3])))


def test_kl_divergence_of_event_and_masked_chains():
    q, p = build(some_chain(seed=1)), build(some_chain(seed=2))
    each = kl_divergence(q, p)
    assert_close(kl_divergence(q.to_event(1), p.to_event(1)), each.sum())
    mask = torch.tensor([True, False, True, True])
    assert_close(kl_divergence(q.mask(mask), p.mask(mask)), torch.where(mask, each, 0.0))


# Shared transitions.


def test_stationary_distribution():
    logits = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chain = MarkovChain(torch.zeros(4, dtype=torch.float64), logits)
    law = chain.stationary_distribution()
    assert law.shape == (2, 4)
    assert_close(law, chain.power(200)[:, 0])
    assert_close(law.sum(-1), torch.ones(2, dtype=torch.float64))


def test_stationary_distribution_gradient():
    def stationary(logits):
        return MarkovChain(torch.zeros(3, dtype=torch.float64), logits).stationary_distribution()

    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(stationary, logits)
    # A transient state keeps probability zero, and no gradient is NaN.
    transient = logits.detach().index_put(
        (torch.tensor([0, 1]), torch.tensor([2, 2])), torch.tensor(-torch.inf).double()
    )
    transient.requires_grad_()
    law = stationary(transient)
    assert law[2] == 0
    (grad,) = torch.autograd.grad(weighted_sum(law), transient)
    assert grad.isfinite().all()
    assert grad[:2, :2].abs().min() > 0


def test_stationary_distribution_special_cases():
    one = MarkovChain(torch.zeros(1), torch.zeros(1, 1))
    assert one.stationary_distribution().tolist() == [1.0]
    cycle = MarkovChain(torch.zeros(3), torch.eye(3).roll(1, 1).log())
    assert_close(cycle.stationary_distribution(), torch.full((3,), 1 / 3))
    # Seldom left states in float32: 1 - A_ii has no correct digit left.
    sticky = torch.tensor([[0.0, -18.0], [-17.0, 0.0]])
    assert_close(
        MarkovChain(torch.zeros(2), sticky).stationary_distribution(),
        torch.tensor([1.0, 0.0]).softmax(-1),
        tolerance=1e-6,
    )


def test_stationary_distribution_is_refused():
    start = torch.zeros(4)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).log()
    with pytest.raises(ValueError, match="expected one recurrent class"):
        MarkovChain(start, blocks).stationary_distribution()
    with pytest.raises(ValueError, match="expected one recurrent class"):
        MarkovChain(start, torch.stack([torch.zeros(4, 4), blocks]).unsqueeze(1)).stationary_distribution()
    with pytest.raises(ValueError, match=r"got a row of -inf"):
        MarkovChain(start, torch.eye(4).roll(1, 1).triu().log()).stationary_distribution()
    with pytest.raises(ValueError, match="stationary_distribution: expected transitions shared over time, got 2"):
        MarkovChain(start, torch.zeros(2, 4, 4)).stationary_distribution()


def test_power():
    raw = random_chain(3, 4, transitions="constant", batch_shape=(2,))
    chain = build(raw, observed=False)
    matrix = chain.transition_logits.exp().squeeze(-3)
    assert_close(chain.power(3), matrix @ matrix @ matrix)
    assert_close(chain.power(0), torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    # The law of the last state is the law of the first one after T - 1 transitions.
    ahead = chain.initial_logits.exp().unsqueeze(-2) @ chain.power(3)
    assert_close(chain.marginals[:, -1], ahead.squeeze(-2))
    with pytest.raises(ValueError, match="n: expected a number of transitions >= 0, got -1"):
        chain.power(-1)
    with pytest.raises(ValueError, match="power: expected transitions shared"):
        build(some_chain(lengths=None)).power(2)


# What torch and Pyro expect of a distribution.


def test_class_attributes():
    assert MarkovChain.support.is_discrete
    assert MarkovChain.support.event_dim == 1
    assert not MarkovChain.has_enumerate_support
    chain = build(some_chain())
    assert chain.support.is_discrete
    assert chain.support.event_dim == chain.event_dim == 1
    assert chain.support.check(chain.sample()).all()
    assert not chain.support.check(torch.full((4,), 3))[0]
    assert not chain.support.check(torch.full((4,), 0.5))[0]
    assert not chain.has_rsample
    with pytest.raises(NotImplementedError):
        chain.enumerate_support()
    assert repr(chain) == (
        "MarkovChain(initial_logits: torch.Size([4, 3]), transition_logits: torch.Size([4, 3, 3, 3]))"
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda chain: pickle.loads(pickle.dumps(chain))])
def test_copies(copied):
    chain = build(some_chain())
    value = chain.sample()
    assert_close(copied(chain).log_prob(value), chain.log_prob(value))


def test_to_event_and_mask():
    chain = build(some_chain(lengths=None))
    value = chain.sample((2,))
    each = chain.log_prob(value)
    event = chain.to_event(1)
    assert event.batch_shape == ()
    assert event.event_shape == (4, 4)
    assert_close(event.log_prob(value), each.sum(-1))
    mask = torch.tensor([True, False, True, False])
    assert_close(chain.mask(mask).log_prob(value), torch.where(mask, each, 0.0))
    assert_close(chain.mask(False).log_prob(value).double(), torch.zeros_like(each))
    assert_close(chain.mask(True).log_prob(value), each)
    assert_close(
        chain.mask(mask).expand((3, 4)).log_prob(value.unsqueeze(1)),
        torch.where(mask, each, 0.0).unsqueeze(1).expand(2, 3, 4),
    )


@pytest.mark.parametrize("dim", [-1, -2])
def test_sample_site_in_a_subsampled_plate(dim):
    # Six sequences, of which four are drawn.
    lengths = torch.tensor([1, 4, 2, 3, 4, 4])
    transition = torch.randn(3, 3, dtype=torch.float64)
    paths = MarkovChain(torch.zeros(3).double(), transition, lengths=lengths).sample()

    def model():
        with pyro.plate("sequences", 6, subsample_size=4, dim=dim) as index:
            shape = (4,) + (1,) * (-1 - dim)
            chain = MarkovChain(torch.zeros(3).double(), transition, lengths=lengths[index].view(shape), num_steps=4)
            pyro.sample("z", chain, obs=paths[index].view(*shape, 4))
        return index

    trace = poutine.trace(model).get_trace()
    index = trace.nodes["_RETURN"]["value"]
    expected = sum(
        transition.log_softmax(-1)[paths[n, t - 1], paths[n, t]] for n in index.tolist() for t in range(1, lengths[n])
    ) - 4 * math.log(3)
    assert_close(trace.log_prob_sum(), expected * 6 / 4)


def test_latent_site_is_expanded_by_its_plates():
    def model():
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            return pyro.sample("z", MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=5))

    trace = poutine.trace(model).get_trace()
    assert trace.nodes["z"]["value"].shape == (2, 3, 5)
    trace.compute_log_prob()
    assert_close(trace.nodes["z"]["log_prob"], torch.full((2, 3), 5 * math.log(0.5)), tolerance=1e-6)
    assert Predictive(model, num_samples=7)()["z"].shape == (7, 2, 3, 5)
    assert Predictive(model, num_samples=7, parallel=True)()["z"].shape == (7, 2, 3, 5)


def two_sided_program():
    """A program with a latent path and its exact posterior as the guide; the evidence of each of its sequences."""
    generator = torch.Generator().manual_seed(0)
    transition = torch.randn(2, 2, dtype=torch.float64, generator=generator)
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    loc = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    prior = MarkovChain(torch.zeros(2, dtype=torch.float64), transition, num_steps=4)
    hmm = HiddenMarkovModel(prior, dist.Normal(loc, 1.0))

    def model():
        with pyro.plate("sequences", 3):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

    def guide():
        with pyro.plate("sequences", 3):
            pyro.sample("z", hmm.posterior(x))

    return model, guide, hmm.log_prob(x)


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceEnum_ELBO(max_plate_nesting=1),
    ],
)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured for enumeration")
def test_exact_posterior_as_guide_makes_the_elbo_exact(elbo):
    model, guide, evidence = two_sided_program()
    # log p(x, z) - log q(z | x) = log p(x) whatever path is drawn.
    assert math.isclose(elbo.loss(model, guide), -evidence.sum(), rel_tol=1e-10)


def test_nothing_tries_to_enumerate_it():
    model, guide, evidence = two_sided_program()
    model, guide = config_enumerate(model, default="parallel"), config_enumerate(guide, default="parallel")
    with pytest.warns(UserWarning, match="found no sample sites configured for enumeration"):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide)
    assert math.isclose(loss, -evidence.sum(), rel_tol=1e-10)
    trace = poutine.trace(poutine.enum(model, first_available_dim=-2)).get_trace()
    assert trace.nodes["z"]["infer"].get("_enumerate_dim") is None
    assert trace.nodes["z"]["value"].shape == (3, 4)


def test_continuous_guides_say_that_it_is_discrete():
    model, _, _ = two_sided_program()
    with pytest.raises(ValueError, match="cannot handle discrete sample site 'z'"):
        AutoNormal(model)()


# Expectations of functions of the state


@examples
@given(raw=chains(max_steps=4))
def test_expectation(raw):
    chain, law = build(raw), as_law(raw)
    num_steps, num_states = raw.observation_logits.shape[-2:]
    values = torch.randn(*chain.batch_shape, num_steps, num_states, dtype=torch.float64)
    expected = []
    for n, (paths, log_prob) in enumerate(path_laws(law)):
        scores = values.reshape(-1, num_steps, num_states)[n][torch.arange(paths.shape[-1]), paths].sum(-1)
        expected.append((log_prob.exp() * scores).sum())
    if raw.lengths is not None:
        values[torch.arange(num_steps) >= raw.lengths.unsqueeze(-1)] = math.nan
    assert_close(chain.expectation(values).flatten(), torch.stack(expected))


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("impossible", [0.0, 0.2])
def test_gradients_of_expectation(transitions, impossible):
    raw = some_chain(transitions=transitions, impossible=impossible).requires_grad()
    chain, law = build(raw), as_law(raw)
    values = torch.randn(4, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    full = values.clone().requires_grad_()
    values[torch.arange(4) >= raw.lengths.unsqueeze(-1)] = math.nan
    values.requires_grad_()
    expected = torch.stack(
        [
            (log_prob.exp() * full[n][torch.arange(paths.shape[-1]), paths].sum(-1))[log_prob > -math.inf].sum()
            for n, (paths, log_prob) in enumerate(path_laws(law))
        ]
    )
    actual = chain.expectation(values)
    assert_close(actual, expected)
    assert_close(gradients(weighted_sum(actual), raw), gradients(weighted_sum(expected), raw))
    of_values = torch.autograd.grad(weighted_sum(actual), values)[0]
    assert_close(of_values, torch.autograd.grad(weighted_sum(expected), full, materialize_grads=True)[0])


def test_expectation_of_impossible_values():
    unary = torch.tensor([[0.0, -math.inf], [0.3, 0.1]], requires_grad=True)
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), unary)
    values = torch.tensor([[2.0, -math.inf], [1.0, 1.0]], requires_grad=True)
    result = chain.expectation(values)
    assert_close(result, torch.tensor(3.0))
    for gradient in torch.autograd.grad(result, (unary, values)):
        assert gradient.isfinite().all()
    assert chain.expectation(torch.tensor([[-math.inf, 0.0], [1.0, 1.0]])) == -math.inf


def test_expectation_broadcasts_and_says_what_does_not_fit():
    chain = build(some_chain((4,), lengths=None))
    values = torch.randn(5, 1, 4, 3, dtype=torch.float64)
    assert chain.expectation(values).shape == (5, 4)
    assert_close(chain.expectation(torch.ones(3)), torch.full((4,), 4.0, dtype=torch.float64))
    assert chain.expectation(torch.ones(3)).dtype == torch.float64
    with pytest.raises(ValueError, match=r"values: expected shape \(..., 4, 3\), got \(3, 3\)"):
        chain.expectation(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"values: expected no NaN and no \+inf, got one at \(1, 2\)"):
        chain.expectation(torch.ones(4, 3).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)))
