import math

import pytest
import torch
from hypothesis import given
from scipy import stats

from pyrohmm import ops
from pyrohmm.testing import Chain, enumeration, random_chain
from pyrohmm.testing.strategies import chains
from tests.ops.cases import AWKWARD, examples, path_log_prob

awkward = pytest.mark.parametrize("chain", AWKWARD.values(), ids=AWKWARD)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_frequencies_are_the_posterior(chain: Chain, states: torch.Tensor) -> None:
    """Pearson's chi-square test of whole paths (N, T) of one chain, rare paths thrown together."""
    scores = enumeration.path_log_probs(*chain.logits)
    expected = (scores - scores.logsumexp(0)).exp() * len(states)
    num_states = chain.observation_logits.shape[-1]
    place_values = num_states ** torch.arange(states.shape[-1] - 1, -1, -1)
    observed = torch.bincount((states * place_values).sum(-1), minlength=len(expected))
    assert not observed[expected == 0].any(), "an impossible path was drawn"

    rare = expected < 5
    observed, expected = (
        torch.cat([counts[~rare].double(), counts[rare].double().sum()[None]]) for counts in (observed, expected)
    )
    keep = expected > 0
    assert keep.sum() > 2, "too few paths for a test of anything"
    assert stats.chisquare(observed[keep].numpy(), expected[keep].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("impossible", [0.0, 0.1])
@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_paths_come_with_their_posterior_probability(transitions, impossible, quick_impl):
    chain = random_chain(3, 4, transitions=transitions, impossible=impossible, seed=1)
    states = ops.sample(*chain.logits, sample_shape=(20_000,), generator=seeded(), impl=quick_impl)
    assert_frequencies_are_the_posterior(chain, states)


def test_sequences_of_a_batch_are_drawn_each_from_its_own_posterior(quick_impl):
    lengths = torch.tensor([4, 2, 3])
    chain = random_chain(2, 4, (3,), transitions="each", lengths=lengths, poison=True, seed=2)
    states = ops.sample(*chain.logits, lengths=lengths, sample_shape=(10_000,), generator=seeded(), impl=quick_impl)
    for i, n in enumerate(lengths):
        alone = Chain(chain.initial_logits[i], chain.transition_logits[i, : n - 1], chain.observation_logits[i, :n])
        assert_frequencies_are_the_posterior(alone, states[:, i, :n])


def test_equal_sequences_are_drawn_independently(quick_impl):
    chain = random_chain(2, 3)
    batch = Chain(chain.initial_logits.expand(2, 2), chain.transition_logits, chain.observation_logits)
    states = ops.sample(*batch.logits, sample_shape=(20_000,), generator=seeded(), impl=quick_impl)
    # The pair of both paths is a path of the product chain, with independent halves.
    scores = enumeration.path_log_probs(*chain.logits)
    prob = (scores - scores.logsumexp(0)).exp()
    codes = (states * torch.tensor([4, 2, 1])).sum(-1)
    observed = torch.bincount(codes[:, 0] * 8 + codes[:, 1], minlength=64).double()
    expected = (prob.unsqueeze(-1) * prob).flatten() * 20_000
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3


def test_sample_shape_is_a_batch_shape(impl):
    chain = random_chain(3, 5, (2, 4), lengths="ragged")
    assert ops.sample(*chain.logits, lengths=chain.lengths, impl=impl).shape == (2, 4, 5)
    for sample_shape in ((), (7,), (3, 2), torch.Size([1, 6])):
        states = ops.sample(*chain.logits, lengths=chain.lengths, sample_shape=sample_shape, impl=impl)
        assert states.shape == (*sample_shape, 2, 4, 5)
        assert states.dtype == torch.int64
    assert ops.sample(*chain.logits, sample_shape=(0,), impl=impl).shape == (0, 2, 4, 5)


def test_the_generator_decides_and_the_global_state_is_left_alone(impl):
    chain = random_chain(3, 20, (4,))
    before = torch.get_rng_state()
    generator = seeded(1)
    first, second = (ops.sample(*chain.logits, generator=generator, impl=impl) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, ops.sample(*chain.logits, generator=seeded(1), impl=impl))
    assert not torch.equal(first, second)
    assert not torch.equal(first, ops.sample(*chain.logits, generator=seeded(2), impl=impl))


def test_without_a_generator_the_global_seed_decides(impl):
    chain = random_chain(3, 20, (4,))
    with torch.random.fork_rng():
        draws = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            draws.append(ops.sample(*chain.logits, impl=impl))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def assert_paths_are_possible(chain: Chain, impl: str) -> None:
    """Possible paths within the length, -1 past it, and -1 throughout where there is no path at all."""
    states = ops.sample(*chain.logits, lengths=chain.lengths, sample_shape=(5,), generator=seeded(), impl=impl)
    best = enumeration.viterbi(*chain.logits, lengths=chain.lengths).log_prob
    attained = path_log_prob(chain, states)
    assert torch.equal(attained == -math.inf, (best == -math.inf).expand(attained.shape))
    assert (attained <= best + 1e-9).all()


@awkward
def test_sample(chain, impl):
    assert_paths_are_possible(chain, impl)


@examples
@given(chain=chains())
def test_sample_of_random_chains(chain, quick_impl):
    assert_paths_are_possible(chain, quick_impl)


def test_samples_have_no_gradient(impl):
    assert not ops.sample(*random_chain().requires_grad().logits, impl=impl).requires_grad


def test_long_sequence_in_float32(quick_impl):
    # Symmetric, with no observations: both states take half the time, and one step in twenty switches.
    num_steps = 4000
    transition = torch.tensor([[0.95, 0.05], [0.05, 0.95]]).log()
    states = ops.sample(torch.zeros(2), transition, torch.zeros(num_steps, 2), generator=seeded(5), impl=quick_impl)
    switches = states.diff().abs().sum().item()
    assert abs(switches - 0.05 * num_steps) < 4 * math.sqrt(num_steps * 0.05 * 0.95)
    # The mean's variance is that of independent draws times (1 + r) / (1 - r), r = 0.9 the lag-one correlation.
    assert abs(states.double().mean().item() - 0.5) < 4 * math.sqrt(0.25 / num_steps * 19)
