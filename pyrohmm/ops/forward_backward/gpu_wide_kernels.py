"""Triton kernels for many states: one launch a step, one program a tile of states of a block of sequences.

A message does not fit into the registers of one program, so that programs meet at every step: what they need of each
other is in memory when the next launch begins. Each program adds up (or takes the maximum of) its own tile, and those
of the next step combine the tiles' `parts`.
"""

import triton
import triton.language as tl

from pyrohmm.ops.tiles import finite, inverse_of, log_of


@triton.jit
def parts_at(parts, start, t, inside, tiles, other, TILES: tl.constexpr):
    """What the programs of step t left, (N, TILES)."""
    tile = tl.arange(0, TILES)
    mask = inside[:, None] & (tile < tiles)[None, :]
    return tl.load(parts + (start + t)[:, None] * tiles + tile[None, :], mask, other=other)


@triton.jit(do_not_specialize=["each", "t", "slots", "tiles"])
def forward_scaled(
    order,
    each,
    lengths,
    starts,
    K,
    t,
    slots,
    chances,
    passed,
    observation,
    observation_index,
    observation_step,
    shifts,
    row_sums,
    masses,
    messages,
    parts,
    log_probs,
    tiles,
    N: tl.constexpr,
    TILE: tl.constexpr,
    TERMS: tl.constexpr,
    TILES: tl.constexpr,
    FILTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """a_t of a tile of states from a_{t-1}, and its mass. Messages (B, slots, K) lie at t modulo slots.

    With FILTER, also the logarithm of what was predicted plus o_t. `masses` (B, T, tiles, 2) get what the tile is
    predicted with before that is scaled, as it is, and as it should be by the `row_sums` of its tile (G, tiles, 2, K).
    """
    group = tl.program_id(0) // each
    if tl.load(passed + group) == 0:
        return
    t = t.to(tl.int64)  # times a distance in memory, it is more than 32 bits hold
    rows = tl.load(order + tl.program_id(0) * N + tl.arange(0, N))
    length = tl.load(lengths + rows, rows >= 0, other=0)
    start = tl.load(starts + rows, rows >= 0, other=0)
    inside = t < length
    state = tl.program_id(1) * TILE + tl.arange(0, TILE)
    both = inside[:, None] & (state < K)[None, :]
    matrix = chances + group.to(tl.int64) * K * K
    # In float64, as log Z is: a division that errs in one direction would add up.
    mass = tl.sum(parts_at(parts, start, t - 1, inside, tiles, 0.0, TILES).to(tl.float64), 1)
    before = messages + (rows * slots + (t - 1) % slots)[:, None] * K
    high = row_sums + (group.to(tl.int64) * tiles + tl.program_id(1)) * 2 * K
    sums = tl.zeros((N, TILE), dtype=messages.dtype.element_ty)
    whole = tl.zeros((N, TERMS), dtype=messages.dtype.element_ty)
    for first in range(0, K, TERMS):
        i = first + tl.arange(0, TERMS)
        left = tl.load(before + i[None, :], inside[:, None] & (i < K)[None, :], other=0.0)
        right = tl.load(matrix + i[:, None] * K + state[None, :], (i < K)[:, None] & (state < K)[None, :], other=0.0)
        sums += tl.dot(left, right, input_precision=PRECISION)
        whole += left * tl.load(high + i, i < K, other=0.0)[None, :]
        whole += left * tl.load(high + K + i, i < K, other=0.0)[None, :]
    mass_of_tile = masses + ((start + t) * tiles + tl.program_id(1)) * 2
    tl.store(mass_of_tile, tl.sum(sums.to(tl.float64), 1), inside)
    tl.store(mass_of_tile + 1, tl.sum(whole.to(tl.float64), 1), inside)
    predicted = sums * inverse_of(mass).to(sums.dtype)[:, None]
    begin = tl.load(observation_index + rows, inside, other=0) + t * observation_step
    logits = tl.load(observation + begin[:, None] + state[None, :], both, other=-float("inf"))
    shift = tl.load(shifts + start + t, inside, other=0.0)
    joint = predicted * tl.exp(logits - shift[:, None])
    tl.store(messages + (rows * slots + t % slots)[:, None] * K + state[None, :], joint, both)
    tl.store(parts + (start + t) * tiles + tl.program_id(1), tl.sum(joint, 1), inside)
    if FILTER:
        tl.store(log_probs + (start + t)[:, None] * K + state[None, :], log_of(predicted) + logits, both)


@triton.jit(do_not_specialize=["each", "t", "tiles"])
def backward_scaled(
    order,
    each,
    lengths,
    starts,
    K,
    t,
    chances,
    passed,
    observation,
    observation_index,
    observation_step,
    shifts,
    messages,
    onward,
    products,
    parts,
    tiles,
    N: tl.constexpr,
    TILE: tl.constexpr,
    TERMS: tl.constexpr,
    TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a tile of states: e_t b_t, a_t b_t and the sum of the latter, which is g_t, from the same of step t+1."""
    group = tl.program_id(0) // each
    if tl.load(passed + group) == 0:
        return
    t = t.to(tl.int64)  # times a distance in memory, it is more than 32 bits hold
    rows = tl.load(order + tl.program_id(0) * N + tl.arange(0, N))
    length = tl.load(lengths + rows, rows >= 0, other=0)
    start = tl.load(starts + rows, rows >= 0, other=0)
    inside = t < length
    inner = t + 1 < length
    state = tl.program_id(1) * TILE + tl.arange(0, TILE)
    both = inside[:, None] & (state < K)[None, :]
    matrix = chances + group.to(tl.int64) * K * K
    mass = tl.sum(parts_at(parts, start, t + 1, inner, tiles, 0.0, TILES), 1)
    after = onward + (start + t + 1)[:, None] * K
    sums = tl.zeros((N, TILE), dtype=messages.dtype.element_ty)
    for first in range(0, K, TERMS):
        j = first + tl.arange(0, TERMS)
        left = tl.load(after + j[None, :], inner[:, None] & (j < K)[None, :], other=0.0)
        right = tl.load(matrix + state[None, :] * K + j[:, None], (j < K)[:, None] & (state < K)[None, :], other=0.0)
        sums += tl.dot(left, right, input_precision=PRECISION)
    beta = tl.where(inner[:, None], sums / tl.where(mass == 0.0, 1.0, mass)[:, None], 1.0)
    begin = tl.load(observation_index + rows, inside, other=0) + t * observation_step
    logits = tl.load(observation + begin[:, None] + state[None, :], both, other=-float("inf"))
    shift = tl.load(shifts + start + t, inside, other=0.0)
    here = (start + t)[:, None] * K + state[None, :]
    product = tl.load(messages + here, both, other=0.0) * beta
    tl.store(onward + here, tl.exp(logits - shift[:, None]) * beta, both)
    tl.store(products + here, product, both)
    tl.store(parts + (start + t) * tiles + tl.program_id(1), tl.sum(product, 1), inside)


@triton.jit(do_not_specialize=["each", "t", "slots", "tiles"])
def forward_log(
    order,
    each,
    lengths,
    starts,
    K,
    t,
    slots,
    transition,
    transition_index,
    transition_step,
    passed,
    observation,
    observation_index,
    observation_step,
    messages,
    parts,
    log_probs,
    tiles,
    N: tl.constexpr,
    TILE: tl.constexpr,
    TERMS: tl.constexpr,
    TILES: tl.constexpr,
    SHARED: tl.constexpr,
    FILTER: tl.constexpr,
):
    """log alpha_t of a tile of states up to a number, and the logarithm of the tile's mass; see `forward_scaled`."""
    if SHARED:  # noqa: SIM102
        if tl.load(passed + tl.program_id(0) // each) != 0:
            return
    t = t.to(tl.int64)  # times a distance in memory, it is more than 32 bits hold
    rows = tl.load(order + tl.program_id(0) * N + tl.arange(0, N))
    length = tl.load(lengths + rows, rows >= 0, other=0)
    start = tl.load(starts + rows, rows >= 0, other=0)
    inside = t < length
    state = tl.program_id(1) * TILE + tl.arange(0, TILE)
    both = inside[:, None] & (state < K)[None, :]
    before = messages + (rows * slots + (t - 1) % slots)[:, None] * K
    matrix = tl.load(transition_index + rows, inside, other=0) + (t - 1) * transition_step
    # The logarithm of the sum over the tiles of the step before.
    logs = parts_at(parts, start, t - 1, inside, tiles, -float("inf"), TILES)
    top = finite(tl.max(logs, 1))
    log_mass = finite(log_of(tl.sum(tl.exp(logs - top[:, None]), 1)) + top)
    best = tl.zeros((N, TILE), dtype=messages.dtype.element_ty) - float("inf")
    sums = tl.zeros((N, TILE), dtype=messages.dtype.element_ty)
    for first in range(0, K, TERMS):
        i = first + tl.arange(0, TERMS)
        known = (i < K)[None, :, None] & (state < K)[None, None, :]
        square = (i[:, None] * K + state[None, :])[None, :, :]
        if SHARED:
            right = tl.load(transition + tl.max(matrix, 0) + square, known, other=-float("inf"))
        else:
            right = tl.load(
                transition + matrix[:, None, None] + square, known & inside[:, None, None], other=-float("inf")
            )
        left = tl.load(before + i[None, :], inside[:, None] & (i < K)[None, :], other=-float("inf"))
        scores = (left - log_mass[:, None])[:, :, None] + right
        higher = tl.maximum(best, tl.max(scores, 1))
        shift = finite(higher)
        sums = sums * tl.exp(finite(best - shift)) + tl.sum(tl.exp(scores - shift[:, None, :]), 1)
        best = higher
    # Loaded again, which volatile makes sure of: not kept in registers through the sum.
    rows = tl.load(order + tl.program_id(0) * N + tl.arange(0, N), volatile=True)
    start = tl.load(starts + rows, rows >= 0, other=0, volatile=True)
    begin = tl.load(observation_index + rows, inside, other=0) + t * observation_step
    logits = tl.load(observation + begin[:, None] + state[None, :], both, other=-float("inf"))
    joint = log_of(sums) + finite(best) + logits
    tl.store(messages + (rows * slots + t % slots)[:, None] * K + state[None, :], joint, both)
    top = finite(tl.max(joint, 1))
    log_sum = log_of(tl.sum(tl.exp(joint - top[:, None]), 1)) + top
    tl.store(parts + (start + t) * tiles + tl.program_id(1), log_sum, inside)
    if FILTER:
        tl.store(log_probs + (start + t)[:, None] * K + state[None, :], joint, both)


@triton.jit(do_not_specialize=["each", "t", "tiles"])
def backward_log(
    order,
    each,
    lengths,
    starts,
    K,
    t,
    transition,
    transition_index,
    transition_step,
    passed,
    observation,
    observation_index,
    observation_step,
    onward,
    totals,
    parts,
    tiles,
    N: tl.constexpr,
    TILE: tl.constexpr,
    TERMS: tl.constexpr,
    TILES: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Of a tile of states: log beta_t up to a number (totals), o_t + log beta_t (onward) and its maximum (parts)."""
    if SHARED:  # noqa: SIM102
        if tl.load(passed + tl.program_id(0) // each) != 0:
            return
    t = t.to(tl.int64)  # times a distance in memory, it is more than 32 bits hold
    rows = tl.load(order + tl.program_id(0) * N + tl.arange(0, N))
    length = tl.load(lengths + rows, rows >= 0, other=0)
    start = tl.load(starts + rows, rows >= 0, other=0)
    inside = t < length
    inner = t + 1 < length
    state = tl.program_id(1) * TILE + tl.arange(0, TILE)
    both = inside[:, None] & (state < K)[None, :]
    after = onward + (start + t + 1)[:, None] * K
    matrix = tl.load(transition_index + rows, inner, other=0) + t * transition_step
    # Only ratios matter: the largest is kept at zero.
    highest = finite(tl.max(parts_at(parts, start, t + 1, inner, tiles, -float("inf"), TILES), 1))
    best = tl.zeros((N, TILE), dtype=totals.dtype.element_ty) - float("inf")
    sums = tl.zeros((N, TILE), dtype=totals.dtype.element_ty)
    for first in range(0, K, TERMS):
        j = first + tl.arange(0, TERMS)
        known = (j < K)[None, :, None] & (state < K)[None, None, :]
        square = (state[None, :] * K + j[:, None])[None, :, :]
        left = tl.load(after + j[None, :], inner[:, None] & (j < K)[None, :], other=-float("inf"))
        if SHARED:
            right = tl.load(transition + tl.max(matrix, 0) + square, known, other=-float("inf"))
        else:
            right = tl.load(
                transition + matrix[:, None, None] + square, known & inner[:, None, None], other=-float("inf")
            )
        scores = (left - highest[:, None])[:, :, None] + right
        higher = tl.maximum(best, tl.max(scores, 1))
        shift = finite(higher)
        sums = sums * tl.exp(finite(best - shift)) + tl.sum(tl.exp(scores - shift[:, None, :]), 1)
        best = higher
    total = tl.where(inner[:, None], log_of(sums) + finite(best), 0.0)
    begin = tl.load(observation_index + rows, inside, other=0) + t * observation_step
    logits = tl.load(observation + begin[:, None] + state[None, :], both, other=-float("inf"))
    here = (start + t)[:, None] * K + state[None, :]
    tl.store(totals + here, total, both)
    tl.store(onward + here, logits + total, both)
    tl.store(parts + (start + t) * tiles + tl.program_id(1), tl.max(logits + total, 1), inside)
