"""Triton kernels that keep log-probabilities: safe for any chain, and the only ones for transitions that change.

The recursions and their letters are those of `pyrohmm/ops/README.md`. A block of sequences walks through time together,
the pairs of states of each of them in registers.
"""

import triton
import triton.language as tl

from pyrohmm.ops.tiles import finite, log_of


@triton.jit
def predict(log_prob, matrix):
    """log sum_i exp(log_prob(i) + A_ij), (N, S), of (N, S) and (N or 1, S, S)."""
    scores = log_prob[:, :, None] + matrix
    shift = finite(tl.max(scores, 1))
    return log_of(tl.sum(tl.exp(scores - shift[:, None, :]), 1)) + shift


@triton.jit
def normalise(joint):
    """Log-probabilities (N, S), and the logarithm of what they added up to, in float64."""
    shift = finite(tl.max(joint, 1))
    mass = tl.sum(tl.exp(joint - shift[:, None]), 1)
    log_mass = log_of(mass.to(tl.float64)) + shift.to(tl.float64)
    return joint - finite(log_mass).to(joint.dtype)[:, None], log_mass


@triton.jit
def softmax(logits):
    """Probabilities (N, S); zeros where all logits are -inf."""
    chances = tl.exp(logits - finite(tl.max(logits, 1))[:, None])
    mass = tl.sum(chances, 1)
    return chances / tl.where(mass == 0.0, 1.0, mass)[:, None]


@triton.jit(do_not_specialize=["each"])
def forward(
    order,
    each,
    lengths,
    starts,
    K,
    initial,
    initial_index,
    transition,
    transition_index,
    transition_step,
    passed,
    observation,
    observation_index,
    observation_step,
    log_probs,
    log_z,
    goes_on,
    onward,
    evidence,
    N: tl.constexpr,
    S: tl.constexpr,
    SHARED: tl.constexpr,
    KEEP: tl.constexpr,
    ONWARD: tl.constexpr,
    FILTER: tl.constexpr,
    STAGES: tl.constexpr,
):
    """log Z of each sequence; where asked for, log alpha_t, the law of the step after the last, and the evidence.

    SHARED: the block has one matrix, and does nothing if that is left to the kernels that keep probabilities.
    """
    block = tl.program_id(0)
    if SHARED:  # noqa: SIM102
        if tl.load(passed + block // each) != 0:
            return
    rows = tl.load(order + block * N + tl.arange(0, N))
    present = rows >= 0
    length = tl.load(lengths + rows, present, other=0)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    square = real[None, :, None] & real[None, None, :]
    start = tl.load(starts + rows, present, other=0)
    observed = observation + tl.load(observation_index + rows, present, other=0)[:, None] + state[None, :]
    matrices = transition + tl.load(transition_index + rows, present, other=0)[:, None, None]
    matrices += (state[:, None] * K + state[None, :])[None, :, :]
    written = start[:, None] * K + state[None, :]

    inside = length > 0
    both = inside[:, None] & real[None, :]
    begin = tl.load(initial_index + rows, inside, other=0)
    begin = tl.load(initial + begin[:, None] + state[None, :], both, other=-float("inf"))
    log_prob, log_mass = normalise(begin + tl.load(observed, both, other=-float("inf")))
    total = tl.where(inside, log_mass, 0.0)
    if KEEP:
        tl.store(log_probs + written, log_prob, both)
    if FILTER:
        tl.store(evidence + start, log_mass, inside)
    for t in tl.range(1, longest, num_stages=STAGES):
        inside = t < length
        both = inside[:, None] & real[None, :]
        # Before the logits: their threads then follow those of the matrix, which takes fewer registers and shuffles.
        matrix = tl.load(matrices + (t - 1) * transition_step, inside[:, None, None] & square, other=-float("inf"))
        logits = tl.load(observed + t * observation_step, both, other=-float("inf"))
        new, log_mass = normalise(predict(log_prob, matrix) + logits)
        if KEEP:
            tl.store(log_probs + written + t * K, new, both)
        if FILTER:
            tl.store(evidence + start + t, log_mass, inside)
        log_prob = tl.where(inside[:, None], new, log_prob)
        total += tl.where(inside, log_mass, 0.0)
    # Loaded again, which volatile makes sure of: not kept in registers all the way.
    rows = tl.load(order + block * N + tl.arange(0, N), volatile=True)
    present = rows >= 0
    tl.store(log_z + rows, total, present)
    if ONWARD:
        # Where a row ends, there may be no next matrix.
        some = present & (tl.load(goes_on + rows, present, other=0) != 0)
        matrix = tl.load(
            matrices + (length - 1)[:, None, None] * transition_step, some[:, None, None] & square, other=-float("inf")
        )
        tl.store(
            onward + rows[:, None] * K + state[None, :],
            predict(log_prob, matrix),
            present[:, None] & real[None, :],
        )


@triton.jit
def condition(
    order,
    lengths,
    starts,
    K,
    transition,
    transition_index,
    transition_step,
    log_probs,
    log_z,
    v_initial,
    v_initial_index,
    v_transition,
    v_transition_index,
    v_transition_step,
    v_observation,
    v_observation_index,
    v_observation_step,
    past,
    expectation,
    N: tl.constexpr,
    S: tl.constexpr,
    STAGES: tl.constexpr,
):
    """F_t(k) = E[f up to step t | z_t = k], (B, T, K), and E[f], (B,): see "Second derivative"."""
    rows = tl.load(order + tl.program_id(0) * N + tl.arange(0, N))
    present = rows >= 0
    length = tl.load(lengths + rows, present, other=0)
    alive = tl.load(log_z + rows, present, other=-float("inf")) > -float("inf")
    length = tl.where(alive, length, 0)
    longest = tl.max(length, 0)
    state = tl.arange(0, S)
    real = state < K
    square = real[None, :, None] & real[None, None, :]
    pair = (state[:, None] * K + state[None, :])[None, :, :]
    written = tl.load(starts + rows, present, other=0)[:, None] * K + state[None, :]
    matrices = transition + tl.load(transition_index + rows, present, other=0)[:, None, None] + pair
    v_matrices = v_transition + tl.load(v_transition_index + rows, present, other=0)[:, None, None] + pair
    v_observed = v_observation + tl.load(v_observation_index + rows, present, other=0)[:, None] + state[None, :]

    both = (length > 0)[:, None] & real[None, :]
    begin = tl.load(v_initial_index + rows, length > 0, other=0)
    begin = tl.load(v_initial + begin[:, None] + state[None, :], both, other=0.0)
    sums = begin + tl.load(v_observed, both, other=0.0)
    tl.store(past + written, sums, both)
    log_prob = tl.load(log_probs + written, both, other=-float("inf"))
    for t in tl.range(1, longest, num_stages=STAGES):
        inside = t < length
        both = inside[:, None] & real[None, :]
        matrix = tl.load(matrices + (t - 1) * transition_step, inside[:, None, None] & square, other=-float("inf"))
        v_matrix = tl.load(v_matrices + (t - 1) * v_transition_step, inside[:, None, None] & square, other=0.0)
        scores = log_prob[:, :, None] + matrix
        chances = tl.exp(scores - finite(tl.max(scores, 1))[:, None, :])
        mass = tl.sum(chances, 1)
        # Nothing that has no probability counts: potentials near the end of the range overflow.
        terms = tl.where(chances == 0.0, 0.0, chances * (sums[:, :, None] + v_matrix))
        new = tl.sum(terms, 1) / tl.where(mass == 0.0, 1.0, mass)
        new += tl.load(v_observed + t * v_observation_step, both, other=0.0)
        tl.store(past + written + t * K, new, both)
        sums = tl.where(inside[:, None], new, sums)
        here = tl.load(log_probs + written + t * K, both, other=-float("inf"))
        log_prob = tl.where(inside[:, None], here, log_prob)
    chances = tl.exp(log_prob)
    terms = tl.where(chances == 0.0, 0.0, chances * sums)
    tl.store(expectation + rows, tl.sum(terms, 1), present)


@triton.jit(do_not_specialize=["each", "num_steps"])
def backward(
    order,
    each,
    lengths,
    starts,
    num_steps,
    K,
    transition,
    transition_index,
    transition_step,
    passed,
    observation,
    observation_index,
    observation_step,
    log_probs,
    log_z,
    weight,
    offset,
    beyond,
    v_transition,
    v_transition_index,
    v_transition_step,
    v_observation,
    v_observation_index,
    v_observation_step,
    past,
    expectation,
    marginals,
    onward,
    pairs,
    pairs_index,
    counts,
    N: tl.constexpr,
    S: tl.constexpr,
    SHARED: tl.constexpr,
    BEYOND: tl.constexpr,
    TANGENT: tl.constexpr,
    ONWARD: tl.constexpr,
    PAIRS: tl.constexpr,
    COUNTS: tl.constexpr,
    FLUSH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """State marginals (B, T, K) times the weight or, with TANGENT, their derivatives along a direction.

    Where asked for: ONWARD, o_t + log beta_t at each step; PAIRS, the transition marginals of each step and sequence;
    COUNTS, their sum over time and the sequences of the block, in float64. `beyond` (n, K) holds o + log beta of the
    step after the last, -inf everywhere if there is none.
    """
    block = tl.program_id(0)
    if SHARED:  # noqa: SIM102
        if tl.load(passed + block // each) != 0:
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
    square = real[None, :, None] & real[None, None, :]
    pair = (state[:, None] * K + state[None, :])[None, :, :]
    start = tl.load(starts + rows, present, other=0)
    factor = tl.load(weight + rows, present, other=0.0)
    observed = observation + tl.load(observation_index + rows, present, other=0)[:, None] + state[None, :]
    matrices = transition + tl.load(transition_index + rows, present, other=0)[:, None, None] + pair
    written = start[:, None] * K + state[None, :]
    if TANGENT:
        v_matrices = v_transition + tl.load(v_transition_index + rows, present, other=0)[:, None, None] + pair
        v_observed = v_observation + tl.load(v_observation_index + rows, present, other=0)[:, None] + state[None, :]
        constant = tl.load(offset + rows, present, other=0.0)
        mean = tl.load(expectation + rows, present, other=0.0)
    if PAIRS:
        paired = pairs + tl.load(pairs_index + rows, present, other=0)[:, None, None] + pair

    nothing = tl.zeros((N, S), dtype=factor.dtype)
    for t in range(shortest, num_steps):
        padding = present & (t >= length)
        tl.store(marginals + written + t * K, nothing, padding[:, None] & real[None, :])
        if PAIRS:
            none = tl.zeros((N, S, S), dtype=factor.dtype)
            tl.store(paired + (t - 1) * K * K, none, (padding & (t > 0))[:, None, None] & square)
    future = nothing
    following = nothing - float("inf")
    goes_on = length < 0
    if BEYOND:
        following = tl.load(
            beyond + rows[:, None] * K + state[None, :], present[:, None] & real[None, :], other=-float("inf")
        )
        goes_on = tl.max(following, 1) > -float("inf")
    sums = tl.zeros((S, S), dtype=factor.dtype)
    slot = counts + block.to(tl.int64) * K * K + state[:, None] * K + state[None, :]
    for back in tl.range(0, longest, num_stages=STAGES):
        t = longest - 1 - back
        inside = t < length
        both = inside[:, None] & real[None, :]
        inner = inside & (t + 1 < length)
        goes_on = goes_on | inner
        log_prob = tl.load(log_probs + written + t * K, both, other=-float("inf"))
        logits = tl.load(observed + t * observation_step, both, other=-float("inf"))
        matrix = tl.load(
            matrices + t * transition_step, (inside & goes_on)[:, None, None] & square, other=-float("inf")
        )
        scores = matrix + following[:, None, :]
        shift = finite(tl.max(scores, 2))
        law = tl.exp(scores - shift[:, :, None])
        mass = tl.sum(law, 2)
        beta = log_of(mass) + shift
        # Only ratios matter: the largest is kept at zero.
        beta = tl.where(goes_on[:, None], beta - finite(tl.max(beta, 1))[:, None], 0.0)
        gamma = softmax(log_prob + beta)
        law /= tl.where(mass == 0.0, 1.0, mass)[:, :, None]
        joint = gamma[:, :, None] * law
        if TANGENT:
            # ahead is E[f after t | z_t, z_t+1]; nothing that has no probability counts.
            here = tl.load(past + written + t * K, both, other=0.0)
            ahead = tl.load(v_matrices + t * v_transition_step, inner[:, None, None] & square, other=0.0)
            ahead_states = tl.load(v_observed + (t + 1) * v_observation_step, inner[:, None] & real[None, :], other=0.0)
            ahead += (ahead_states + future)[:, None, :]
            future = tl.sum(tl.where(law == 0.0, 0.0, law * ahead), 2)
            change = factor[:, None] * (here + future - mean[:, None]) + constant[:, None]
            result = tl.where(gamma == 0.0, 0.0, gamma * change)
            change = factor[:, None, None] * (here[:, :, None] + ahead - mean[:, None, None])
            joint = tl.where(joint == 0.0, 0.0, joint * (change + constant[:, None, None]))
        else:
            result = gamma * factor[:, None]
            joint *= factor[:, None, None]
        tl.store(marginals + written + t * K, result, both)
        if PAIRS:
            tl.store(paired + t * K * K, joint, (inside & goes_on)[:, None, None] & square)
        if COUNTS:
            sums += tl.sum(joint, 0)
            # float32 adds up a few steps only.
            if (back % FLUSH == FLUSH - 1) | (t == 0):
                pair_mask = real[:, None] & real[None, :]
                tl.store(slot, tl.load(slot, pair_mask, other=0.0) + sums, pair_mask)
                sums = tl.zeros((S, S), dtype=factor.dtype)
        following = tl.where(inside[:, None], logits + beta, following)
        if ONWARD:
            tl.store(onward + written + t * K, following, both)
