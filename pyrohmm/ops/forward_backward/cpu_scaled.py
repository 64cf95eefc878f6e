"""Compiled recursions in scaled space, for chains whose transitions do not change and pass the certificate.

Messages are probabilities; a step of a group of sequences is one small matrix product. `K` states are kept in rows of
`padded` numbers, zero behind the K-th.
"""

import numpy as np
from numba import njit

from pyrohmm.ops.simd import (
    ROWS,
    STEPS_PER_SUM,
    add_counts,
    blocks,
    exp,
    extremes,
    fma,
    group,
    is_narrow,
    largest,
    load,
    log,
    maximum,
    multiply,
    padded_width,
    put,
    row_totals,
    shift_of,
    splat,
    spread,
    store,
    take,
    total,
    widest,
    width_of,
    zeros,
)
from pyrohmm.ops.threads import in_parallel, kernel


@njit(forceinline=True)
def absorb(lanes, values, index, K, inverse, predicted, message, row):
    """Multiply predicted * inverse by exp(values - their maximum), and return that maximum and the new mass."""
    real = values.dtype.type
    zero = zeros(lanes, values)
    width = width_of(zero)
    nothing = splat(real(-np.inf), zero)
    top = shift_of(lanes, values, index, K)
    mass = zero
    for block in range(blocks(lanes, K, zero)):
        j = block * width
        likelihood = exp(take(values, index + j, K - j, nothing) - splat(top, zero))
        joint = load(predicted, row + j, mass) * splat(inverse, zero) * likelihood
        store(message, row + j, joint)
        mass = mass + joint
    return top, total(mass)


@njit(forceinline=True)
def record(lanes, values, index, K, top, mass, inverse, predicted, row, log_probs, out):
    """Write log(predicted * inverse) + values, normalised: exact also where the probability underflows."""
    real = values.dtype.type
    zero = zeros(lanes, values)
    width = width_of(zero)
    nothing = splat(real(-np.inf), zero)
    shift = splat(real(np.log(mass)) if mass > real(0) else real(0), zero)
    for block in range(blocks(lanes, K, zero)):
        j = block * width
        prior = log(load(predicted, row + j, nothing) * splat(inverse, zero))
        put(log_probs, out + j, K - j, prior + (take(values, index + j, K - j, nothing) - splat(top, zero)) - shift)


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
    packed,
    packed_index,
    tops,
    number,
    observation,
    observation_index,
    observation_step,
    messages,
    log_z,
    log_probs,
    log_evidence,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    width = width_of(zero)
    padded = padded_width(lanes, K, zero)
    message = np.zeros(ROWS * padded, observation.dtype)
    predicted = np.zeros(ROWS * padded, observation.dtype)
    start = np.zeros(padded, observation.dtype)
    inverse = np.ones(ROWS, observation.dtype)
    product = np.ones(ROWS, np.float64)
    evidence = np.zeros(ROWS, np.float64)
    n = first
    while n < last:
        matrix = packed_index[order[n]]
        rows = group(order, n, last, packed_index)
        inverse[:] = real(1)
        product[:] = 1.0
        evidence[:] = 0.0
        predicted[:] = real(1)
        active = rows
        for t in range(lengths[order[n]]):
            while lengths[order[n + active - 1]] <= t:
                active -= 1
            if t > 0:
                multiply(predicted, message, padded, packed, matrix, K, active, zero)
            for r in range(active):
                b = order[n + r]
                index = observation_index[b] + t * observation_step
                row = r * padded
                here = b * num_steps + t
                if t == 0:
                    for j in range(K):
                        start[j] = initial[initial_index[b] + j] + observation[index + j]
                    top, mass = absorb(lanes, start, 0, K, inverse[r], predicted, message, row)
                else:
                    top, mass = absorb(lanes, observation, index, K, inverse[r], predicted, message, row)
                if messages.size > 0:
                    for block in range(blocks(lanes, K, zero)):
                        j = block * width
                        put(messages, here * K + j, K - j, load(message, row + j, zero))
                if log_probs.size > 0:
                    if t == 0:
                        record(lanes, start, 0, K, top, mass, inverse[r], predicted, row, log_probs, here * K)
                    else:
                        record(lanes, observation, index, K, top, mass, inverse[r], predicted, row, log_probs, here * K)
                    log_evidence[here] = np.log(np.float64(mass)) + top + (tops[number[b]] if t > 0 else real(0))
                inverse[r] = real(1) / mass if mass > real(0) else real(0)
                # A logarithm of many factors at once. A NaN ends up in log Z, an impossible step makes it -inf.
                product[r] *= mass
                evidence[r] += top
                if not 1e-200 < product[r] < 1e200:
                    evidence[r] += np.log(product[r])
                    product[r] = 1.0
        for r in range(rows):
            b = order[n + r]
            log_z[b] = evidence[r] + np.log(product[r]) + max(lengths[b] - 1, 0) * np.float64(tops[number[b]])
            beyond = b * num_steps + lengths[b]
            if messages.size > 0:
                messages[beyond * K : (b + 1) * num_steps * K] = real(0)
            if log_probs.size > 0:
                log_probs[beyond * K : (b + 1) * num_steps * K] = real(-np.inf)
                log_evidence[beyond : (b + 1) * num_steps] = real(0)
        n += rows


@kernel
def forward(shares, *arguments):
    """Log Z of each sequence; messages, or filtered log-probabilities and evidence, where there is room for them.

    A message is not normalised: alpha_t(j) = p(z_t = j | x_1..t-1) exp(o_t(j) - max o_t), which sums to the
    evidence of step t. So the sum of a step is not in the way of its matrix product.
    """
    in_parallel(_forward, shares, arguments)


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
    packed,
    packed_index,
    observation,
    observation_index,
    observation_step,
    messages,
    log_z,
    weight,
    marginals,
    onward,
    sums,
    out_index,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    width = width_of(zero)
    nothing = splat(real(-np.inf), zero)
    padded = padded_width(lanes, K, zero)
    message = np.zeros(ROWS * padded, observation.dtype)
    beta = np.zeros(ROWS * padded, observation.dtype)
    counts = np.zeros(ROWS * K * padded if sums.size > 0 else 0, observation.dtype)
    n = first
    while n < last:
        matrix = packed_index[order[n]]
        rows = group(order, n, last, packed_index)
        for r in range(rows):
            b = order[n + r]
            beyond, end = b * num_steps + lengths[b], (b + 1) * num_steps
            marginals[beyond * K : end * K] = real(0)
            if onward.size > 0:
                onward[max(b * num_steps, beyond - 1) * K : end * K] = real(0)
        active = 0
        for t in range(lengths[order[n]] - 1, -1, -1):
            if active > 0:
                multiply(beta, message, padded, packed, matrix, K, active, zero)
            while active < rows and lengths[order[n + active]] > t:
                beta[active * padded : (active + 1) * padded] = real(1)
                active += 1
            for r in range(active):
                b = order[n + r]
                index = observation_index[b] + t * observation_step
                row = r * padded
                here = (b * num_steps + t) * K
                best = nothing
                mass = zero
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    best = maximum(best, take(observation, index + j, K - j, nothing))
                    mass = fma(take(messages, here + j, K - j, zero), load(beta, row + j, zero), mass)
                top = largest(best)
                if top == real(-np.inf):
                    top = real(0)
                inverse = real(1) / total(mass) if log_z[b] > -np.inf else real(0)
                scale = splat(inverse, zero)
                weighted = splat(inverse * weight[b], zero)
                following = t + 1 < lengths[b]
                if following and sums.size > 0:
                    ahead = load(message, row, zero) * weighted
                    for i in range(K):
                        place = (r * K + i) * padded
                        chance = splat(messages[here + i], zero)
                        store(counts, place, fma(chance, ahead, load(counts, place, zero)))
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    back = load(beta, row + j, zero)
                    put(marginals, here + j, K - j, take(messages, here + j, K - j, zero) * back * weighted)
                    if following and onward.size > 0:
                        put(onward, here + j, K - j, load(message, row + j, zero) * weighted)
                    if t > 0:
                        likelihood = exp(take(observation, index + j, K - j, nothing) - splat(top, zero))
                        store(message, row + j, likelihood * back * scale)
            if sums.size > 0 and t % STEPS_PER_SUM == 0:
                for r in range(active):
                    add_counts(sums, out_index[share, order[n + r]], counts, r * K, padded, K)
                counts[:] = real(0)
        n += rows


@kernel
def backward(shares, *arguments):
    """State marginals, and v_t such that alpha_t(i) exp(A_ij) v_t(j) is the transition marginal, times weight.

    v goes to `onward` if there is room. In narrow kernels, the sum over time of alpha_t(i) v_t(j) is added to `sums` if
    there is room; out_index[share, b] says where that of a sequence begins.

    `packed` holds the transposed matrix. The message back is kept at sum_i alpha_t(i) beta_t(i) = 1.
    """
    in_parallel(_backward, shares, arguments)


@njit(forceinline=True)
def chances_of(values, index, count, top, chances, like):
    """Write exp(value - top) of so many neighbouring numbers."""
    nothing = splat(values.dtype.type(-np.inf), like)
    width = width_of(like)
    shift = splat(top, like)
    done = count // (4 * width) * (4 * width)
    # Four at once share the loading of what exp is made of.
    for j in range(0, done, 4 * width):
        first = exp(load(values, index + j, like) - shift)
        second = exp(load(values, index + j + width, like) - shift)
        third = exp(load(values, index + j + 2 * width, like) - shift)
        fourth = exp(load(values, index + j + 3 * width, like) - shift)
        store(chances, j, first)
        store(chances, j + width, second)
        store(chances, j + 2 * width, third)
        store(chances, j + 3 * width, fourth)
    for j in range(done, count, width):
        store(chances, j, exp(take(values, index + j, count - j, nothing) - shift))


@njit
def _forward_steps(
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
    bound,
    observation,
    observation_index,
    observation_step,
    passed,
    tops,
    messages,
    log_z,
    log_probs,
    log_evidence,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    nothing = splat(real(-np.inf), zero)
    width = width_of(zero)
    full = widest(observation)
    message = np.zeros(blocks(lanes, K, zero) * width, observation.dtype)
    predicted = np.ones(blocks(lanes, K, zero) * width, observation.dtype)
    # The last vector written, and the last one read, end behind the matrix.
    chances = np.zeros(K * K + width_of(full) if is_narrow(lanes) else 0, observation.dtype)
    for n in range(first, last):
        b = order[n]
        inverse = real(1)
        product = 1.0
        evidence = 0.0
        for t in range(lengths[b]):
            index = observation_index[b] + t * observation_step
            here = b * num_steps + t
            if t == 0:
                predicted[:] = real(1)
                for j in range(K):
                    message[j] = initial[initial_index[b] + j] + observation[index + j]
                highest = real(0)
                top, mass = absorb(lanes, message, 0, K, inverse, predicted, message, 0)
            else:
                matrix = transition_index[b] + (t - 1) * transition_step
                highest, lowest = extremes(transition, matrix, K * K, full)
                if not lowest - highest >= bound:
                    passed[b] = False
                    break
                top_of_matrix = splat(highest, zero)
                if is_narrow(lanes):
                    # What is behind the K-th state here, absorb multiplies by zero.
                    chances_of(transition, matrix, K * K, highest, chances, full)
                    even = zero
                    odd = zero
                    for i in range(0, K - 1, 2):
                        even = fma(spread(message, i, zero), load(chances, i * K, zero), even)
                        odd = fma(spread(message, i + 1, zero), load(chances, i * K + K, zero), odd)
                    if K % 2 == 1:
                        even = fma(spread(message, K - 1, zero), load(chances, (K - 1) * K, zero), even)
                    store(predicted, 0, even + odd)
                for block in range(0 if is_narrow(lanes) else blocks(lanes, K, zero)):
                    j = block * width
                    even = zero
                    odd = zero
                    for i in range(0, K - 1, 2):
                        row = matrix + i * K + j
                        chance = exp(take(transition, row, K - j, nothing) - top_of_matrix)
                        even = fma(spread(message, i, zero), chance, even)
                        chance = exp(take(transition, row + K, K - j, nothing) - top_of_matrix)
                        odd = fma(spread(message, i + 1, zero), chance, odd)
                    if K % 2 == 1:
                        chance = exp(take(transition, matrix + (K - 1) * K + j, K - j, nothing) - top_of_matrix)
                        even = fma(spread(message, K - 1, zero), chance, even)
                    store(predicted, j, even + odd)
                top, mass = absorb(lanes, observation, index, K, inverse, predicted, message, 0)
            if messages.size > 0:
                tops[here] = highest
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    put(messages, here * K + j, K - j, load(message, j, zero))
            if log_probs.size > 0:
                if t == 0:
                    for j in range(K):
                        log_probs[here * K + j] = initial[initial_index[b] + j] + observation[index + j]
                    record(lanes, log_probs, here * K, K, top, mass, inverse, predicted, 0, log_probs, here * K)
                else:
                    record(lanes, observation, index, K, top, mass, inverse, predicted, 0, log_probs, here * K)
                log_evidence[here] = np.log(np.float64(mass)) + top + highest
            inverse = real(1) / mass if mass > real(0) else real(0)
            product *= mass
            evidence += top + np.float64(highest)
            if not 1e-200 < product < 1e200:
                evidence += np.log(product)
                product = 1.0
        log_z[b] = evidence + np.log(product)
        beyond, end = b * num_steps + lengths[b], (b + 1) * num_steps
        if messages.size > 0:
            messages[beyond * K : end * K] = real(0)
        if log_probs.size > 0:
            log_probs[beyond * K : end * K] = real(-np.inf)
            log_evidence[beyond:end] = real(0)


@kernel
def forward_steps(shares, *arguments):
    """As `forward`, for transitions that change, with a look at each matrix.

    A sequence with a matrix whose smallest entry lies below its largest by more than the bound allows is left
    unfinished, and `passed` set to False. `tops` gets the largest entry of each matrix, where messages are kept.
    """
    in_parallel(_forward_steps, shares, arguments)


@njit
def _backward_steps(
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
    tops,
    messages,
    log_z,
    weight,
    marginals,
    each,
    sums,
    out_index,
    own,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    nothing = splat(real(-np.inf), zero)
    width = width_of(zero)
    padded = blocks(lanes, K, zero) * width
    message = np.zeros(padded, observation.dtype)
    beta = np.zeros(padded, observation.dtype)
    full = widest(observation)
    # Where one vector holds all states, there are as many rows as it has lanes.
    pairs = np.zeros(max(K, width) * padded, observation.dtype)
    # The last vector written, and the last one read, end behind the matrix.
    chances = np.zeros(K * K + width_of(full) if is_narrow(lanes) else 0, observation.dtype)
    posterior = np.zeros(padded, observation.dtype)
    counts = np.zeros(K * padded if sums.size > 0 else 0, observation.dtype)
    for n in range(first, last):
        b = order[n]
        beyond, end = lengths[b], num_steps
        marginals[(b * end + beyond) * K : (b + 1) * end * K] = real(0)
        if own:
            begin_unread = out_index[share, b] + max(beyond - 1, 0) * K * K
            each[begin_unread : out_index[share, b] + (end - 1) * K * K] = real(0)
        inverse = real(1)
        scale = splat(inverse, zero)
        for t in range(beyond - 1, -1, -1):
            index = observation_index[b] + t * observation_step
            here = (b * num_steps + t) * K
            onward = t + 1 < beyond
            if onward:
                matrix = transition_index[b] + t * transition_step
                top_of_matrix = splat(tops[b * num_steps + t + 1], zero)
                if is_narrow(lanes):
                    chances_of(transition, matrix, K * K, tops[b * num_steps + t + 1], chances, full)
                    for i in range(K):
                        store(pairs, i * padded, load(chances, i * K, zero) * load(message, 0, zero))
                    store(beta, 0, row_totals(pairs, 0, padded, zero) * scale)
                for i in range(0 if is_narrow(lanes) else K):
                    row_mass = zero
                    for block in range(blocks(lanes, K, zero)):
                        j = block * width
                        chance = exp(take(transition, matrix + i * K + j, K - j, nothing) - top_of_matrix)
                        pair = chance * load(message, j, zero)
                        store(pairs, i * padded + j, pair)
                        row_mass = row_mass + pair
                    beta[i] = total(row_mass) * inverse
            else:
                beta[:K] = real(1)
            best = nothing
            mass = zero
            for block in range(blocks(lanes, K, zero)):
                j = block * width
                best = maximum(best, take(observation, index + j, K - j, nothing))
                mass = fma(take(messages, here + j, K - j, zero), load(beta, j, zero), mass)
            top = largest(best)
            if top == real(-np.inf):
                top = real(0)
            # The message is divided by this step's mass after the next product, which need not wait for it.
            before = scale
            inverse = real(1) / total(mass) if log_z[b] > -np.inf else real(0)
            scale = splat(inverse, zero)
            weighted = splat(inverse * weight[b], zero)
            for block in range(blocks(lanes, K, zero)):
                j = block * width
                back = load(beta, j, zero)
                chance = take(messages, here + j, K - j, zero) * weighted
                store(posterior, j, chance * before)
                put(marginals, here + j, K - j, chance * back)
                likelihood = exp(take(observation, index + j, K - j, nothing) - splat(top, zero))
                store(message, j, likelihood * back)
            if onward:
                out = out_index[share, b] + t * K * K
                for i in range(K):
                    factor = spread(posterior, i, zero)
                    for block in range(blocks(lanes, K, zero)):
                        j = block * width
                        pair = load(pairs, i * padded + j, zero)
                        if sums.size > 0:
                            store(counts, i * padded + j, fma(pair, factor, load(counts, i * padded + j, zero)))
                        elif own:
                            put(each, out + i * K + j, K - j, pair * factor)
                        else:
                            old = take(each, out + i * K + j, K - j, zero)
                            put(each, out + i * K + j, K - j, fma(pair, factor, old))
                if sums.size > 0 and t % STEPS_PER_SUM == 0:
                    add_counts(sums, out_index[share, b], counts, 0, padded, K)
                    counts[:] = real(0)


@kernel
def backward_steps(shares, *arguments):
    """As `backward`, for transitions that change.

    The transition marginals, times weight, are added to `each`, step by step, or to `sums`, whichever has room;
    out_index[share, b] says where those of a sequence begin, `own` that nobody else adds there.
    """
    in_parallel(_backward_steps, shares, arguments)
