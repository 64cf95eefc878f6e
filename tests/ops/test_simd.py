"""Vectors in kernels against numpy. The kernels here are compiled anew each time, so that none is out of date."""

from fractions import Fraction

import numpy as np
import pytest
from numba import njit

from pyrohmm.ops import simd
from pyrohmm.ops.simd import Lanes, lanes_for, padded_states

WIDTHS = [4, 8, 16]
DTYPES = [np.float32, np.float64]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
all_widths = pytest.mark.parametrize("width", WIDTHS)


def vectors(width: int, *, narrow: bool = True) -> Lanes:
    return (0,) * (width + (not narrow))


def bits(dtype) -> type:
    return np.int32 if dtype is np.float32 else np.int64


def between(low, high, dtype, count: int = 400_000) -> np.ndarray:
    """Numbers of one sign with random bits: each power of two gets its share, however small."""
    rng = np.random.default_rng(0)
    ends = np.sort(np.abs(np.array([low, high], dtype)).view(bits(dtype)))
    found = rng.integers(*ends, count, dtype=bits(dtype), endpoint=True).view(dtype)
    return np.concatenate([found, np.abs(np.array([low, high], dtype))]) * dtype(np.sign(low + high))


def units_off(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error in units in the last place of the exact number."""
    assert np.isfinite(found).all()
    return np.abs((found.astype(exact.dtype) - exact) / np.spacing(np.abs(exact.astype(found.dtype))))


@njit
def each_exp(lanes, x, out):
    zero = simd.zeros(lanes, x)
    for i in range(0, x.size, simd.width_of(zero)):
        simd.put(out, i, x.size - i, simd.exp(simd.take(x, i, x.size - i, zero)))


@njit
def each_exp_of_difference(lanes, x, top, out):
    zero = simd.zeros(lanes, x)
    for i in range(0, x.size, simd.width_of(zero)):
        simd.put(out, i, x.size - i, simd.exp_of_difference(simd.take(x, i, x.size - i, zero), simd.splat(top, zero)))


@njit
def each_log(lanes, x, out):
    zero = simd.zeros(lanes, x)
    for i in range(0, x.size, simd.width_of(zero)):
        simd.put(out, i, x.size - i, simd.log(simd.take(x, i, x.size - i, zero)))


def applied(kernel, x: np.ndarray, width: int = 8) -> np.ndarray:
    out = np.full_like(x, np.nan)
    kernel(vectors(width), x, out)
    return out


def wider(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)


@both_dtypes
def test_exp_to_the_last_place(dtype):
    lowest = np.log(wider(np.array([np.finfo(dtype).tiny])))[0]
    x = np.concatenate(
        [
            between(lowest, -np.finfo(dtype).tiny, dtype),
            np.linspace(lowest, 0, 400_000).astype(dtype),  # the smaller the number, the more bits of it matter
            np.arange(-1074, 1).astype(dtype) * dtype(np.log(2)) / 2,  # where powers of two change
        ]
    )
    x = x[wider(x) > lowest]
    assert units_off(applied(each_exp, x), np.exp(wider(x))).max() <= 2


@both_dtypes
@all_widths
def test_exp_at_the_ends(dtype, width):
    tiny = np.finfo(dtype).tiny
    lowest = np.log(wider(np.array([tiny])))[0]
    x = np.array([0.0, -0.0, lowest * 1.0001, lowest * 1.01, -1e30, np.finfo(dtype).min, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(applied(each_exp, x, width), np.array([1, 1, 0, 0, 0, 0, 0, np.nan], dtype))
    # The bound itself is rounded, so next to it the smallest normal number may or may not be there.
    near = np.array([lowest], dtype)
    near = np.concatenate([near, np.nextafter(near, dtype(0)), np.nextafter(near, dtype(-np.inf))])
    found = applied(each_exp, near, width)
    assert (np.abs(found - tiny) <= 1e-4 * tiny).any() and ((found == 0) | (np.abs(found - tiny) <= 1e-4 * tiny)).all()


@both_dtypes
@pytest.mark.parametrize("top", [-0.6781514, 0.0, 1.7, 300.0])
def test_exp_of_a_difference_is_not_off_to_one_side(dtype, top):
    rng, top = np.random.default_rng(0), dtype(top)
    x = top - rng.exponential(3.0, 100_000).astype(dtype)
    exact = np.exp(wider(x) - wider(np.array([top])))
    found = np.empty_like(x)
    each_exp_of_difference(vectors(8), x, top, found)
    assert units_off(found, exact).max() <= 2
    assert abs(((found - exact) / exact).mean()) < np.finfo(dtype).eps / 64
    ends = np.array([-np.inf, top, np.nan, -np.finfo(dtype).max], dtype)
    each_exp_of_difference(vectors(4), ends, top, found := np.empty_like(ends))
    np.testing.assert_array_equal(found, np.array([0, 1, np.nan, 0], dtype))
    each_exp_of_difference(vectors(4), ends, dtype(np.inf), found)
    np.testing.assert_array_equal(found, np.array([0, 0, np.nan, 0], dtype))


@both_dtypes
def test_log_to_the_last_place(dtype):
    info = np.finfo(dtype)
    x = np.concatenate(
        [
            between(info.tiny, info.max, dtype),
            between(0.25, 4.0, dtype),
            1 + np.arange(-1000, 1000) * info.eps,
            2.0 ** np.arange(info.minexp, info.maxexp),
            np.sqrt(0.5) * (1 + np.arange(-10, 11) * info.eps),
        ]
    ).astype(dtype)
    exact = np.log(wider(x))
    assert units_off(applied(each_log, x[exact != 0]), exact[exact != 0]).max() <= 2
    assert (applied(each_log, x[exact == 0]) == 0).all()


@both_dtypes
@all_widths
def test_log_at_the_ends(dtype, width):
    x = np.array([0.0, -0.0, 1.0, np.nan], dtype)
    np.testing.assert_array_equal(applied(each_log, x, width), np.array([-np.inf, -np.inf, 0, np.nan], dtype))


@njit
def masked(lanes, x, index, count, fill, out, place):
    zero = simd.zeros(lanes, x)
    vector = simd.load_first(x, index, count, simd.splat(fill, zero))
    simd.store(out, 0, vector)
    simd.store_first(out, place, count, vector)


@both_dtypes
@all_widths
def test_the_rest_of_a_row_is_left_alone(dtype, width):
    x = np.arange(1, 41).astype(dtype)
    for count in range(width + 1):
        for index in (0, 3, 40 - count):  # as far as the end of the array, and no further
            out = np.full(64, np.nan, dtype)
            masked(vectors(width), x, index, count, dtype(-5), out, 21)
            expected = np.full(64, np.nan, dtype)
            expected[:width] = [*x[index : index + count], *[-5] * (width - count)]
            expected[21 : 21 + count] = x[index : index + count]
            np.testing.assert_array_equal(out, expected)


@njit
def moved(lanes, x, index, count, fill, out, place):
    simd.put(out, place, count, simd.take(x, index, count, simd.splat(fill, simd.zeros(lanes, x))))


@both_dtypes
@all_widths
def test_take_and_put_move_a_vector_at_most(dtype, width):
    x = np.arange(1, 41).astype(dtype)
    for count in range(40):
        out = np.full(40, np.nan, dtype)
        moved(vectors(width), x, 1, count, dtype(7), out, 5)
        expected = np.full(40, np.nan, dtype)
        here = min(count, width)
        expected[5 : 5 + here] = x[1 : 1 + here]
        np.testing.assert_array_equal(out, expected)


@njit
def arithmetic(lanes, a, b, c, scalar, out):
    zero = simd.zeros(lanes, a)
    width = simd.width_of(zero)
    x, y, z = simd.load(a, 0, zero), simd.load(b, 0, zero), simd.load(c, 0, zero)
    simd.store(out, 0, x + y)
    simd.store(out, width, x - y)
    simd.store(out, 2 * width, x * y)
    simd.store(out, 3 * width, simd.divide(x, y))
    simd.store(out, 4 * width, simd.maximum(x, y))
    simd.store(out, 5 * width, simd.fma(x, y, z))
    simd.store(out, 6 * width, simd.splat(scalar, zero))
    simd.store(out, 7 * width, zero)
    return width, simd.is_narrow(lanes)


@both_dtypes
@all_widths
@pytest.mark.parametrize("narrow", [True, False])
def test_arithmetic(dtype, width, narrow):
    a, b = np.random.default_rng(0).normal(size=(2, width)).astype(dtype)
    # What remains of a product when its rounded value is taken away is there only if fma rounds once.
    c = -(a * b)
    out = np.full((8, width), np.nan, dtype)
    assert arithmetic(vectors(width, narrow=narrow), a, b, c, dtype(2.5), out.reshape(-1)) == (width, narrow)
    fractions = [[Fraction(number) for number in numbers.tolist()] for numbers in (a, b, c)]
    remainder = [float(x * y + z) for x, y, z in zip(*fractions, strict=True)]
    assert any(remainder)
    expected = [a + b, a - b, a * b, a / b, np.maximum(a, b), remainder, np.full(width, 2.5), np.zeros(width)]
    np.testing.assert_array_equal(out, np.array(expected, dtype))


def test_the_maximum_keeps_a_nan_on_the_right():
    a = np.array([np.nan, 1.0, -np.inf, 2.0])
    b = np.array([1.0, np.nan, np.nan, -np.inf])
    out = np.zeros(32)
    arithmetic(vectors(4), a, b, a, 0.0, out)
    np.testing.assert_array_equal(out[16:20], [1.0, np.nan, np.nan, 2.0])


@njit
def reductions(lanes, a, b):
    zero = simd.zeros(lanes, a)
    x, y = simd.load(a, 0, zero), simd.load(b, 0, zero)
    return simd.total(x), simd.largest(x), simd.first_equal(x, y)


@both_dtypes
@all_widths
def test_reductions(dtype, width):
    lanes = vectors(width)
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(-4, 5, (2, width)).astype(dtype)
        equal = np.flatnonzero(a == b)
        assert reductions(lanes, a, b) == (a.sum(), a.max(), equal[0] if len(equal) else width)
    for lane in range(width):
        a = np.where(np.arange(width) == lane, 3, -np.inf).astype(dtype)
        assert reductions(lanes, a, np.full(width, 3, dtype)) == (-np.inf, 3, lane)
    nothing = np.full(width, -np.inf, dtype)
    assert reductions(lanes, nothing, nothing) == (-np.inf, -np.inf, 0)
    nan = np.full(width, np.nan, dtype)
    assert reductions(lanes, nan, nan)[2] == width
    assert np.isnan(reductions(lanes, nan, nan)[:2]).all()


@njit
def products(lanes, left, columns, matrix, index, depth, rows, sums, best):
    zero = simd.zeros(lanes, left)
    padded = simd.padded_width(lanes, columns, zero)
    simd.multiply(sums, left, padded, matrix, index, depth, rows, zero)
    simd.max_plus(best, left, padded, matrix, index, depth, rows, zero)
    return padded, simd.panel_width(padded, zero), simd.blocks(lanes, columns, zero)


@both_dtypes
@all_widths
@pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "wide"])
def test_products_of_matrices(dtype, width, narrow):
    """Of small integers, so that the order of the terms makes no difference and nothing is rounded."""
    lanes = vectors(width, narrow=narrow)
    rng = np.random.default_rng(0)
    panel = width if narrow else 2 * width
    for depth in range(1, width + 1 if narrow else 71):
        columns = depth
        padded = padded_states(columns, lanes)
        matrix = rng.integers(-9, 10, (depth, padded)).astype(dtype)
        packed = np.concatenate([np.full(5, np.nan), matrix.reshape(depth, -1, panel).swapaxes(0, 1).ravel()])
        for rows in range(1, 10):
            left = np.full((10, padded), np.nan, dtype)
            left[:rows, :depth] = rng.integers(-9, 10, (rows, depth))
            sums, best = np.full((2, 10, padded), np.nan, dtype)
            arguments = (left.reshape(-1), columns, packed.astype(dtype), 5, depth, rows)
            found = products(lanes, *arguments, sums.reshape(-1), best.reshape(-1))
            assert found == (padded, panel, 1 if narrow else -(-columns // width))
            used = left[:rows, :depth]
            np.testing.assert_array_equal(sums[:rows], used @ matrix)
            np.testing.assert_array_equal(best[:rows], (used[:, :, None] + matrix).max(1))
            assert np.isnan(sums[rows:]).all() and np.isnan(best[rows:]).all()


@all_widths
def test_the_maximum_of_impossible_sums(width):
    lanes, nothing = vectors(width), np.full(width * width, -np.inf)
    sums, best = np.zeros((2, width))
    products(lanes, np.zeros(width), width, nothing, 0, width, 1, sums, best)
    assert (best == -np.inf).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_padded_to_whole_panels(width):
    for num_states in range(1, 70):
        padded = padded_states(num_states, vectors(width, narrow=False))
        assert padded % (2 * width) == 0 and 0 <= padded - num_states < 2 * width
    assert padded_states(width - 1, vectors(width)) == width


@pytest.mark.parametrize(
    ("dtype_bytes", "num_states", "width", "narrow"),
    [
        *((4, K, 4, True) for K in (1, 3, 4)),
        *((4, K, 8, True) for K in (5, 8)),
        *((4, K, 16, True) for K in (9, 16)),
        *((4, K, 16, False) for K in (17, 100)),
        *((8, K, 4, True) for K in (1, 4)),
        *((8, K, 8, True) for K in (5, 8)),
        *((8, K, 8, False) for K in (9, 100)),
    ],
)
def test_vectors_are_as_wide_as_the_states_need(dtype_bytes, num_states, width, narrow):
    assert lanes_for(num_states, dtype_bytes) == vectors(width, narrow=narrow)
