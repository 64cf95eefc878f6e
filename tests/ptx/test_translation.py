"""Instructions against plain arithmetic."""

import math

import numpy as np
import pytest

from tests.ptx.cases import run
from tests.ptx.program import Fault

INTEGERS = [0, 1, 2, 3, 7, 31, 32, 33, 255, 2**16, 2**31 - 1, -1, -2, -7, -33, -(2**31)]
PAIRS = [(x, y) for x in INTEGERS for y in INTEGERS]
FLOATS = [0.0, -0.0, 1.0, -1.5, 3.0, 1e-30, -1e30, math.inf, -math.inf, math.nan]


def signed(x: int, bits: int = 32) -> int:
    return (x + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def unsigned(x: int, bits: int = 32) -> int:
    return x % 2**bits


def binary(opcode: str, x: np.ndarray, y: np.ndarray, dtype: str) -> np.ndarray:
    """Of the same instruction for each pair."""
    result = np.zeros(len(x), dtype)
    threads = -(-len(x) // 32) * 32
    bits, register = ("b64", "%rd") if x.itemsize == 8 else ("b32", "%r")
    wide, target = ("b64", "%rd") if result.itemsize == 8 else ("b32", "%r")
    run(
        f"""
        setp.lt.u32 %p9, %r1, {len(x)};
        mad.wide.u32 %rd1, %r1, {x.itemsize}, %rd10; mad.wide.u32 %rd2, %r1, {y.itemsize}, %rd11;
        mad.wide.u32 %rd3, %r1, {result.itemsize}, %rd12;
        @%p9 ld.global.{bits} {register}4, [%rd1];
        @%p9 ld.global.{"b64" if y.itemsize == 8 else "b32"} {"%rd" if y.itemsize == 8 else "%r"}5, [%rd2];
        {opcode.format(to=f"{target}6", x=f"{register}4", y=("%rd5" if y.itemsize == 8 else "%r5"))};
        @%p9 st.global.{wide} [%rd3], {target}6;
        """,
        x,
        y,
        result,
        num_threads=threads,
    )
    return result


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("add.s32", lambda x, y: x + y),
        ("sub.s32", lambda x, y: x - y),
        ("mul.lo.s32", lambda x, y: x * y),
        ("and.b32", lambda x, y: x & y),
        ("or.b32", lambda x, y: x | y),
        ("xor.b32", lambda x, y: x ^ y),
        ("min.s32", min),
        ("max.s32", max),
        ("min.u32", lambda x, y: min(unsigned(x), unsigned(y))),
        ("shl.b32", lambda x, y: x << min(unsigned(y), 32)),
        ("shr.s32", lambda x, y: x >> min(unsigned(y), 32)),
        ("shr.u32", lambda x, y: unsigned(x) >> min(unsigned(y), 32)),
        ("div.s32", lambda x, y: int(abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)),
        ("rem.s32", lambda x, y: math.copysign(1, x) * (abs(x) % abs(y))),
        ("rem.u32", lambda x, y: unsigned(x) % unsigned(y)),
    ],
)
def test_integers(opcode, expected):
    pairs = [(x, y) for x, y in PAIRS if y or opcode[:3] not in ("div", "rem")]
    x, y = np.array(pairs, "i4").T.copy()
    ours = binary(opcode + " {to}, {x}, {y}", x, y, "i4")
    assert ours.tolist() == [signed(int(expected(*pair))) for pair in pairs]


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_wide_products(kind):
    x, y = np.array(PAIRS, "i4").T.copy()
    value = signed if kind == "s32" else unsigned
    exact = [value(a) * value(b) for a, b in PAIRS]
    assert binary(f"mul.wide.{kind} {{to}}, {{x}}, {{y}}", x, y, "i8").tolist() == [signed(z, 64) for z in exact]
    ours = binary(f"mov.b64 %rd7, -5; mad.wide.{kind} {{to}}, {{x}}, {{y}}, %rd7", x, y, "i8")
    assert ours.tolist() == [signed(z - 5, 64) for z in exact]


@pytest.mark.parametrize(("start", "length"), [(0, 1), (3, 5), (4, 28), (31, 1), (0, 32)])
def test_bit_fields(start, length):
    x = np.array(INTEGERS, "i4")
    fields = [unsigned(v) >> start & 2**length - 1 for v in INTEGERS]
    ours = binary(f"bfe.u32 {{to}}, {{x}}, {start}, {length}", x, x, "u4")
    assert ours.tolist() == fields
    ours = binary(f"bfe.s32 {{to}}, {{x}}, {start}, {length}", x, x, "i4")
    assert ours.tolist() == [signed(field, length) for field in fields]


@pytest.mark.parametrize(
    ("selector", "expected"), [("0x3210", 0x8076F5C4), ("0x4567", 0xD4E3B281), ("0xA20F", 0x0076C4FF)]
)
def test_permuted_bytes(selector, expected):
    x, y = np.array([0x8076F5C4], "u4"), np.array([0x81B2E3D4], "u4")
    assert hex(binary(f"prmt.b32 {{to}}, {{x}}, {{y}}, {selector}U", x, y, "u4")[0]) == hex(expected)


def test_longer_and_shorter_integers():
    x = np.array([-1, 2**40 + 5, -(2**33)], "i8")
    assert binary("cvt.u32.u64 {to}, {x}", x, x, "u4").tolist() == [2**32 - 1, 5, 0]
    y = np.array(INTEGERS, "i4")
    assert binary("cvt.s64.s32 {to}, {x}", y, y, "i8").tolist() == INTEGERS
    assert binary("cvt.u64.u32 {to}, {x}", y, y, "i8").tolist() == [unsigned(v) for v in INTEGERS]
    assert binary("cvt.rn.f32.s32 {to}, {x}", y, y, "f4").tolist() == np.array(INTEGERS, "f4").tolist()


def test_halves():
    x = np.array([0x0123456789ABCDEF], "u8")
    assert binary("mov.b64 {{_, {to}}}, {x}", x, x, "u4")[0] == 0x01234567
    assert binary("{{ .reg .b32 tmp; mov.b64 {{{to}, tmp}}, {x}; }}", x, x, "u4")[0] == 0x89ABCDEF
    y = np.array([0x89ABCDEF], "u4")
    assert binary("mov.b64 {to}, {{{x}, 1}}", y, y, "u8")[0] == 0x0000000189ABCDEF


@pytest.mark.parametrize(
    "relation", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_comparisons(relation, kind):
    pairs = [(x, y) for x in FLOATS for y in FLOATS]
    x, y = np.array(pairs, {"f32": "f4", "f64": "f8"}[kind]).T.copy()

    def expected(x: float, y: float) -> bool:
        if math.isnan(x) or math.isnan(y):
            return relation.endswith("u") or relation == "nan"
        holds = {
            "eq": x == y,
            "ne": x != y,
            "lt": x < y,
            "le": x <= y,
            "gt": x > y,
            "ge": x >= y,
            "num": True,
            "nan": False,
        }
        return holds[relation if relation in holds else relation[:2]]

    ours = binary(f"setp.{relation}.{kind} %p1, {{x}}, {{y}}; selp.b32 {{to}}, 1, 0, %p1", x, y, "i4")
    assert ours.tolist() == [expected(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("opcode", "expected"), [("min", np.fmin), ("max", np.fmax), ("add", np.add), ("div.full", np.divide)]
)
def test_floats(opcode, expected):
    x, y = np.array([(x, y) for x in FLOATS for y in FLOATS], "f4").T.copy()
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(binary(f"{opcode}.f32 {{to}}, {{x}}, {{y}}", x, y, "f4"), expected(x, y))


def test_fused_products_are_rounded_once():
    x = np.array([1 + 2**-12], "f4")
    assert binary("fma.rn.f32 {to}, {x}, {y}, 0fBF800000", x, x, "f4")[0] == 2**-11 + 2**-24
    x = np.array([1 + 2**-30], "f8")
    assert binary("fma.rn.f64 {to}, {x}, {y}, 0dBFF0000000000000", x, x, "f8")[0] == 2**-29 + 2**-60


def test_small_numbers_are_flushed_where_it_says_so():
    x, y = np.array([2**-130, -(2**-100)], "f4"), np.array([1, 2**-40], "f4")
    ours = binary("fma.rn.ftz.f32 {to}, {x}, {y}, 0f00000000", x, y, "f4")
    assert ours.tolist() == [0, 0] and np.signbit(ours).tolist() == [False, True]
    assert (binary("fma.rn.f32 {to}, {x}, {y}, 0f00000000", x, y, "f4") != 0).all()


def test_tf32_is_rounded_away_from_zero():
    x = np.array([1 + 2**-11, -1 - 2**-11, 1 + 2**-12, math.inf, math.nan], "f4")
    ours = binary("cvt.rna.tf32.f32 {to}, {x}", x, x, "f4")
    np.testing.assert_array_equal(ours, np.array([1 + 2**-10, -1 - 2**-10, 1, math.inf, math.nan], "f4"))


def test_the_reciprocal_of_a_double_has_half_of_the_digits():
    x = np.array([3.0], "f8")
    ours = binary("rcp.approx.ftz.f64 {to}, {x}", x, x, "f8")[0]
    assert 0 < 1 / 3 - ours < 2**-21


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("add.sat.s32 %r3, %r1, 1;", "not emulated"),
        ("setp.lt.and.s32 %p1, %r1, 1, %p2;", "not emulated"),
        ("cvt.rzi.s32.f32 %r3, %r1;", "not emulated"),
        ("atom.global.add.u32 %r3, [%rd1], 1;", "not emulated"),
        ("add.s32 %rd1, %r1, 1;", "%rd1 is no s32"),
        ("add.f32 %r3, %r1, 1;", "1 is no f32"),
        ("add.f32 %r3, %r1, 0d3FF0000000000000;", "0d3FF0000000000000 is no f32"),
        ("add.s32 %r3, %r1, other;", "expected a register or a number, got 'other'"),
        ("add.s32 %f3, %r1, 1;", "expected a register, got '%f3'"),
        ("ld.shared.b32 %r3, %r1;", "expected an address, got '%r1'"),
        ("ld.param.b32 %r3, [q];", "there is no parameter 'q'"),
    ],
)
def test_what_is_not_understood(what, how):
    with pytest.raises(Fault, match=f"test, kernel.py:7:3: .*: {how}"):
        run(what)
