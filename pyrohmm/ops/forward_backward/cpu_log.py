"""Compiled recursions in log space, for any chain: masked, near-deterministic, with transitions that change.

Every exponential is taken relative to the largest term of its own sum. A transition of step t begins at
`transition_index + t * transition_step`; the step is zero where one matrix serves all.
"""

import numpy as np
from numba import njit

from pyrohmm.ops.simd import (
    STEPS_PER_SUM,
    add_counts,
    blocks,
    divide,
    exp,
    fma,
    largest,
    load,
    log,
    maximum,
    put,
    splat,
    store,
    take,
    total,
    where_larger,
    width_of,
    zeros,
)
from pyrohmm.ops.threads import in_parallel, kernel


@njit(forceinline=True)
def normalise(lanes, logits, K):
    """Subtract log(sum(exp(logits))) in place and return it: zero subtracted, -inf returned where all is -inf."""
    real = logits.dtype.type
    zero = zeros(lanes, logits)
    width = width_of(zero)
    best = splat(real(-np.inf), zero)
    for block in range(blocks(lanes, K, zero)):
        best = maximum(best, load(logits, block * width, best))
    top = largest(best)
    if top == real(-np.inf):
        top = real(0)
    mass = zero
    for block in range(blocks(lanes, K, zero)):
        mass = mass + exp(load(logits, block * width, mass) - splat(top, zero))
    evidence = top + real(np.log(total(mass)))
    by = splat(real(0) if evidence == real(-np.inf) else evidence, zero)
    for block in range(blocks(lanes, K, zero)):
        store(logits, block * width, load(logits, block * width, by) - by)
    return evidence


@njit
def _forward(
    share,
    first,
    last,
    lanes,
    order,
    lengths,
    num_steps,
    K,
    initial,
    initial_index,
    transition,
    transition_index,
    transition_step,
    observation,
    observation_index,
    observation_step,
    log_z,
    log_probs,
    log_evidence,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    width = width_of(zero)
    nothing = splat(real(-np.inf), zero)
    message = np.full((K + width - 1) // width * width, -np.inf, observation.dtype)
    joint = message.copy()
    for n in range(first, last):
        b = order[n]
        total_evidence = 0.0
        for t in range(lengths[b]):
            index = observation_index[b] + t * observation_step
            if t == 0:
                for j in range(K):
                    joint[j] = initial[initial_index[b] + j] + observation[index + j]
            else:
                matrix = transition_index[b] + (t - 1) * transition_step
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    best = nothing
                    for i in range(K):
                        onward = take(transition, matrix + i * K + j, K - j, nothing) + splat(message[i], zero)
                        best = maximum(best, onward)
                    # A column of -inf alone: any finite shift will do.
                    top = maximum(best, splat(np.finfo(transition.dtype).min, zero))
                    mass = zero
                    for i in range(K):
                        onward = take(transition, matrix + i * K + j, K - j, nothing) + splat(message[i], zero)
                        mass = mass + exp(onward - top)
                    store(joint, j, log(mass) + top + take(observation, index + j, K - j, nothing))
            evidence = normalise(lanes, joint, K)
            total_evidence += evidence
            message[:] = joint
            if log_probs.size > 0:
                here = b * num_steps + t
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    put(log_probs, here * K + j, K - j, load(joint, j, zero))
                log_evidence[here] = evidence
        log_z[b] = total_evidence
        if log_probs.size > 0:
            beyond, end = b * num_steps + lengths[b], (b + 1) * num_steps
            log_probs[beyond * K : end * K] = real(-np.inf)
            log_evidence[beyond:end] = real(0)


@kernel
def forward(shares, *arguments):
    """Log Z of each sequence; filtered log-probabilities and evidence too where there is room for them."""
    in_parallel(_forward, shares, arguments)


@njit(forceinline=True)
def times(probability, value, zero):
    """Their product; zero where the probability is, whatever overflow has made of the value."""
    return where_larger(probability, zero, probability * value, probability)


@njit
def _condition(
    share,
    first,
    last,
    lanes,
    order,
    lengths,
    num_steps,
    K,
    transition,
    transition_index,
    transition_step,
    log_probs,
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
):
    real = transition.dtype.type
    zero = zeros(lanes, transition)
    width = width_of(zero)
    nothing = splat(real(-np.inf), zero)
    for n in range(first, last):
        b = order[n]
        here = b * num_steps * K
        for t in range(lengths[b]):
            v_here = v_observation_index[b] + t * v_observation_step
            if t == 0:
                for j in range(K):
                    past[here + j] = v_initial[v_initial_index[b] + j] + v_observation[v_here + j]
            else:
                matrix = transition_index[b] + (t - 1) * transition_step
                v_matrix = v_transition_index[b] + (t - 1) * v_transition_step
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    top = splat(np.finfo(transition.dtype).min, zero)
                    for i in range(K):
                        logit = splat(log_probs[here - K + i], zero)
                        top = maximum(take(transition, matrix + i * K + j, K - j, nothing) + logit, top)
                    mass = zero
                    value = zero
                    for i in range(K):
                        logit = splat(log_probs[here - K + i], zero)
                        origin = exp(take(transition, matrix + i * K + j, K - j, nothing) + logit - top)
                        mass = mass + origin
                        before = take(v_transition, v_matrix + i * K + j, K - j, zero)
                        value = value + times(origin, before + splat(past[here - K + i], zero), zero)
                    # A state that cannot be reached has no past: mass zero, and zero is as good as any value.
                    mass = maximum(mass, splat(np.finfo(transition.dtype).tiny, zero))
                    value = divide(value, mass) + take(v_observation, v_here + j, K - j, zero)
                    put(past, here + j, K - j, value)
            here += K
        for j in range(K if lengths[b] > 0 else 0):
            probability = np.exp(log_probs[here - K + j])
            if probability > 0:
                expectation[b] += probability * past[here - K + j]


@kernel
def condition(shares, *arguments):
    """F_t(k) = E[f up to step t | z_t = k, x_1..t] for f the sum of the v's entries along a path, and E[f]."""
    in_parallel(_condition, shares, arguments)


@njit
def _backward(
    share,
    first,
    last,
    lanes,
    order,
    lengths,
    num_steps,
    K,
    transition,
    transition_index,
    transition_step,
    observation,
    observation_index,
    observation_step,
    log_probs,
    log_z,
    weight,
    offset,
    v_transition,
    v_transition_index,
    v_transition_step,
    v_observation,
    v_observation_index,
    v_observation_step,
    past,
    expectation,
    states,
    each,
    sums,
    out_index,
    own,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    width = width_of(zero)
    nothing = splat(real(-np.inf), zero)
    padded = (K + width - 1) // width * width
    tangent = past.size > 0
    scores = np.zeros(K * padded, observation.dtype)
    counts = np.zeros(K * padded if sums.size > 0 else 0, observation.dtype)
    ahead = np.full(padded, -np.inf, observation.dtype)
    beta = np.zeros(padded, observation.dtype)
    gamma = np.full(padded, -np.inf, observation.dtype)
    mass = np.ones(padded, observation.dtype)
    v_ahead = np.zeros(padded, observation.dtype)
    future = np.zeros(padded, observation.dtype)
    for n in range(first, last):
        b = order[n]
        begin, beyond, end = b * num_steps, b * num_steps + lengths[b], (b + 1) * num_steps
        if not log_z[b] > -np.inf:
            beyond = begin
        states[beyond * K : end * K] = real(0)
        if own:
            begin_unread = out_index[share, b] + max(beyond - begin - 1, 0) * K * K
            each[begin_unread : out_index[share, b] + (num_steps - 1) * K * K] = real(0)
        beta[:] = real(0)
        future[:] = real(0)
        for t in range(beyond - begin - 1, -1, -1):
            here = (begin + t) * K
            onward = begin + t + 1 < beyond
            matrix = transition_index[b] + t * transition_step
            v_matrix = v_transition_index[b] + t * v_transition_step
            if onward:
                index = observation_index[b] + (t + 1) * observation_step
                v_index = v_observation_index[b] + (t + 1) * v_observation_step
                for j in range(K):
                    ahead[j] = beta[j] + observation[index + j]
                    if tangent:
                        v_ahead[j] = future[j] + v_observation[v_index + j]
                for i in range(K):
                    row = matrix + i * K
                    best = nothing
                    for block in range(blocks(lanes, K, zero)):
                        j = block * width
                        best = maximum(best, take(transition, row + j, K - j, nothing) + load(ahead, j, nothing))
                    top = largest(best)
                    if top == real(-np.inf):
                        top = real(0)
                    row_mass = zero
                    value = zero
                    for block in range(blocks(lanes, K, zero)):
                        j = block * width
                        logits = take(transition, row + j, K - j, nothing) + load(ahead, j, nothing)
                        score = exp(logits - splat(top, zero))
                        store(scores, i * padded + j, score)
                        row_mass = row_mass + score
                        if tangent:
                            v = take(v_transition, v_matrix + i * K + j, K - j, zero) + load(v_ahead, j, zero)
                            value = value + times(score, v, zero)
                    mass[i] = total(row_mass)
                    beta[i] = top
                    if tangent:
                        future[i] = total(value) / mass[i] if mass[i] > real(0) else real(0)
                # Only ratios of the message matter: its largest entry is kept at zero.
                best = nothing
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    store(beta, j, load(beta, j, zero) + log(load(mass, j, zero)))
                for j in range(K):
                    best = maximum(best, splat(beta[j], zero))
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    store(beta, j, load(beta, j, zero) - best)
            for j in range(K):
                gamma[j] = log_probs[here + j] + beta[j]
            normalise(lanes, gamma, K)
            for block in range(blocks(lanes, K, zero)):
                j = block * width
                marginal = exp(load(gamma, j, nothing))
                store(gamma, j, marginal)
                factor = splat(offset[b], zero)
                if tangent:
                    value = take(past, here + j, K - j, zero) + load(future, j, zero)
                    factor = fma(splat(weight[b], zero), value - splat(expectation[b], zero), factor)
                put(states, here + j, K - j, times(marginal, factor, zero))
            if onward and (each.size > 0 or sums.size > 0):
                out = out_index[share, b] + t * K * K
                for i in range(K):
                    share_of_row = splat(gamma[i] / mass[i] if mass[i] > real(0) else real(0), zero)
                    for block in range(blocks(lanes, K, zero)):
                        j = block * width
                        pair = load(scores, i * padded + j, zero) * share_of_row
                        factor = splat(offset[b], zero)
                        if tangent:
                            v = take(v_transition, v_matrix + i * K + j, K - j, zero) + load(v_ahead, j, zero)
                            value = v + splat(past[here + i] - expectation[b], zero)
                            factor = fma(splat(weight[b], zero), value, factor)
                        if each.size > 0:
                            old = zero if own else take(each, out + i * K + j, K - j, zero)
                            put(each, out + i * K + j, K - j, old + times(pair, factor, zero))
                        else:
                            old = load(counts, i * padded + j, zero)
                            store(counts, i * padded + j, old + times(pair, factor, zero))
                if sums.size > 0 and (t % STEPS_PER_SUM == 0):
                    add_counts(sums, out_index[share, b], counts, 0, padded, K)
                    counts[:] = real(0)
            for j in range(K, padded):
                gamma[j] = real(-np.inf)


@kernel
def backward(shares, *arguments):
    """For every state and transition, marginal * (weight * (E[f | state or transition] - E[f]) + offset).

    Without room in `past` the bracket is the offset alone: marginals times a number. Transitions are added to
    `each`, step by step, or to `sums`, whichever has room; out_index[share, b] says where those of a sequence begin,
    `own` that nobody else adds there.
    """
    in_parallel(_backward, shares, arguments)
