"""SIMD vectors for numba kernels: a type whose values live in vector registers, and what the kernels do with it.

LLVM vectorises plain loops only where it can prove enough about them, and never through `exp`. Here a kernel says what
it wants: `load` W neighbouring numbers of a flat array, combine them with +, -, *, `fma`, `maximum`, `exp`, `log`, and
`store` them. W belongs to the type, so a kernel is compiled for one W; a width beyond the machine's registers is split
by LLVM, so the code is right on any CPU. `multiply` is a matrix product with the sums (or maxima) in registers.
"""

import math
import operator
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model

# An intrinsic is called without the typing context, which its signature does not say.
intrinsic: Any = numba_intrinsic


class Vector(types.Type):
    """Numba type of `width` floating numbers in one vector register."""

    def __init__(self, element: types.Float, width: int):
        self.element, self.width = element, width
        super().__init__(f"Vector({element}, {width})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        element = ir.FloatType() if fe_type.element == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.width))


# What a kernel is told about its vectors, by the type of an argument: numba looks up a kernel by the types of its
# arguments, and finds that of a tuple of integers in no time.
Lanes = tuple[int, ...]


@cache
def lanes_for(num_states: int, dtype_bytes: int) -> Lanes:
    """As many zeros as a vector has lanes, and one more where the states do not fit into one vector.

    A vector is up to 64 bytes wide, and no wider than the states need.

    Example:
        >>> len(lanes_for(3, 4)), len(lanes_for(16, 4)), len(lanes_for(17, 4)), len(lanes_for(17, 8))
        (4, 16, 17, 9)
    """
    full = 64 // dtype_bytes
    width = next(width for width in (4, 8, 16) if width >= num_states or width == full)
    return (0,) * (width + (width < num_states))


def padded_states(num_states: int, lanes: Lanes) -> int:
    """The numbers in a row of a packed matrix: `padded_width` outside of kernels."""
    panel = 2 * (len(lanes) - 1)
    return -(-num_states // panel) * panel if len(lanes) % 2 else len(lanes)


@intrinsic
def zeros(typingctx, lanes, array):
    """The vector of zeros of the array's dtype."""
    vector = Vector(array.dtype, lanes.count - lanes.count % 2)
    return vector(lanes, array), lambda context, builder, sig, args: _constant(_ir_vector(vector), 0.0)


@intrinsic
def widest(typingctx, array):
    """The vector of zeros of the array's dtype in 64 bytes, for work that takes no notice of rows."""
    vector = Vector(array.dtype, 512 // array.dtype.bitwidth)
    return vector(array), lambda context, builder, sig, args: _constant(_ir_vector(vector), 0.0)


@intrinsic
def is_narrow(typingctx, lanes):
    """Whether one vector holds all states, known when the kernel is compiled."""
    narrow = lanes.count % 2 == 0
    return types.boolean(lanes), lambda context, builder, sig, args: context.get_constant(types.boolean, narrow)


def _define_operator(function, instruction: str) -> None:
    @infer_global(function)  # pyright: ignore[reportOptionalCall]
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)

    @lower_builtin(function, Vector, Vector)
    def _lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args)


for _function, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define_operator(_function, _instruction)


def _constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector_type, [ir.Constant(vector_type.element, value)] * vector_type.count)


def _integers(vector_type: ir.VectorType) -> ir.VectorType:
    bits = 32 if isinstance(vector_type.element, ir.FloatType) else 64
    return ir.VectorType(ir.IntType(bits), vector_type.count)


def _splat(builder, scalar, count: int):
    vector = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined), scalar, ir.IntType(32)(0)
    )
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def _call(builder, name: str, result, *args):
    function_type = ir.FunctionType(result, [a.type for a in args])
    name = f"llvm.{name}.{_suffix(args[0].type)}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _fma(builder, a, b, c):
    return _call(builder, "fma", a.type, a, b, c)


def _maximum(builder, a, b):
    # Not llvm.maxnum: this is one instruction, and a NaN in b survives.
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _pointer(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _vector_pointer(context, builder, array_type, array, index, vector_type):
    return builder.bitcast(_pointer(context, builder, array_type, array, index), vector_type.as_pointer())


def _load(builder, pointer):
    value = builder.load(pointer)
    value.align = _element_bytes(value.type)
    return value


def _element_bytes(vector_type) -> int:
    return 4 if isinstance(vector_type.element, ir.FloatType) else 8


def _suffix(vector_type) -> str:
    return f"v{vector_type.count}f{8 * _element_bytes(vector_type)}"


def _first_lanes(builder, vector_type, count):
    """Mask of the lanes below `count`."""
    lanes = ir.VectorType(ir.IntType(64), vector_type.count)
    index = ir.Constant(lanes, list(range(vector_type.count)))
    return builder.icmp_signed("<", index, _splat(builder, count, vector_type.count))


def _ir_vector(vector: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if vector.element == types.float32 else ir.DoubleType(), vector.width)


@intrinsic
def load(typingctx, array, index, like):
    """As many neighbouring numbers of a flat array as the vector `like` has lanes, from index on."""

    def codegen(context, builder, sig, args):
        array, index, like = args
        return _load(builder, _vector_pointer(context, builder, sig.args[0], array, index, like.type))

    return like(array, types.intp, like), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Write a vector to a flat array, beginning at index."""

    def codegen(context, builder, sig, args):
        array, index, value = args
        pointer = _vector_pointer(context, builder, sig.args[0], array, index, value.type)
        builder.store(value, pointer, align=_element_bytes(value.type))

    return types.void(array, types.intp, vector), codegen


@intrinsic
def load_first(typingctx, array, index, count, fill):
    """Like `load`, but only the first `count` numbers are read; the other lanes are those of the vector `fill`."""

    def codegen(context, builder, sig, args):
        array, index, count, fill = args
        pointer = _vector_pointer(context, builder, sig.args[0], array, index, fill.type)
        mask = _first_lanes(builder, fill.type, count)
        args = [pointer, ir.IntType(32)(_element_bytes(fill.type)), mask, fill]
        function_type = ir.FunctionType(fill.type, [a.type for a in args])
        name = f"llvm.masked.load.{_suffix(fill.type)}.p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return fill(array, types.intp, types.intp, fill), codegen


@intrinsic
def store_first(typingctx, array, index, count, vector):
    """Like `store`, but only the first `count` lanes are written."""

    def codegen(context, builder, sig, args):
        array, index, count, value = args
        pointer = _vector_pointer(context, builder, sig.args[0], array, index, value.type)
        mask = _first_lanes(builder, value.type, count)
        args = [value, pointer, ir.IntType(32)(_element_bytes(value.type)), mask]
        function_type = ir.FunctionType(ir.VoidType(), [a.type for a in args])
        name = f"llvm.masked.store.{_suffix(value.type)}.p0"
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return types.void(array, types.intp, types.intp, vector), codegen


@intrinsic
def splat(typingctx, value, like):
    """A number in every lane of a vector like another."""
    return like(like.element, like), lambda context, builder, sig, args: _splat(builder, args[0], args[1].type.count)


@intrinsic
def spread(typingctx, array, index, like):
    """The number at a place of a flat array in every lane of a vector; the index is not negative."""

    def codegen(context, builder, sig, args):
        array, index, like = args
        scalar = builder.load(_pointer(context, builder, sig.args[0], array, index))
        return _splat(builder, scalar, like.type.count)

    return like(array, types.intp, like), codegen


@intrinsic
def width_of(typingctx, vector):
    """The width of a vector, known when the kernel is compiled."""
    return types.intp(vector), lambda context, builder, sig, args: context.get_constant(types.intp, vector.width)


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once."""
    return a(a, a, a), lambda context, builder, sig, args: _fma(builder, *args)


@intrinsic
def widen(typingctx, vector):
    """The same numbers in float64."""
    wide = Vector(types.float64, vector.width)

    def codegen(context, builder, sig, args):
        return args[0] if vector == wide else builder.fpext(args[0], _ir_vector(wide))

    return wide(vector), codegen


@intrinsic
def divide(typingctx, a, b):
    """a / b in each lane."""
    return a(a, a), lambda context, builder, sig, args: builder.fdiv(*args)


@intrinsic
def maximum(typingctx, a, b):
    """The larger in each lane."""
    return a(a, a), lambda context, builder, sig, args: _maximum(builder, *args)


@intrinsic
def where_larger(typingctx, a, b, x, y):
    """x in the lanes where a > b, y in the others."""

    def codegen(context, builder, sig, args):
        a, b, x, y = args
        return builder.select(builder.fcmp_ordered(">", a, b), x, y)

    return x(a, a, x, x), codegen


@intrinsic
def put_bytes(typingctx, array, index, count, vector):
    """Write the first `count` lanes, as integers 0..127, to a flat array of int8."""

    def codegen(context, builder, sig, args):
        array, index, count, value = args
        integers = ir.VectorType(ir.IntType(8), value.type.count)
        pointer = builder.bitcast(_pointer(context, builder, sig.args[0], array, index), integers.as_pointer())
        mask = _first_lanes(builder, value.type, count)
        args = [builder.fptosi(value, integers), pointer, ir.IntType(32)(1), mask]
        function_type = ir.FunctionType(ir.VoidType(), [a.type for a in args])
        name = f"llvm.masked.store.v{value.type.count}i8.p0"
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return types.void(array, types.intp, types.intp, vector), codegen


def _reduce(builder, value, combine):
    count = value.type.count
    while count > 1:
        count //= 2
        lanes = [(i + count) if i < count else i for i in range(value.type.count)]
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        value = combine(value, builder.shuffle_vector(value, value, mask))
    return builder.extract_element(value, ir.IntType(32)(0))


@intrinsic
def total(typingctx, vector):
    """The sum over the lanes."""
    return vector.element(vector), lambda context, builder, sig, args: _reduce(builder, args[0], builder.fadd)


@intrinsic
def row_totals(typingctx, array, index, distance, like):
    """The sums of as many rows as the vector `like` has lanes, each as long, in the lanes of one."""

    def codegen(context, builder, sig, args):
        array, index, distance, like = args
        width = like.type.count
        rows = []
        for number in range(width):
            begin = builder.add(index, builder.mul(distance, index.type(number)))
            rows.append(_load(builder, _vector_pointer(context, builder, sig.args[0], array, begin, like.type)))
        # Halves of pairs of rows are added until each lane has one row's sum; the lanes end up in order.
        block = 1
        while len(rows) > 1:
            lanes = [lane % block + lane // block // 2 * 2 * block + lane // block % 2 * width for lane in range(width)]
            first, second = (
                ir.Constant(ir.VectorType(ir.IntType(32), width), [lane + shift for lane in lanes])
                for shift in (0, block)
            )
            rows = [
                builder.fadd(builder.shuffle_vector(a, b, first), builder.shuffle_vector(a, b, second))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
            block *= 2
        return rows[0]

    return like(array, types.intp, types.intp, like), codegen


@intrinsic
def largest(typingctx, vector):
    """The largest lane."""

    def codegen(context, builder, sig, args):
        return _reduce(builder, args[0], lambda a, b: _maximum(builder, a, b))

    return vector.element(vector), codegen


@intrinsic
def first_equal(typingctx, a, b):
    """The first lane in which a and b are equal; the width if there is none."""

    def codegen(context, builder, sig, args):
        equal = builder.fcmp_ordered("==", *args)
        bits = builder.bitcast(equal, ir.IntType(equal.type.count))
        lane = builder.cttz(builder.zext(bits, ir.IntType(64)), ir.IntType(1)(0))
        width = ir.IntType(64)(equal.type.count)
        return builder.select(builder.icmp_signed("<", lane, width), lane, width)

    return types.intp(a, a), codegen


# Bits, those of the mantissa, bias of the exponent, ln(2) as a head whose multiples are exact and the rest, powers in
# exp's series, terms in log's.
_FLOAT32 = (32, 23, 127, 0.693359375, -2.12194440054690583e-4, 7, 5)
_FLOAT64 = (64, 52, 1023, 0.6931471803691238, 1.9082149292705877e-10, 13, 11)


def _format(vector_type):
    return _FLOAT32 if isinstance(vector_type.element, ir.FloatType) else _FLOAT64


def _exp(builder, x, lost=None):
    """exp(x + lost), of which `lost` is less than the last digit of x."""
    _, mantissa, bias, ln2_head, ln2_tail, degree, _ = _format(x.type)
    smallest = (1 - bias) * np.log(2.0)
    tiny = builder.fcmp_ordered("<", x, _constant(x.type, smallest))
    x = builder.select(tiny, _constant(x.type, smallest), x)
    n = _call(builder, "rint", x.type, builder.fmul(x, _constant(x.type, 1 / np.log(2.0))))
    r = _fma(builder, n, _constant(x.type, -ln2_head), x)
    r = _fma(builder, n, _constant(x.type, -ln2_tail), r)
    if lost is not None:
        r = builder.fadd(r, lost)
    value = _constant(x.type, 1 / math.factorial(degree))
    for power in reversed(range(degree)):
        value = _fma(builder, value, r, _constant(x.type, 1 / math.factorial(power)))
    integers = _integers(x.type)
    exponent = builder.shl(builder.fptosi(n, integers), ir.Constant(integers, [mantissa] * x.type.count))
    value = builder.bitcast(builder.add(builder.bitcast(value, integers), exponent), x.type)
    return builder.select(tiny, _constant(x.type, 0.0), value)


@intrinsic
def exp(typingctx, x):
    """Exponential for x <= 0, to about one unit in the last place; NaN for NaN.

    Zero below the smallest normal number. With x = n ln 2 + r, |r| <= ln(2)/2: exp(x) = 2^n exp(r).
    """
    return x(x), lambda context, builder, sig, args: _exp(builder, *args)


@intrinsic
def exp_of_difference(typingctx, a, b):
    """exp(a - b), a <= b, as if the difference were not rounded; zero where it is -inf.

    What rounding loses is a number too (Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B).
    """

    def codegen(context, builder, sig, args):
        a, b = args
        difference = builder.fsub(a, b)
        back = builder.fsub(difference, a)
        lost = builder.fsub(builder.fsub(a, builder.fsub(difference, back)), builder.fadd(b, back))
        return _exp(builder, difference, lost)

    return a(a, b), codegen


@intrinsic
def log(typingctx, x):
    """Logarithm for normal x > 0, to about one unit in the last place; -inf for zero, NaN for NaN.

    With x = 2^n m, m in [sqrt(1/2), sqrt(2)), and s = (m - 1) / (m + 1): log(x) = n ln 2 + 2 (s + s^3/3 + s^5/5 ...).
    """

    def codegen(context, builder, sig, args):
        (x,) = args
        bits, mantissa, _, ln2_head, ln2_tail, _, terms = _format(x.type)
        integers = _integers(x.type)

        def whole(value: int):
            return ir.Constant(integers, [value] * x.type.count)

        half = int(np.sqrt(0.5).astype(f"f{bits // 8}").view(f"i{bits // 8}"))
        raw = builder.sub(builder.bitcast(x, integers), whole(half))
        n = builder.sitofp(builder.ashr(raw, whole(mantissa)), x.type)
        m = builder.add(builder.and_(raw, whole((1 << mantissa) - 1)), whole(half))
        m = builder.bitcast(m, x.type)
        one = _constant(x.type, 1.0)
        s = builder.fdiv(builder.fsub(m, one), builder.fadd(m, one))
        square = builder.fmul(s, s)
        series = _constant(x.type, 2 / (2 * terms + 1))
        for term in reversed(range(1, terms)):
            series = _fma(builder, series, square, _constant(x.type, 2 / (2 * term + 1)))
        series = builder.fmul(series, square)
        value = _fma(builder, series, s, _fma(builder, n, _constant(x.type, ln2_tail), builder.fadd(s, s)))
        value = _fma(builder, n, _constant(x.type, ln2_head), value)
        value = builder.select(builder.fcmp_unordered("uno", x, x), x, value)
        zero = builder.fcmp_ordered("<=", x, _constant(x.type, 0.0))
        return builder.select(zero, _constant(x.type, -np.inf), value)

    return x(x), codegen


# Bytes. A stream is asked for so far ahead, since the processor's own foresight ends at every page of memory.
AHEAD = 2048


def _prefetch(builder, pointer):
    """Ask for the cache line at an address, which need not exist."""
    i32 = ir.IntType(32)
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    function_type = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
    prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
    builder.call(prefetch, [pointer, i32(0), i32(3), i32(1)])


def _tile(start: float, combine):
    """An intrinsic that multiplies `rows` rows by a panel of `vectors` registers, the sums in registers."""

    def tile(typingctx, out, out_index, left, left_index, stride, right, right_index, depth, rows, vectors, like):
        def codegen(context, builder, sig, args):
            out, out_index, left, left_index, stride, right, right_index, depth, _, _, like = args
            intp = left_index.type
            width, panel = like.type.count, like.type.count * vectors.literal_value
            sums = [
                [cgutils.alloca_once_value(builder, _constant(like.type, start)) for _ in range(vectors.literal_value)]
                for _ in range(rows.literal_value)
            ]

            def at(array_type, array, index, vector: int):
                index = builder.add(index, intp(vector * width))
                return _vector_pointer(context, builder, array_type, array, index, like.type)

            for row in sums:
                for variable in row:
                    builder.store(_constant(like.type, start), variable)
            with cgutils.for_range(builder, depth) as loop:
                begin = builder.add(right_index, builder.mul(loop.index, intp(panel)))
                for line in range(0, panel, 64 // _element_bytes(like.type)):
                    far = builder.add(begin, intp(line + AHEAD // _element_bytes(like.type)))
                    _prefetch(builder, _pointer(context, builder, sig.args[5], right, far))
                across = [
                    _load(builder, at(sig.args[5], right, begin, vector)) for vector in range(vectors.literal_value)
                ]
                for number, row in enumerate(sums):
                    index = builder.add(builder.add(left_index, loop.index), builder.mul(intp(number), stride))
                    scalar = builder.load(_pointer(context, builder, sig.args[2], left, index))
                    scalar = _splat(builder, scalar, width)
                    for vector, variable in zip(across, row, strict=True):
                        builder.store(combine(builder, scalar, vector, builder.load(variable)), variable)
            for number, row in enumerate(sums):
                index = builder.add(out_index, builder.mul(intp(number), stride))
                for vector, variable in enumerate(row):
                    pointer = at(sig.args[0], out, index, vector)
                    builder.store(builder.load(variable), pointer, align=_element_bytes(like.type))
            return context.get_dummy_value()

        i = types.intp
        return types.void(out, i, left, i, i, right, i, i, rows, vectors, like), codegen

    return intrinsic(prefer_literal=True)(tile)


def _multiply(tile):
    @njit(forceinline=True)
    def multiply(out, left, padded, matrix, index, depth, rows, panels, like):
        panel = panel_width(padded, like)
        row = 0
        while row < rows:
            begin = row * padded
            step = 8 if rows - row >= 8 else 4 if rows - row >= 4 else 2 if rows - row >= 2 else 1
            for number in panels:
                c = number * panel
                right = index + c * depth
                if panel == width_of(like):
                    if step == 8:
                        tile(out, begin + c, left, begin, padded, matrix, right, depth, 8, 1, like)
                    elif step == 4:
                        tile(out, begin + c, left, begin, padded, matrix, right, depth, 4, 1, like)
                    elif step == 2:
                        tile(out, begin + c, left, begin, padded, matrix, right, depth, 2, 1, like)
                    else:
                        tile(out, begin + c, left, begin, padded, matrix, right, depth, 1, 1, like)
                elif step == 8:
                    tile(out, begin + c, left, begin, padded, matrix, right, depth, 8, 2, like)
                elif step == 4:
                    tile(out, begin + c, left, begin, padded, matrix, right, depth, 4, 2, like)
                elif step == 2:
                    tile(out, begin + c, left, begin, padded, matrix, right, depth, 2, 2, like)
                else:
                    tile(out, begin + c, left, begin, padded, matrix, right, depth, 1, 2, like)
            row += step

    return multiply


@njit(forceinline=True)
def panel_width(padded, like):
    """How many columns of a packed matrix lie side by side: one register or two."""
    return width_of(like) if padded == width_of(like) else 2 * width_of(like)


# out[r, c] = sum_d left[r, d] * matrix[d, c], and the maximum over d of left[r, d] + matrix[d, c], for `rows` rows of
# `padded` numbers and the columns of some panels, a range. The matrix begins at index and is packed: panels of
# `panel_width` columns one after the other, each with its `depth` rows one after the other, so that it is read as one
# stream.
multiply_panels = _multiply(_tile(0.0, _fma))
max_plus_panels = _multiply(_tile(-np.inf, lambda builder, a, b, best: _maximum(builder, builder.fadd(a, b), best)))


@njit(forceinline=True)
def multiply(out, left, padded, matrix, index, depth, rows, like):
    """`multiply_panels` of all panels."""
    multiply_panels(out, left, padded, matrix, index, depth, rows, range(padded // panel_width(padded, like)), like)


@njit(forceinline=True)
def max_plus(out, left, padded, matrix, index, depth, rows, like):
    """`max_plus_panels` of all panels."""
    max_plus_panels(out, left, padded, matrix, index, depth, rows, range(padded // panel_width(padded, like)), like)


@njit(forceinline=True)
def take(array, index, count, fill):
    """`load` where there are enough numbers left, `load_first` at the end of a row."""
    if count >= width_of(fill):
        return load(array, index, fill)
    return load_first(array, index, count, fill)


@njit(forceinline=True)
def put(array, index, count, vector):
    """`store` where there is enough room left, `store_first` at the end of a row."""
    if count >= width_of(vector):
        store(array, index, vector)
    else:
        store_first(array, index, count, vector)


@njit(forceinline=True)
def blocks(lanes, K, zero):
    """How many vectors hold K numbers."""
    return 1 if is_narrow(lanes) else (K + width_of(zero) - 1) // width_of(zero)


@njit(forceinline=True)
def padded_width(lanes, K, zero):
    """K rounded up to whole panels: the distance between rows of messages."""
    panel = 2 * width_of(zero)
    return width_of(zero) if is_narrow(lanes) else (K + panel - 1) // panel * panel


# Counts are added up in the precision of the messages for this many steps, then in float64: T may be a million.
STEPS_PER_SUM = 32


@njit(forceinline=True)
def add_counts(sums, begin, counts, row, padded, K):
    """Add the (K, K) counts in rows row..row+K of `padded` numbers to those that begin at an index of sums."""
    for i in range(K):
        for j in range(K):
            sums[begin + i * K + j] += counts[(row + i) * padded + j]


# Sequences that walk through time side by side: enough to hide the latency of one behind the arithmetic of the others.
ROWS = 8


@njit(forceinline=True)
def group(order, n, last, matrix_index):
    """How many sequences from the n-th on, before the last, walk side by side: they have a matrix in common."""
    rows = 1
    while rows < ROWS and n + rows < last and matrix_index[order[n + rows]] == matrix_index[order[n]]:
        rows += 1
    return rows


@njit(forceinline=True)
def shift_of(lanes, values, index, K):
    """The largest of K numbers; zero if that is -inf, to be subtracted from them."""
    zero = zeros(lanes, values)
    best = splat(values.dtype.type(-np.inf), zero)
    nothing = best
    for block in range(blocks(lanes, K, zero)):
        best = maximum(best, take(values, index + block * width_of(zero), K - block * width_of(zero), nothing))
    top = largest(best)
    # Not in an `if` of its own: with one, numba counts references to the arrays at every call.
    return values.dtype.type(0) if top == values.dtype.type(-np.inf) else top


@njit(forceinline=True)
def extremes(values, index, count, like):
    """The largest and the smallest of so many neighbouring numbers."""
    nothing = splat(values.dtype.type(-np.inf), like)
    everything = splat(values.dtype.type(np.inf), like)
    high = nothing
    low = nothing
    for j in range(0, count, width_of(like)):
        high = maximum(high, take(values, index + j, count - j, nothing))
        low = maximum(low, like - take(values, index + j, count - j, everything))
    return largest(high), -largest(low)
