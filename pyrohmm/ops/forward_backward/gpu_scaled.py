"""Triton kernels that keep probabilities: a block of sequences with a common matrix walks through time together.

The recursions and their letters are those of "Scaled space" in `pyrohmm/ops/README.md`. Messages stay in registers; a
step is one small matrix product. A block whose matrix has not passed the certificate does nothing.
"""

import triton
import triton.language as tl

from pyrohmm.ops.tiles import finite, inverse_of, log_of


@triton.jit
def exact_log(mass, inverse):
    """log(mass) in float64 by the inverse that messages are multiplied by: how that was rounded does not add up."""
    return tl.where(mass == 0.0, -float("inf"), -log_of(inverse.to(tl.float64)))


@triton.jit
def row_sums(matrix):
    """The sum of each row, as two numbers of the matrix's dtype that add up to it: rounding repeats at each step."""
    exact = tl.sum(matrix.to(tl.float64), 1)
    high = exact.to(matrix.dtype)
    return high, (exact - high.to(tl.float64)).to(matrix.dtype)


@triton.jit
def log_of_cut_off(joint, row_high, row_low, product):
    """What log sum_j of a product of tensor cores lacks, (N,).

    They do not round sums to the nearest number, they cut them off: a part in 10^7, always to the same side, which adds
    up in log Z. How much mass there should be, sum_i a_i sum_j E_ij, takes no product of matrices.
    """
    lost = tl.sum((joint * row_high[None, :] - product) + joint * row_low[None, :], 1)
    return lost * inverse_of(tl.sum(product, 1))


@triton.jit(do_not_specialize=["each"])
def forward(
    order,
    each,
    lengths,
    starts,
    K,
    initial,
    initial_index,
    chances,
    tops,
    passed,
    observation,
    observation_index,
    observation_step,
    messages,
    log_z,
    onward,
    log_probs,
    evidence,
    N: tl.constexpr,
    S: tl.constexpr,
    KEEP: tl.constexpr,
    ONWARD: tl.constexpr,
    FILTER: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """log Z of each sequence; where asked for, a_t, the law of the step after the last, or the results of a filter."""
    block = tl.program_id(0)
    group = block // each
    if tl.load(passed + group) == 0:
        return
    rows = tl.load(order + block * N + tl.arange(0, N))
    present = rows >= 0
    length = tl.load(lengths + rows, present, other=0)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    square = state[:, None] * K + state[None, :]
    matrix = tl.load(chances + group.to(tl.int64) * K * K + square, real[:, None] & real[None, :], other=0.0)
    row_high, row_low = row_sums(matrix)
    top_of_matrix = tl.load(tops + group)
    start = tl.load(starts + rows, present, other=0)
    observed = observation + tl.load(observation_index + rows, present, other=0)[:, None] + state[None, :]
    written = start[:, None] * K + state[None, :]

    inside = length > 0
    both = inside[:, None] & real[None, :]
    begin = tl.load(initial_index + rows, inside, other=0)
    begin = tl.load(initial + begin[:, None] + state[None, :], both, other=-float("inf"))
    logits = begin + tl.load(observed, both, other=-float("inf"))
    shift = finite(tl.max(logits, 1))
    joint = tl.exp(logits - shift[:, None])
    mass = tl.sum(joint, 1)
    inverse = inverse_of(mass)
    added = exact_log(mass, inverse) + shift.to(tl.float64)
    total = tl.where(inside, added, 0.0)
    if KEEP:
        tl.store(messages + written, joint, both)
    if FILTER:
        log_mass = log_of(mass) + shift
        tl.store(log_probs + written, logits - finite(log_mass)[:, None], both)
        tl.store(evidence + start, added, inside)
    for t in tl.range(1, longest, num_stages=STAGES):
        inside = t < length
        both = inside[:, None] & real[None, :]
        logits = tl.load(observed + t * observation_step, both, other=-float("inf"))
        shift = finite(tl.max(logits, 1))
        product = tl.dot(joint, matrix, input_precision=PRECISION)
        cut_off = log_of_cut_off(joint, row_high, row_low, product)
        # The division by the mass of the step before is not in the way of the product.
        predicted = product * inverse[:, None]
        new = predicted * tl.exp(logits - shift[:, None])
        mass = tl.sum(new, 1)
        if KEEP:
            tl.store(messages + written + t * K, new, both)
        joint = tl.where(inside[:, None], new, joint)
        inverse = tl.where(inside, inverse_of(mass), inverse)
        added = exact_log(mass, inverse) + shift.to(tl.float64) + top_of_matrix.to(tl.float64) + cut_off.to(tl.float64)
        total += tl.where(inside, added, 0.0)
        if FILTER:
            log_mass = log_of(mass) + shift
            tl.store(log_probs + written + t * K, log_of(predicted) + logits - finite(log_mass)[:, None], both)
            tl.store(evidence + start + t, added, inside)
    # Loaded again, which volatile makes sure of: not kept in registers all the way.
    rows = tl.load(order + block * N + tl.arange(0, N), volatile=True)
    present = rows >= 0
    tl.store(log_z + rows, total, present)
    if ONWARD:
        product = tl.dot(joint, matrix, input_precision=PRECISION)
        cut_off = log_of_cut_off(joint, row_high, row_low, product)
        following = log_of(product * inverse[:, None]) + top_of_matrix + cut_off[:, None]
        tl.store(onward + rows[:, None] * K + state[None, :], following, present[:, None] & real[None, :])


@triton.jit(do_not_specialize=["each", "num_steps"])
def backward(
    order,
    each,
    lengths,
    starts,
    num_steps,
    K,
    chances,
    passed,
    observation,
    observation_index,
    observation_step,
    messages,
    log_z,
    weight,
    beyond,
    marginals,
    left,
    right,
    counts,
    N: tl.constexpr,
    S: tl.constexpr,
    BEYOND: tl.constexpr,
    COUNTS: tl.constexpr,
    KEEP: tl.constexpr,
    FLUSH: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """State marginals times the weight, and what transition marginals are made of.

    With COUNTS, the sum of a_t(i) v_{t+1}(j) / g_t, times the weight, over time and the sequences of the block, in
    float64; with KEEP, its two factors at each step. `beyond` (n, K) holds e b of the step after the last, zeros if
    there is none.
    """
    block = tl.program_id(0)
    group = block // each
    if tl.load(passed + group) == 0:
        return
    rows = tl.load(order + block * N + tl.arange(0, N))
    present = rows >= 0
    length = tl.load(lengths + rows, present, other=0)
    alive = tl.load(log_z + rows, present, other=-float("inf")) > -float("inf")
    length = tl.where(alive, length, 0)
    longest = tl.max(length, 0)
    shortest = tl.min(tl.where(present, length, num_steps), 0)
    state = tl.arange(0, S)
    real = state < K
    pair = real[:, None] & real[None, :]
    square = state[:, None] * K + state[None, :]
    # Transposed: [to, from].
    matrix = tl.load(chances + group.to(tl.int64) * K * K + state[None, :] * K + state[:, None], pair, other=0.0)
    start = tl.load(starts + rows, present, other=0)
    factor = tl.load(weight + rows, present, other=0.0)
    observed = observation + tl.load(observation_index + rows, present, other=0)[:, None] + state[None, :]
    written = start[:, None] * K + state[None, :]

    nothing = tl.zeros((N, S), dtype=matrix.dtype)
    for t in range(shortest, num_steps):
        tl.store(marginals + written + t * K, nothing, (present & (t >= length))[:, None] & real[None, :])
    following = nothing
    goes_on = length < 0
    if BEYOND:
        following = tl.load(beyond + rows[:, None] * K + state[None, :], present[:, None] & real[None, :], other=0.0)
        goes_on = tl.max(following, 1) > 0.0
    sums = tl.zeros((S, S), dtype=matrix.dtype)
    slot = counts + block.to(tl.int64) * K * K + square
    for back in tl.range(0, longest, num_stages=STAGES):
        t = longest - 1 - back
        inside = t < length
        both = inside[:, None] & real[None, :]
        goes_on = goes_on | (t + 1 < length)
        message = tl.load(messages + written + t * K, both, other=0.0)
        logits = tl.load(observed + t * observation_step, both, other=-float("inf"))
        seen = tl.exp(logits - finite(tl.max(logits, 1))[:, None])
        beta = tl.dot(following, matrix, input_precision=PRECISION)
        beta = tl.where(goes_on[:, None], beta, 1.0)
        product = message * beta
        inverse = inverse_of(tl.sum(product, 1))
        weighed = (inverse * factor)[:, None]
        tl.store(marginals + written + t * K, product * weighed, both)
        if KEEP:
            tl.store(left + written + t * K, message * weighed, both)
            tl.store(right + written + t * K, tl.where(goes_on[:, None], following, 0.0), both)
        if COUNTS:
            # Rows that end at this step go on to nothing.
            sums += tl.dot(tl.trans(message * weighed), following, input_precision=PRECISION)
            # float32 adds up a few steps only.
            if (back % FLUSH == FLUSH - 1) | (t == 0):
                tl.store(slot, tl.load(slot, pair, other=0.0) + sums, pair)
                sums = tl.zeros((S, S), dtype=matrix.dtype)
        following = tl.where(inside[:, None], seen * beta * inverse[:, None], following)
