"""Compiled normal densities and sums: a vector holds the states of a row.

Rows are those of all models side by side, model by model, which share the data.
"""

import numpy as np
from numba import njit

from pyrohmm.ops.simd import (
    blocks,
    fma,
    load,
    padded_width,
    put,
    splat,
    spread,
    store,
    take,
    widen,
    width_of,
    zeros,
)
from pyrohmm.ops.threads import in_parallel, kernel


@njit
def _log_density(share, first, last, lanes, num, dim, K, x, loc, inverse, constant, out):
    real = x.dtype.type
    zero = zeros(lanes, x)
    half = splat(real(-0.5), zero)
    width, padded = width_of(zero), padded_width(lanes, K, zero)
    for model in range(first // max(num, 1), (last + num - 1) // max(num, 1)):
        begin = model * num
        for n in range(max(first, begin), min(last, begin + num)):
            row = (n - begin) * dim
            for block in range(blocks(lanes, K, zero)):
                j = block * width
                squares = zero
                for d in range(dim):
                    place = (model * dim + d) * padded + j
                    off = (spread(x, row + d, zero) - load(loc, place, zero)) * load(inverse, place, zero)
                    squares = fma(off, off, squares)
                put(out, n * K + j, K - j, fma(squares, half, load(constant, model * padded + j, zero)))


@kernel
def log_density(shares, *arguments):
    """The log-density of each row in each state."""
    in_parallel(_log_density, shares, arguments)


@njit(forceinline=True)
def _weight(weights, n, end, K, j, zero):
    """The weights of row n, zero from `end` on."""
    return widen(take(weights, n * K + j, K - j, zero) if n < end else zero)


@njit(forceinline=True)
def _off(x, place, zero, middle):
    return widen(spread(x, place, zero)) - middle


@njit
def _moments(share, first, last, lanes, models, num, dim, K, x, weights, centre, total):
    zero = zeros(lanes, x)
    wide = widen(zero)
    width, padded = width_of(zero), padded_width(lanes, K, zero)
    size = (1 + 2 * dim) * padded
    sums = np.zeros(size)
    for model in range(first // max(num, 1), (last + num - 1) // max(num, 1)):
        end = min(last, (model + 1) * num)
        sums[:] = 0.0
        # Four rows at once, as each sum has to wait for the one before.
        for n in range(max(first, model * num), end, 4):
            row = (n - model * num) * dim
            second, third, fourth = min(1, end - 1 - n), min(2, end - 1 - n), min(3, end - 1 - n)
            for block in range(blocks(lanes, K, zero)):
                j = block * width
                a, b = _weight(weights, n, end, K, j, zero), _weight(weights, n + 1, end, K, j, zero)
                c, d = _weight(weights, n + 2, end, K, j, zero), _weight(weights, n + 3, end, K, j, zero)
                store(sums, j, load(sums, j, wide) + ((a + b) + (c + d)))
                for i in range(dim):
                    middle = spread(centre, i, wide)
                    off_a = _off(x, row + i, zero, middle)
                    off_b = _off(x, row + second * dim + i, zero, middle)
                    off_c = _off(x, row + third * dim + i, zero, middle)
                    off_d = _off(x, row + fourth * dim + i, zero, middle)
                    one, two, three, four = off_a * a, off_b * b, off_c * c, off_d * d
                    place = (1 + i) * padded + j
                    store(sums, place, load(sums, place, wide) + ((one + two) + (three + four)))
                    place += dim * padded
                    squares = fma(off_a, one, off_b * two) + fma(off_c, three, off_d * four)
                    store(sums, place, load(sums, place, wide) + squares)
        into = (share * models + model) * size
        for i in range(size):
            total[into + i] = sums[i]


@kernel
def moments(shares, *arguments):
    """The weighted sums of each share, of each model."""
    in_parallel(_moments, shares, arguments)
