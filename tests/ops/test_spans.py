"""Spans hold what the sequences hold, and the chain over spans is the chain of those of its states that are first."""

import pytest
import torch

from pyrohmm import ops
from pyrohmm.ops.chain import fit_chain
from pyrohmm.ops.grid import Grid, Memory
from pyrohmm.ops.spans import Cut, follow, steps_of_span
from pyrohmm.testing import random_chain


def read(memory: Memory, row: int, step: int, size: int) -> torch.Tensor:
    """What a kernel reads of a row at a step; of a tensor that is contiguous."""
    begin = int(memory.index[row]) + step * memory.step
    return memory.values.reshape(-1)[begin : begin + size]


def test_time_is_cut_for_few_long_sequences_only():
    assert steps_of_span(2048, 1, 62) == 64
    assert steps_of_span(2047, 1, 2) is None
    assert steps_of_span(5000, 1024, 2) == 64
    assert steps_of_span(5000, 1025, 2) is None
    assert steps_of_span(1 << 16, 1, 2) == 256


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("num_steps", [4, 5])
def test_spans_are_parts_of_the_sequences(num_steps, transitions):
    K, steps = 3, 2
    chain = random_chain(K, num_steps, (3,), transitions=transitions, lengths=torch.tensor([num_steps, 0, 3]))
    grid = Grid.of(fit_chain(*chain.logits, chain.lengths))
    cut = Cut.of(grid, steps)
    within = cut.each
    assert cut.count == 3 and cut.spans.num_steps == steps
    assert cut.goes_on.sum(-1).tolist() == [cut.spans.lengths.view(3, 3)[0].count_nonzero() - 1, 0, 1]
    assert cut.spans.lengths.view(3, 3).sum(-1).tolist() == grid.lengths.tolist()
    for row in range(9):
        sequence, span = divmod(row, 3)
        first = span * steps
        assert cut.spans.starts[row] == grid.starts[sequence] + first
        for state in range(K):
            at = row * K + state
            expected = torch.full((K,), -torch.inf, dtype=torch.float64)
            expected[state] = 0.0
            assert torch.equal(read(within.initial, at, 0, K), expected)
            assert within.lengths[at] == cut.spans.lengths[row] and within.starts[at] == cut.spans.starts[row]
            for t in range(int(within.lengths[at])):
                for name, size in (("observation", K), ("transition", K * K)):
                    if name == "transition" and first + t + 1 >= chain.lengths[sequence]:
                        continue
                    ours = read(getattr(within, name), at, t, size)
                    assert torch.equal(ours, read(getattr(grid, name), sequence, first + t, size))
                    assert torch.equal(ours, read(getattr(cut.spans, name), row, t, size))


def test_the_chain_over_spans():
    """Each span of one step: the chain itself, whose observations have moved into the transitions."""
    K, B, T = 3, 2, 4
    chain = random_chain(K, T, (B,), lengths=torch.tensor([4, 3]))
    cut = Cut.of(Grid.of(fit_chain(*chain.logits, chain.lengths)), 1)
    inside = torch.zeros(B, T + 1, K, dtype=torch.float64)
    inside[:, :T] = chain.observation_logits + 1000.0
    inside[1, 3:] = inside[0, 4:] = 0.0
    onward = chain.transition_logits.expand(B, T + 1, K, K).reshape(-1, K)
    for ends in (True, False):
        outer, ending, lowered = cut.outer(inside.view(-1), onward, ends=ends)
        assert outer.num_steps == T + 1 and outer.lengths.tolist() == [4, 3]
        logits = (chain.initial_logits, outer.transition.values, ending)
        log_z = ops.log_partition(*logits, lengths=outer.lengths, impl="reference") + lowered
        observation = chain.observation_logits + 1000.0
        if not ends:
            observation[0, 3] = observation[1, 2] = 0.0
        expected = ops.log_partition(*chain.logits[:2], observation, lengths=chain.lengths, impl="reference")
        torch.testing.assert_close(log_z, expected, rtol=1e-12, atol=0)


def test_spans_begin_where_they_are_told():
    chain = random_chain(2, 5, (2,))
    cut = Cut.of(Grid.of(fit_chain(*chain.logits)), 2)
    initial = torch.arange(12.0).view(2, 3, 2)
    begun = cut.beginning(initial)
    assert torch.equal(torch.stack([read(begun.initial, row, 0, 2) for row in range(6)]), initial.view(6, 2))


@pytest.mark.parametrize("transitions", ["shared", "each"])
def test_last_steps_of_spans(transitions):
    K, T = 2, 7
    chain = random_chain(K, T, (2,), transitions=transitions, lengths=torch.tensor([7, 4]))
    grid = Grid.of(fit_chain(*chain.logits, chain.lengths))
    log_probs = torch.arange(2.0 * T * K, dtype=torch.float64).view(2, T, K)
    last = Cut.of(grid, 3).last_steps(log_probs)
    assert last.lengths.tolist() == [1, 1, 0, 1, 0, 0] and last.num_steps == 1
    for row, sequence, step in ((0, 0, 2), (1, 0, 5), (3, 1, 2)):
        assert torch.equal(read(last.initial, row, 0, K), log_probs[sequence, step])
        assert torch.equal(read(last.transition, row, 0, K * K), read(grid.transition, sequence, step, K * K))
        assert not read(last.observation, row, 0, K).any()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_maps_follow_one_another(count):
    maps = torch.randint(4, (5, count, 4), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(5, count + 1, dtype=torch.int64)
    for c in reversed(range(count)):
        for n in range(5):
            expected[n, c] = maps[n, c, expected[n, c + 1]]
    assert torch.equal(follow(maps), expected[:, :-1])


def test_no_maps():
    assert follow(torch.zeros(0, 3, 2, dtype=torch.int64)).shape == (0, 3)
