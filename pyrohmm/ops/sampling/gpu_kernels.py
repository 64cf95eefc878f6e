"""Triton kernel for backward sampling."""

import triton
import triton.language as tl

from pyrohmm.ops.tiles import finite


@triton.jit
def invert(logits, uniform, S: tl.constexpr):
    """The state at which the cumulative probability (N, S) passes `uniform`; -1 where all logits are -inf."""
    masses = tl.exp(logits - finite(tl.max(logits, 1))[:, None]).to(tl.float64)
    passed = tl.cumsum(masses, 1) > (uniform * tl.sum(masses, 1))[:, None]
    state = tl.arange(0, S)[None, :]
    # Rounding must not carry the choice to a state without mass.
    some = masses > 0.0
    last = tl.max(tl.where(some, state, -1), 1)
    return tl.minimum(tl.min(tl.where(some & passed, state, S), 1), last)


@triton.jit(do_not_specialize=["num_rows", "num_sequences", "num_steps", "steps", "count"])
def sample(
    num_rows,
    num_sequences,
    num_steps,
    steps,
    count,
    lengths,
    starts,
    K,
    transition,
    transition_index,
    transition_step,
    log_probs,
    uniforms,
    firsts,
    states,
    N: tl.constexpr,
    S: tl.constexpr,
    CUT: tl.constexpr,
    MAPS: tl.constexpr,
):
    """Paths into `states` (n, T), which holds -1; they belong to the sequences in turns.

    With CUT, rows are the `count` spans of each path, of so many `steps`, and `firsts` (n, count) has the state at the
    first step of each, K where the path ends on the way back. With MAPS, rows are spans for each state that may follow,
    and these states are filled in, in `firsts` (n, count, K + 1).
    """
    rows = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    present = rows < num_rows
    paths = rows
    if MAPS:
        paths = rows // K
    spans = paths
    if CUT:
        paths = spans // count
    sequences = paths % num_sequences
    length = tl.load(lengths + sequences, present, other=0)
    path = paths * num_steps
    begin = tl.load(starts + sequences, present, other=0)
    columns = tl.load(transition_index + sequences, present, other=0)
    following = tl.zeros((N,), dtype=tl.int32)
    goes_on = length < 0
    if CUT:
        first = spans % count * steps
        goes_on = length > first + steps
        length = tl.minimum(tl.maximum(length - first, 0), steps)
        path += first
        begin += first
        columns += first * transition_step
        if MAPS:
            following = (rows % K).to(tl.int32)
        else:
            following = tl.load(firsts + spans + 1, goes_on, other=0).to(tl.int32)
            length = tl.where(tl.load(firsts + paths * count, present, other=0) == K, 0, length)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    columns = transition + columns[:, None] + state[None, :] * K
    filtered = log_probs + begin[:, None] * K + state[None, :]

    alive = present
    ahead = tl.load(
        filtered + (longest - 1) * K, ((length > 0) & (length == longest))[:, None] & real[None, :], other=0.0
    )
    for back in range(0, longest):
        t = longest - 1 - back
        inside = alive & (t < length)
        logits = tl.where(real[None, :], ahead, -float("inf"))
        # What is known of the step before does not wait for the state.
        ahead = tl.load(filtered + (t - 1) * K, ((t > 0) & (t - 1 < length))[:, None] & real[None, :], other=0.0)
        uniform = tl.load(uniforms + path + t, inside, other=0.0)
        inner = inside & (goes_on | (t + 1 < length))
        column = tl.load(columns + t * transition_step + following[:, None], inner[:, None] & real[None, :], other=0.0)
        found = invert(logits + column, uniform, S)
        alive = alive & ((found >= 0) | (t >= length))
        following = tl.where(inside & alive, found, following)
        if not MAPS:
            tl.store(states + path + t, following, inside & alive)
    if MAPS:
        tl.store(firsts + rows + spans, tl.where(alive, following, K), present)
    elif not CUT:
        # The forward pass died on the way: what was drawn so far is no part of any path.
        dead = present & (length > 0) & ~alive
        for t in range(0, tl.max(tl.where(dead, length, 0), 0)):
            tl.store(states + path + t, -1, dead)
