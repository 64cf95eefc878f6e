import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrohmm import ops
from pyrohmm.testing import Chain, assert_close_to_oracle, assert_within_budget, enumeration, random_chain
from pyrohmm.testing.strategies import chains
from tests.ops.cases import AWKWARD, examples, path_log_prob

awkward = pytest.mark.parametrize("chain", AWKWARD.values(), ids=AWKWARD)


def assert_viterbi_is_the_oracles(chain: Chain, impl: str) -> None:
    """Equal maxima, and a path that attains the maximum: which one, where several do, is not fixed."""
    ours = ops.viterbi(*chain.logits, lengths=chain.lengths, impl=impl)
    exact = enumeration.viterbi(*chain.logits, lengths=chain.lengths)
    assert ours.states.dtype == torch.int64
    assert ours.states.shape == exact.states.shape
    assert_close_to_oracle(ours.log_prob, exact.log_prob)
    assert_close_to_oracle(path_log_prob(chain, ours.states), exact.log_prob)


@awkward
def test_viterbi(chain, impl):
    assert_viterbi_is_the_oracles(chain, impl)


@examples
@given(chain=chains())
def test_viterbi_of_random_chains(chain, quick_impl):
    assert_viterbi_is_the_oracles(chain, quick_impl)


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_viterbi_finds_the_very_path_where_there_are_no_ties(transitions, impl):
    chain = random_chain(3, 6, (10,), transitions=transitions, lengths="ragged", seed=1)
    ours = ops.viterbi(*chain.logits, lengths=chain.lengths, impl=impl)
    assert torch.equal(ours.states, enumeration.viterbi(*chain.logits, lengths=chain.lengths).states)


def assert_k_best_is_the_oracles(chain: Chain, k: int, impl: str) -> None:
    ours = ops.k_best(*chain.logits, k=k, lengths=chain.lengths, impl=impl)
    exact = enumeration.k_best(*chain.logits, k, lengths=chain.lengths)
    assert ours.states.dtype == torch.int64
    assert ours.states.shape == exact.states.shape
    assert_close_to_oracle(ours.log_prob, exact.log_prob)
    for i in range(k):
        missing = (exact.log_prob[..., i] == -math.inf).unsqueeze(-1)
        assert (ours.states[..., i, :] == -1).logical_or(~missing).all()
        # An empty path beyond the first looks like any other of length 0; it is told by its log_prob alone.
        attained = path_log_prob(chain, ours.states[..., i, :]).masked_fill(missing.squeeze(-1), -math.inf)
        assert_close_to_oracle(attained, exact.log_prob[..., i])
        for j in range(i):
            same = (ours.states[..., i, :] == ours.states[..., j, :]).all(-1)
            assert not (same & ~missing.squeeze(-1)).any(), "a path is listed twice"


@pytest.mark.parametrize("k", [1, 3, 10])
@awkward
def test_k_best(chain, k, listing_impl):
    assert_k_best_is_the_oracles(chain, k, listing_impl)


@examples
@given(chain=chains(max_steps=4), k=st.integers(1, 8))
def test_k_best_of_random_chains(chain, k, listing_impl):
    assert_k_best_is_the_oracles(chain, k, listing_impl)


def test_k_best_lists_every_path_and_then_none(listing_impl):
    chain = random_chain(2, 3)
    result = ops.k_best(*chain.logits, k=10, impl=listing_impl)
    assert sorted(result.states[:8].tolist()) == enumeration.paths(2, 3).tolist()
    assert (result.states[8:] == -1).all()
    assert (result.log_prob[8:] == -math.inf).all()
    assert (result.log_prob[:8].diff() <= 0).all()


def test_the_first_of_the_k_best_is_viterbis(listing_impl):
    chain = random_chain(5, 30, (6,), transitions="each", impossible=0.1, lengths="ragged", seed=2)
    best = ops.viterbi(*chain.logits, lengths=chain.lengths, impl=listing_impl)
    several = ops.k_best(*chain.logits, k=4, lengths=chain.lengths, impl=listing_impl)
    assert torch.equal(several.states[:, 0], best.states)
    assert_close_to_oracle(several.log_prob[:, 0], best.log_prob)


def test_float32_errs_no_more_than_twice_what_listing_paths_does(impl):
    single = random_chain(3, 6, (8,), scale=30.0, dtype=torch.float32)
    assert_within_budget(
        ops.viterbi(*single.logits, impl=impl).log_prob,
        enumeration.viterbi(*single.logits).log_prob,
        enumeration.viterbi(*single.to(torch.float64).logits).log_prob,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_long_sequence_against_its_closed_form(dtype, tolerance, quick_impl):
    # Ten blocks, each in favour of one state by 0.5 a step: staying is worth more than switching only in short runs.
    num_steps, num_blocks = 20_000, 10
    truth = torch.arange(num_blocks).remainder(2).repeat_interleave(num_steps // num_blocks)
    chain = Chain(
        torch.tensor([0.5, 0.5], dtype=torch.float64).log(),
        torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log(),
        torch.nn.functional.one_hot(truth).double() / 2 - 1.3,
    ).to(dtype)
    result = ops.viterbi(*chain.logits, impl=quick_impl)
    assert torch.equal(result.states, truth)
    switches = num_blocks - 1
    expected = math.log(0.5) + (num_steps - 1 - switches) * math.log(0.9) + switches * math.log(0.1) - 0.8 * num_steps
    assert result.log_prob.item() == pytest.approx(expected, rel=tolerance)
