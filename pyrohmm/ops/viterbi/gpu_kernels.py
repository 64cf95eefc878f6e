"""Triton kernels for max-product decoding: scores forward, and the best path back.

The score of a state is that of the best path into it, relative to the best score of the step before, whatever T. All
scores are kept instead of pointers: an addition and a maximum for each pair of states forward, and on the way back the
predecessor of the one state on the path is sought again, in the same arithmetic. That is the reference's, to the bit.
"""

import triton
import triton.language as tl

from pyrohmm.ops.tiles import finite


@triton.jit
def walk(
    order,
    lengths,
    starts,
    K,
    initial,
    initial_index,
    transition,
    transition_index,
    transition_step,
    observation,
    observation_index,
    observation_step,
    goes_on,
    scores,
    base,
    top,
    onward,
    N: tl.constexpr,
    S: tl.constexpr,
    EACH: tl.constexpr,
    KEEP: tl.constexpr,
    TOTAL: tl.constexpr,
    ONWARD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Scores (B, T, K) of a block of sequences with a common matrix, or matrix of EACH step.

    Where asked for: KEEP, the scores; TOTAL, the best score of the last step, and in float64 the sum of those before;
    ONWARD, the scores of the step after the last, without its observation, relative to the best of the last, and only
    of sequences that go on: K in turn for each element of `goes_on`. The scores of a step stay in registers, and so
    does a matrix that does not change.
    """
    block = tl.program_id(0)
    rows = tl.load(order + block * N + tl.arange(0, N))
    present = rows >= 0
    length = tl.load(lengths + rows, present, other=0)
    if ONWARD:
        # Of the others nothing is asked.
        length = tl.where(tl.load(goes_on + rows // K, present, other=0) != 0, length, 0)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    square = real[:, None] & real[None, :]
    observed = observation + tl.load(observation_index + rows, present, other=0)[:, None] + state[None, :]
    # No block is without a first sequence.
    matrices = transition + tl.load(transition_index + tl.load(order + block * N)) + state[:, None] * K + state[None, :]
    written = scores + tl.load(starts + rows, present, other=0)[:, None] * K + state[None, :]

    both = (length > 0)[:, None] & real[None, :]
    begin = tl.load(initial_index + rows, length > 0, other=0)
    score = tl.load(initial + begin[:, None] + state[None, :], both, other=-float("inf"))
    score += tl.load(observed, both, other=-float("inf"))
    if KEEP:
        tl.store(written, score, both)
    total = tl.zeros((N,), dtype=tl.float64)
    if not EACH:
        # Where there is no second step, there may be no matrix.
        matrix = tl.load(matrices, square & (longest > (0 if ONWARD else 1)), other=-float("inf"))
    for t in tl.range(1, longest, num_stages=STAGES):
        inside = t < length
        both = inside[:, None] & real[None, :]
        logits = tl.load(observed + t * observation_step, both, other=-float("inf"))
        if EACH:
            matrix = tl.load(matrices + (t - 1) * transition_step, square, other=-float("inf"))
        shift = finite(tl.max(score, 1))
        new = tl.max((score - shift[:, None])[:, :, None] + matrix[None, :, :], 1) + logits
        if KEEP:
            tl.store(written + t * K, new, both)
        if TOTAL:
            total += tl.where(inside, shift, 0.0).to(tl.float64)
            score = tl.where(inside[:, None], new, score)
        else:
            score = new
    if TOTAL:
        best = tl.max(score, 1)
        tl.store(base + rows, total, present)
        tl.store(top + rows, tl.where(length > 0, best, 0.0).to(tl.float64), present)
    if ONWARD:
        if EACH:
            # All that go on, and have matrices in common, go on after as many steps.
            matrix = tl.load(matrices + (longest - 1) * transition_step, square & (longest > 0), other=-float("inf"))
        following = tl.max((score - finite(best)[:, None])[:, :, None] + matrix[None, :, :], 1)
        tl.store(onward + rows[:, None] * K + state[None, :], following, (length > 0)[:, None] & real[None, :])


# The numbers of the steps are no reason to compile anew.
@triton.jit(do_not_specialize=["first", "last"])
def sweep(
    first,
    last,
    order,
    lengths,
    starts,
    K,
    transition,
    transition_index,
    transition_step,
    observation,
    observation_index,
    observation_step,
    scores,
    N: tl.constexpr,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Scores (B, T, K) of steps first..last-1, of a block of sequences with a common matrix and a tile of states.

    A tile of the matrix is loaded once for all sequences of the block. The scores of the step before come from memory:
    either it was another launch's, or the tile has all states.
    """
    tiles = tl.cdiv(K, TO)
    block = tl.program_id(0) // tiles
    rows = tl.load(order + block * N + tl.arange(0, N))
    present = rows >= 0
    length = tl.load(lengths + rows, present, other=0)
    end = tl.minimum(tl.max(length, 0), last)
    some = tl.arange(0, FROM)
    every = tl.arange(0, TO)
    state = (tl.program_id(0) % tiles) * TO + every
    real = state < K
    observed = observation + tl.load(observation_index + rows, present, other=0)[:, None] + state[None, :]
    # No block is without a first sequence.
    matrices = transition + tl.load(transition_index + tl.load(order + block * N)) + some[:, None] * K + state[None, :]
    kept = scores + tl.load(starts + rows, present, other=0)[:, None] * K

    for t in range(first, end):
        inside = (t < length)[:, None]
        before = kept + (t - 1) * K
        matrix = matrices + (t - 1) * transition_step
        nothing = tl.full((N, TO), -float("inf"), dtype=scores.dtype.element_ty)
        best = nothing
        for i in range(0, K, TO):
            score = tl.load(before + i + every[None, :], inside & (i + every < K)[None, :], other=-float("inf"))
            best = tl.maximum(best, score)
        shift = finite(tl.max(best, 1))[:, None]
        best = nothing
        for i in tl.range(0, K, FROM, num_stages=STAGES):
            there = i + some < K
            # What lies beyond the last state is -inf in the matrix, which is enough.
            relative = tl.load(before + i + some[None, :], inside & there[None, :], other=0.0) - shift
            values = tl.load(matrix + i * K, there[:, None] & real[None, :], other=-float("inf"))
            best = tl.maximum(best, tl.max(relative[:, :, None] + values[None, :, :], 1))
        both = inside & real[None, :]
        logits = tl.load(observed + t * observation_step, both, other=-float("inf"))
        tl.store(kept + t * K + state[None, :], best + logits, both)
        # The next step reads what other threads of this program have written.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["num_sequences"])
def trace(
    num_sequences,
    lengths,
    starts,
    K,
    transition,
    transition_index,
    transition_step,
    scores,
    beyond,
    states,
    log_prob,
    N: tl.constexpr,
    S: tl.constexpr,
    BEYOND: tl.constexpr,
    MAPS: tl.constexpr,
):
    """The best path of each sequence into `states` (B, T), which holds -1, and its potential, added up in float64.

    With BEYOND, sequences are spans, `beyond` holds the states after their last steps, or -1 if they do not go on, and
    nothing is added up. With MAPS, `states` (n,) gets only the first state of each.
    """
    rows = tl.program_id(0) * N + tl.arange(0, N)
    present = rows < num_sequences
    length = tl.load(lengths + rows, present, other=0)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    start = tl.load(starts + rows, present, other=0)
    columns = transition + tl.load(transition_index + rows, present, other=0)[:, None] + state[None, :] * K
    kept = scores + start[:, None] * K + state[None, :]

    total = tl.zeros((N,), dtype=tl.float64)
    following = tl.zeros((N,), dtype=tl.int32)
    goes_on = length < 0
    if BEYOND:
        following = tl.load(beyond + rows, present, other=-1).to(tl.int32)
        goes_on = following >= 0
    ahead = tl.load(kept + (longest - 1) * K, ((length > 0) & (length == longest))[:, None] & real[None, :], other=0.0)
    for back in range(0, longest):
        t = longest - 1 - back
        inside = t < length
        inner = inside & (goes_on | (t + 1 < length))
        score = tl.where(real[None, :], ahead, -float("inf"))
        # The scores of the step before do not wait for the state.
        ahead = tl.load(kept + (t - 1) * K, ((t > 0) & (t - 1 < length))[:, None] & real[None, :], other=0.0)
        column = tl.load(columns + t * transition_step + following[:, None], inner[:, None] & real[None, :], other=0.0)
        top = tl.max(score, 1)
        shift = tl.where(inner, finite(top), 0.0)
        _, found = tl.max(score - shift[:, None] + column, 1, return_indices=True)
        # Where there are NaN, a maximum may be found beyond the last state.
        following = tl.where(inside, tl.minimum(found, K - 1), following)
        if not BEYOND:
            total += tl.where(inside, tl.where(inner, shift, top), 0.0).to(tl.float64)
        if not MAPS:
            tl.store(states + start + t, following, inside & (total > -float("inf")))
    if MAPS:
        tl.store(states + rows, tl.maximum(following, 0), present)
    if not BEYOND:
        tl.store(log_prob + rows, total, present)
