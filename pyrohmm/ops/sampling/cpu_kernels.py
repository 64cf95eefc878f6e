"""Compiled backward sampling."""

import numpy as np
from numba import njit

from pyrohmm.ops.simd import blocks, exp, largest, load, maximum, splat, store, take, width_of, zeros
from pyrohmm.ops.threads import in_parallel, kernel


@njit(forceinline=True)
def invert(lanes, logits, K, uniform):
    """The state at which the cumulative probability passes `uniform`; -1 where all logits are -inf."""
    real = logits.dtype.type
    zero = zeros(lanes, logits)
    best = splat(real(-np.inf), zero)
    for block in range(blocks(lanes, K, zero)):
        best = maximum(best, load(logits, block * width_of(zero), zero))
    top = largest(best)
    if not top > real(-np.inf):
        return -1
    for block in range(blocks(lanes, K, zero)):
        j = block * width_of(zero)
        store(logits, j, exp(load(logits, j, zero) - splat(top, zero)))
    mass = 0.0
    for j in range(K):
        mass += logits[j]
    passed, state = 0.0, 0
    for j in range(K):
        # Rounding must not carry the choice to a state without mass.
        if logits[j] > real(0):
            state = j
            passed += logits[j]
            if passed > uniform * mass:
                break
    return state


@njit
def _sample(
    share,
    first,
    last,
    lanes,
    num_steps,
    K,
    sequence,
    lengths,
    transition,
    transition_index,
    transition_step,
    transposed,
    transposed_index,
    log_probs,
    uniforms,
    states,
):
    real = log_probs.dtype.type
    zero = zeros(lanes, log_probs)
    nothing = splat(real(-np.inf), zero)
    width = width_of(zero)
    logits = np.full(blocks(lanes, K, zero) * width, -np.inf, log_probs.dtype)
    for n in range(first, last):
        b = sequence[n]
        path = n * num_steps
        states[path : path + num_steps] = -1
        following = -1
        for t in range(lengths[b] - 1, -1, -1):
            here = (b * num_steps + t) * K
            matrix = transition_index[b] + t * transition_step
            for block in range(blocks(lanes, K, zero)):
                j = block * width
                logit = take(log_probs, here + j, K - j, nothing)
                if following >= 0 and transposed.size > 0:
                    logit = logit + take(transposed, transposed_index[b] + following * K + j, K - j, nothing)
                store(logits, j, logit)
            if following >= 0 and transposed.size == 0:
                for i in range(K):
                    logits[i] += transition[matrix + i * K + following]
            following = invert(lanes, logits, K, uniforms[path + t])
            if following < 0:  # the forward pass died on the way: what was drawn so far is no part of any path
                states[path : path + num_steps] = -1
                break
            states[path + t] = following


@kernel
def sample(shares, *arguments):
    """Paths (N, T), of which the n-th belongs to sequence[n]; `transposed` holds matrices shared over time."""
    in_parallel(_sample, shares, arguments)
