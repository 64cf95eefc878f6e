"""Compiled recursions in scaled space for many states: threads divide the columns of the matrix, not the sequences.

A matrix of a thousand states and more does not stay in a core's own cache, and reading it is most of the work. So each
thread reads only its own columns, for all sequences, and they meet at every step to exchange messages. Nothing can
fail between two meetings: all memory is there beforehand. The results are those of `cpu_scaled`.
"""

import numpy as np
from numba import njit

from pyrohmm.ops.simd import (
    ROWS,
    exp,
    fma,
    group,
    load,
    multiply_panels,
    padded_width,
    panel_width,
    put,
    shift_of,
    splat,
    store,
    take,
    total,
    width_of,
    zeros,
)
from pyrohmm.ops.threads import in_parallel, kernel, meet, team_size

# Numbers of a thread's own, a multiple of a cache line apart from those of the next.
NUMBERS = 8 * ROWS


@njit(forceinline=True)
def own_numbers(numbers, share, which):
    """One of a thread's numbers for each sequence."""
    return numbers[share * NUMBERS + which * ROWS : share * NUMBERS + (which + 1) * ROWS]


@njit(forceinline=True)
def own_panels(share, team, panels):
    """The first panel of a thread, and the end."""
    return panels * share // team, panels * (share + 1) // team


@njit(forceinline=True)
def forth_or_back(begin, end, t):
    """Panels, forth at one step and back at the next: the last ones read are still in the core's cache."""
    return range(begin, end) if t % 2 == 0 else range(end - 1, begin - 1, -1)


@njit
def _forward(
    share,
    first,
    last,
    shares,
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
    even,
    odd,
    masses,
    predicted,
    starts,
    numbers,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    nothing = splat(real(-np.inf), zero)
    width = width_of(zero)
    padded = padded_width(lanes, K, zero)
    panel = panel_width(padded, zero)
    panels = padded // panel
    team = min(team_size(), shares)
    if share >= team:
        return
    begin, end = own_panels(share, team, panels)
    start = starts[share * padded : (share + 1) * padded]
    inverse = own_numbers(numbers, share, 0)
    product = own_numbers(numbers, share, 1)
    evidence = own_numbers(numbers, share, 2)
    n = 0
    while n < len(order):
        rows = group(order, n, len(order), packed_index)
        inverse[:] = 1.0
        product[:] = 1.0
        evidence[:] = 0.0
        for r in range(rows):
            predicted[r * padded + begin * panel : r * padded + end * panel] = real(1)
        active = rows
        for t in range(lengths[order[n]]):
            while lengths[order[n + active - 1]] <= t:
                active -= 1
            message, past = (even, odd) if t % 2 == 0 else (odd, even)
            own = forth_or_back(begin, end, t)
            if t > 0:
                multiply_panels(predicted, past, padded, packed, packed_index[order[n]], K, active, own, zero)
            for r in range(active):
                b = order[n + r]
                values, index = observation, observation_index[b] + t * observation_step
                if t == 0:
                    for j in range(K):
                        start[j] = initial[initial_index[b] + j] + observation[index + j]
                    values, index = start, 0
                top = shift_of(lanes, values, index, K)
                scale = splat(real(inverse[r]), zero)
                for number_of_panel in own:
                    mass = zero
                    for j in range(number_of_panel * panel, (number_of_panel + 1) * panel, width):
                        likelihood = exp(take(values, index + j, K - j, nothing) - splat(top, zero))
                        joint = load(predicted, r * padded + j, zero) * scale * likelihood
                        store(message, r * padded + j, joint)
                        if messages.size > 0:
                            put(messages, (b * num_steps + t) * K + j, K - j, joint)
                        mass = mass + joint
                    masses[(t % 2 * ROWS + r) * panels + number_of_panel] = total(mass)
                evidence[r] += top
            meet()
            for r in range(active):
                mass = masses[(t % 2 * ROWS + r) * panels : (t % 2 * ROWS + r + 1) * panels].sum()
                inverse[r] = 1.0 / mass if mass > 0.0 else 0.0
                product[r] *= mass
                if not 1e-200 < product[r] < 1e200:
                    evidence[r] += np.log(product[r])
                    product[r] = 1.0
        if share == 0:
            for r in range(rows):
                b = order[n + r]
                log_z[b] = evidence[r] + np.log(product[r]) + max(lengths[b] - 1, 0) * np.float64(tops[number[b]])
                if messages.size > 0:
                    messages[(b * num_steps + lengths[b]) * K : (b + 1) * num_steps * K] = real(0)
        meet()
        n += rows


@kernel
def forward(shares, lanes, order, lengths, num_steps, K, *arguments):
    """Log Z of each sequence, and messages where there is room for them; see `cpu_scaled.forward`."""
    observation = arguments[6]
    padded = padded_width(lanes, K, zeros(lanes, observation))
    even = np.zeros(ROWS * padded, observation.dtype)
    odd, masses, predicted = np.zeros_like(even), np.zeros_like(even), np.zeros_like(even)
    starts, numbers = np.zeros(len(shares) * padded, observation.dtype), np.zeros(len(shares) * NUMBERS)
    common = (len(shares), lanes, order, lengths, num_steps, K)
    in_parallel(_forward, shares, common + arguments + (even, odd, masses, predicted, starts, numbers))


@njit
def _backward(
    share,
    first,
    last,
    shares,
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
    even,
    odd,
    masses,
    beta,
    numbers,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    nothing = splat(real(-np.inf), zero)
    width = width_of(zero)
    padded = padded_width(lanes, K, zero)
    panel = panel_width(padded, zero)
    panels = padded // panel
    team = min(team_size(), shares)
    if share >= team:
        return
    begin, end = own_panels(share, team, panels)
    inverse = own_numbers(numbers, share, 0)
    before = own_numbers(numbers, share, 1)
    n = 0
    while n < len(order):
        rows = group(order, n, len(order), packed_index)
        if share == 0:
            for r in range(rows):
                b = order[n + r]
                beyond = b * num_steps + lengths[b]
                marginals[beyond * K : (b + 1) * num_steps * K] = real(0)
                onward[max(b * num_steps, beyond - 1) * K : (b + 1) * num_steps * K] = real(0)
        active = 0
        for t in range(lengths[order[n]] - 1, -2, -1):
            message, past = (even, odd) if t % 2 == 0 else (odd, even)
            own = forth_or_back(begin, end, t)
            # The mass of the step after is known now, and with it that step's results.
            for r in range(active):
                b = order[n + r]
                here = (b * num_steps + t + 1) * K
                marginal = splat(real(inverse[r] * weight[b]), zero)
                pair = splat(real(before[r] * inverse[r] * weight[b]), zero)
                for number_of_panel in own:
                    for j in range(number_of_panel * panel, (number_of_panel + 1) * panel, width):
                        back = load(beta, r * padded + j, zero)
                        put(marginals, here + j, K - j, take(messages, here + j, K - j, zero) * back * marginal)
                        if t + 2 < lengths[b]:
                            put(onward, here + j, K - j, load(message, r * padded + j, zero) * pair)
            if t < 0:
                break
            multiply_panels(beta, past, padded, packed, packed_index[order[n]], K, active, own, zero)
            while active < rows and lengths[order[n + active]] > t:
                beta[active * padded + begin * panel : active * padded + end * panel] = real(1)
                inverse[active] = 1.0
                active += 1
            for r in range(active):
                b = order[n + r]
                index = observation_index[b] + t * observation_step
                here = (b * num_steps + t) * K
                top = shift_of(lanes, observation, index, K)
                scale = splat(real(inverse[r]), zero)
                for number_of_panel in own:
                    mass = zero
                    for j in range(number_of_panel * panel, (number_of_panel + 1) * panel, width):
                        back = load(beta, r * padded + j, zero) * scale
                        store(beta, r * padded + j, back)
                        mass = fma(take(messages, here + j, K - j, zero), back, mass)
                        likelihood = exp(take(observation, index + j, K - j, nothing) - splat(top, zero))
                        store(message, r * padded + j, likelihood * back)
                    masses[(t % 2 * ROWS + r) * panels + number_of_panel] = total(mass)
            meet()
            for r in range(active):
                mass = masses[(t % 2 * ROWS + r) * panels : (t % 2 * ROWS + r + 1) * panels].sum()
                before[r] = inverse[r]
                inverse[r] = 1.0 / mass if log_z[order[n + r]] > -np.inf else 0.0
        meet()
        n += rows


@kernel
def backward(shares, lanes, order, lengths, num_steps, K, *arguments):
    """State marginals, and v as in `cpu_scaled.backward`, with `packed` the transposed matrix."""
    observation = arguments[2]
    padded = padded_width(lanes, K, zeros(lanes, observation))
    even = np.zeros(ROWS * padded, observation.dtype)
    odd, masses, beta = np.zeros_like(even), np.zeros_like(even), np.zeros_like(even)
    common = (len(shares), lanes, order, lengths, num_steps, K)
    in_parallel(_backward, shares, common + arguments + (even, odd, masses, beta, np.zeros(len(shares) * NUMBERS)))
