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


@triton.jit(do_not_specialize=["num_paths", "num_sequences", "num_steps"])
def sample(
    num_paths,
    num_sequences,
    num_steps,
    lengths,
    starts,
    K,
    transition,
    transition_index,
    transition_step,
    log_probs,
    uniforms,
    states,
    N: tl.constexpr,
    S: tl.constexpr,
):
    """Paths into `states` (n, T), which holds -1; they belong to the sequences in turns."""
    paths = tl.program_id(0) * N + tl.arange(0, N)
    present = paths < num_paths
    rows = paths % num_sequences
    length = tl.load(lengths + rows, present, other=0)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    path = paths.to(tl.int64) * num_steps
    columns = transition + tl.load(transition_index + rows, present, other=0)[:, None] + state[None, :] * K
    filtered = log_probs + tl.load(starts + rows, present, other=0)[:, None] * K + state[None, :]

    alive = length > 0
    following = tl.zeros((N,), dtype=tl.int32)
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
        inner = inside & (t + 1 < length)
        column = tl.load(columns + t * transition_step + following[:, None], inner[:, None] & real[None, :], other=0.0)
        found = invert(logits + column, uniform, S)
        alive = alive & ((found >= 0) | (t >= length))
        following = tl.where(inside & alive, found, following)
        tl.store(states + path + t, following, inside & alive)
    # The forward pass died on the way: what was drawn so far is no part of any path.
    dead = present & (length > 0) & ~alive
    for t in range(0, tl.max(tl.where(dead, length, 0), 0)):
        tl.store(states + path + t, -1, dead)
