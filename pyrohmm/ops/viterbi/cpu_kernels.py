"""Compiled max-product recursions.

The scores of a step are kept relative to the best score of the step before, whatever T. Where one vector holds all
states, the predecessor of each is known as soon as its score, and is kept. Else the scores are, and on the way back the
predecessor of the one state on the path is sought again, in the same arithmetic.
"""

import numpy as np
from numba import njit

from pyrohmm.ops.simd import (
    ROWS,
    blocks,
    first_equal,
    group,
    is_narrow,
    largest,
    load,
    max_plus,
    maximum,
    padded_width,
    put,
    put_bytes,
    splat,
    store,
    take,
    where_larger,
    width_of,
    zeros,
)
from pyrohmm.ops.threads import in_parallel, kernel


@njit(forceinline=True)
def argmax(lanes, values, index, added, added_index, K):
    """The lowest k that maximises values[k] + added[k], and the maximum."""
    zero = zeros(lanes, values)
    nothing = splat(values.dtype.type(-np.inf), zero)
    best = nothing
    for block in range(blocks(lanes, K, zero)):
        j = block * width_of(zero)
        here = take(values, index + j, K - j, nothing) + take(added, added_index + j, K - j, zero)
        best = maximum(best, here)
    top = largest(best)
    for block in range(blocks(lanes, K, zero)):
        j = block * width_of(zero)
        here = take(values, index + j, K - j, nothing) + take(added, added_index + j, K - j, zero)
        lane = first_equal(here, splat(top, zero))
        if lane < width_of(zero):
            return j + lane, top
    return 0, top  # a NaN is equal to nothing


@njit(forceinline=True)
def step_each(lanes, onward, message, row, values, index, distance, K, pointers, here):
    """The best score into each state, of the one vector of them, and the lowest state that it comes from."""
    zero = zeros(lanes, message)
    nothing = splat(message.dtype.type(-np.inf), zero)
    best = nothing
    pointer = zero
    for i in range(K):
        score = splat(message[row + i], zero) + take(values, index + i * distance, distance, nothing)
        pointer = where_larger(score, best, splat(message.dtype.type(i), zero), pointer)
        best = maximum(score, best)
    store(onward, row, best)
    put_bytes(pointers, here, K, pointer)


@njit
def _scores(
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
    packed,
    packed_index,
    observation,
    observation_index,
    observation_step,
    best_scores,
    pointers,
):
    real = observation.dtype.type
    zero = zeros(lanes, observation)
    nothing = splat(real(-np.inf), zero)
    width = width_of(zero)
    padded = padded_width(lanes, K, zero)
    shared = packed.size > 0
    message = np.full(ROWS * padded, -np.inf, observation.dtype)
    onward = np.zeros(ROWS * padded, observation.dtype)
    shift = np.zeros(ROWS, observation.dtype)
    n = first
    while n < last:
        rows = group(order, n, last, packed_index) if shared else 1
        active = rows
        for t in range(lengths[order[n]]):
            while lengths[order[n + active - 1]] <= t:
                active -= 1
            if t == 0:
                shift[:] = real(0)
                for r in range(active):
                    for j in range(K):
                        onward[r * padded + j] = initial[initial_index[order[n + r]] + j]
            elif is_narrow(lanes):
                for r in range(active):
                    b = order[n + r]
                    here = (b * num_steps + t) * K
                    if shared:
                        step_each(lanes, onward, message, r * padded, packed, packed_index[b], width, K, pointers, here)
                    else:
                        matrix = transition_index[b] + (t - 1) * transition_step
                        step_each(lanes, onward, message, r * padded, transition, matrix, K, K, pointers, here)
            elif shared:
                max_plus(onward, message, padded, packed, packed_index[order[n]], K, active, zero)
            else:
                matrix = transition_index[order[n]] + (t - 1) * transition_step
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    best = nothing
                    for i in range(K):
                        best = maximum(
                            splat(message[i], zero) + take(transition, matrix + i * K + j, K - j, nothing), best
                        )
                    store(onward, j, best)
            for r in range(active):
                b = order[n + r]
                index = observation_index[b] + t * observation_step
                best = nothing
                for block in range(blocks(lanes, K, zero)):
                    j = block * width
                    relative = take(observation, index + j, K - j, nothing) - splat(shift[r], zero)
                    score = load(onward, r * padded + j, zero) + relative
                    best = maximum(best, score)
                    store(message, r * padded + j, score)
                    if not is_narrow(lanes):
                        put(best_scores, (b * num_steps + t) * K + j, K - j, score)
                    elif t == lengths[b] - 1:
                        put(best_scores, b * K, K, score)
                top = largest(best)
                shift[r] = top if top > real(-np.inf) else real(0)
        n += rows


@kernel
def scores(shares, *arguments):
    """Best score of a path into each state, and where it comes from; `packed` holds matrices shared over time.

    Where one vector holds all states: `pointers` (B, T, K) get the predecessors, `best_scores` (B, K) the scores of the
    last step. Else `best_scores` (B, T, K) get all scores.
    """
    in_parallel(_scores, shares, arguments)


@njit
def _trace(
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
    transposed,
    transposed_index,
    observation,
    observation_index,
    observation_step,
    best_scores,
    pointers,
    states,
    log_prob,
):
    real = observation.dtype.type
    nothing_added = np.zeros(K, observation.dtype)
    state = np.zeros(ROWS, np.int64)
    length = np.zeros(ROWS, np.int64)
    potential = np.zeros(ROWS, np.float64)
    for n in range(first, last, ROWS):
        rows = min(ROWS, last - n)
        for r in range(rows):
            b = order[n + r]
            length[r] = lengths[b]
            potential[r] = 0.0
            if length[r] > 0:
                end = b * K if is_narrow(lanes) else (b * num_steps + length[r] - 1) * K
                state[r], top = argmax(lanes, best_scores, end, nothing_added, 0, K)
                if top == real(-np.inf):
                    length[r] = 0
                    potential[r] = -np.inf
        # Of several sequences in turns: a step of each waits only for the one before of the same.
        for t in range(num_steps - 1, -1, -1):
            for r in range(rows):
                b = order[n + r]
                here = b * num_steps + t
                if t >= length[r]:
                    states[here] = -1
                    continue
                after = state[r]
                states[here] = after
                potential[r] += observation[observation_index[b] + t * observation_step + after]
                if t == 0:
                    potential[r] += initial[initial_index[b] + after]
                    continue
                matrix = transition_index[b] + (t - 1) * transition_step
                if is_narrow(lanes):
                    before = np.int64(pointers[here * K + after])
                    step = transition[matrix + before * K + after]
                elif transposed.size > 0:
                    column = transposed_index[b] + after * K
                    before, _ = argmax(lanes, best_scores, (here - 1) * K, transposed, column, K)
                    step = transposed[column + before]
                else:
                    # A column of a matrix that is read once: not worth a vector.
                    entry = matrix + after
                    before, best = 0, best_scores[(here - 1) * K] + transition[entry]
                    for i in range(1, K):
                        score = best_scores[(here - 1) * K + i] + transition[entry + i * K]
                        if score > best:
                            before, best = i, score
                    step = transition[entry + before * K]
                potential[r] += step
                state[r] = before
        for r in range(rows):
            log_prob[order[n + r]] = potential[r]


@kernel
def trace(shares, *arguments):
    """The best path and its potential, added up in float64; `transposed` holds matrices shared over time."""
    in_parallel(_trace, shares, arguments)


@njit
def _list_paths(
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
    k,
    states,
    log_prob,
):
    real = observation.dtype.type
    score = np.empty((K, k), observation.dtype)
    onward = np.empty((K, k), observation.dtype)
    for n in range(first, last):
        b = order[n]
        for rank in range(k):
            log_prob[b * k + rank] = 0.0 if lengths[b] == 0 and rank == 0 else -np.inf
            for t in range(num_steps):
                states[(b * k + rank) * num_steps + t] = -1
        if lengths[b] == 0:
            continue
        pointers = np.empty((lengths[b], K, k), np.int32)
        offset = 0.0
        score[:] = real(-np.inf)
        for j in range(K):
            score[j, 0] = initial[initial_index[b] + j] + observation[observation_index[b] + j]
        for t in range(1, lengths[b]):
            top = score[:, 0].max()
            if top > real(-np.inf):
                score -= top
                offset += top
            matrix = transition_index[b] + (t - 1) * transition_step
            onward[:] = real(-np.inf)
            for i in range(K):
                for j in range(K):
                    step = transition[matrix + i * K + j]
                    for rank in range(k):
                        # Ranks fall: the first that is too small ends the list. Of equal paths the earlier state's
                        # comes first.
                        candidate = score[i, rank] + step
                        if not candidate > onward[j, k - 1]:
                            break
                        place = k - 1
                        while place > 0 and candidate > onward[j, place - 1]:
                            onward[j, place] = onward[j, place - 1]
                            pointers[t, j, place] = pointers[t, j, place - 1]
                            place -= 1
                        onward[j, place] = candidate
                        pointers[t, j, place] = i * k + rank
            for j in range(K):
                score[j] = onward[j] + observation[observation_index[b] + t * observation_step + j]
        flat = score.reshape(-1)
        for rank in range(k):
            entry = 0
            for other in range(1, K * k):
                if flat[other] > flat[entry]:
                    entry = other
            if rank >= K * k or not flat[entry] > real(-np.inf):
                break
            log_prob[b * k + rank] = offset + flat[entry]
            flat[entry] = real(-np.inf)
            for t in range(lengths[b] - 1, -1, -1):
                states[(b * k + rank) * num_steps + t] = entry // k
                if t > 0:
                    entry = pointers[t, entry // k, entry % k]


@kernel
def list_paths(shares, *arguments):
    """The k best paths (B, k, T) and their scores (B, k): each state keeps its k best partial paths, in order."""
    in_parallel(_list_paths, shares, arguments)
