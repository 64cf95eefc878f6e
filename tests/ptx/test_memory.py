"""What must fail, and what looks like it and must not."""

import warnings

import numpy as np
import pytest

from tests.ptx.cases import run
from tests.ptx.memory import Hazard
from tests.ptx.program import Fault

BARRIER = "bar.sync 0;"
IN_WARP = "bar.warp.sync -1;"
# Each thread writes a number, and reads its neighbour's in the warp, or that of another warp.
WRITE = "st.shared.b32 [%r2], %r1;"
READ_NEIGHBOUR = "xor.b32 %r3, %r2, 4; ld.shared.b32 %r4, [%r3];"
READ_WARP = "xor.b32 %r3, %r2, 128; ld.shared.b32 %r4, [%r3];"
RESULT = "st.global.b32 [%rd20], %r4;"


@pytest.fixture
def numbers() -> np.ndarray:
    return np.arange(64, dtype="u4")


@pytest.mark.parametrize("offset", [1, -1, 1000])
def test_out_of_bounds(offset, numbers):
    with pytest.raises(
        Fault, match=r"test, kernel.py:7:3: ld.global.b32 .*: out of bounds: .* in array 0 of 256 bytes"
    ):
        run(f"ld.global.b32 %r4, [%rd20 + {4 * offset}];", numbers)


def test_out_of_bounds_is_not_what_is_masked(numbers):
    run(
        "setp.lt.u32 %p1, %r1, 63; @%p1 ld.global.b32 %r4, [%rd20 + 4]; bar.sync 0; @%p1 st.global.b32 [%rd20], %r4;",
        numbers,
    )
    assert numbers.tolist() == [*range(1, 64), 63]


def test_out_of_bounds_of_shared_memory():
    with pytest.raises(Fault, match="out of bounds: .* in shared memory of 252 bytes"):
        run(WRITE, shared=252)


def test_memory_that_is_not_there():
    with pytest.raises(Fault, match="out of bounds: there is no memory"):
        run("mov.b64 %rd1, 0; ld.global.b32 %r3, [%rd1];")


def test_misaligned_vector(numbers):
    run("ld.global.v2.b32 {%r3, %r4}, [%rd10 + 8];", numbers)
    with pytest.raises(Fault, match="misaligned: .* for 8 bytes"):
        run("ld.global.v2.b32 {%r3, %r4}, [%rd10 + 4];", numbers)


@pytest.mark.parametrize(
    ("read", "barrier"),
    [(READ_NEIGHBOUR, ""), (READ_WARP, ""), (READ_WARP, IN_WARP)],
    ids=["lanes", "warps", "in warp"],
)
def test_read_after_write_without_a_barrier(read, barrier):
    with pytest.raises(Fault, match="race: read while another thread still writes it: test, .*st.shared"):
        run(WRITE + barrier + read, shared=256)


@pytest.mark.parametrize(
    ("read", "barrier"), [(READ_NEIGHBOUR, IN_WARP), (READ_NEIGHBOUR, BARRIER), (READ_WARP, BARRIER)]
)
def test_read_after_a_barrier(read, barrier, numbers):
    run(WRITE + barrier + read + RESULT, numbers, shared=256)
    assert numbers.tolist() == [k ^ (1 if read is READ_NEIGHBOUR else 32) for k in range(64)]


def test_write_after_read_without_a_barrier():
    body = f"{WRITE} {BARRIER} {READ_WARP} {{}} {WRITE}"
    with pytest.raises(Fault, match="race: written while another thread still reads it: test, .*ld.shared"):
        run(body.format(""), shared=256)
    run(body.format(BARRIER), shared=256)


def test_write_after_what_several_threads_read():
    body = f"{WRITE} {BARRIER} ld.shared.b32 %r4, [global_smem]; setp.eq.s32 %p1, %r1, 0; {{}} @%p1 {WRITE}"
    with pytest.raises(Fault, match="still reads it"):
        run(body.format(""), shared=256)
    run(body.format(BARRIER), shared=256)


def test_write_after_write_without_a_barrier():
    body = f"{WRITE} xor.b32 %r2, %r2, 128; {{}} {WRITE}"
    with pytest.raises(Fault, match="race: written while another thread still writes it"):
        run(body.format(""), shared=256)
    run(body.format(BARRIER), shared=256)


def test_the_same_value_may_be_written_twice():
    same = "and.b32 %r3, %r2, 127; and.b32 %r4, %r1, 31; st.shared.b32 [%r3], %r4;"
    run(same, shared=128)
    run(
        f"mov.b32 %r3, 5; st.shared.b32 [%r2], %r3; {BARRIER} xor.b32 %r2, %r2, 128; st.shared.b32 [%r2], %r3;",
        shared=256,
    )


@pytest.mark.parametrize("store", ["st.shared.b32 [global_smem], %r1;", "st.global.b32 [%rd10], %r1;"])
def test_lanes_write_different_values_to_one_place(store, numbers):
    with pytest.raises(Fault, match="lanes write different values to one place"):
        run(store, numbers, shared=4)


def test_single_bytes_side_by_side():
    run("cvt.u16.u32 %rs1, %r1; st.shared.b8 [%r1], %rs1; xor.b32 %r3, %r1, 1; st.shared.b8 [%r1], %rs1;", shared=64)


def test_race_through_global_memory_within_a_program(numbers):
    write = "xor.b32 %r3, %r1, 32; st.global.b32 [%rd20], %r3;"
    body = write + "{} mad.wide.u32 %rd1, %r3, 4, %rd10; ld.global.b32 %r4, [%rd1];"
    with pytest.raises(Fault, match="race: read while another thread still writes it"):
        run(body.format(""), numbers)
    run(body.format(BARRIER), numbers)


PLACE = "mov.u32 %r3, %ctaid.x; mad.wide.u32 %rd1, %r3, 4, %rd10; setp.eq.s32 %p1, %r1, 0; setp.eq.s32 %p2, %r3, 0;"


# Which program comes first is left to the machine.
@pytest.mark.parametrize(
    ("body", "how"),
    [
        (PLACE + "@%p2 ld.global.b32 %r4, [%rd10 + 4]; @%p1 st.global.b32 [%rd1], %r3;", "read.*writes|written.*reads"),
        (PLACE + "@%p1 st.global.b32 [%rd10], %r3;", "written.*writes"),
    ],
    ids=["one reads", "both write"],
)
def test_race_between_programs(body, how, numbers):
    with pytest.raises(Fault, match=how):
        run(body, numbers + 1, grid=(2,))


def test_programs_each_with_their_own(numbers):
    run(PLACE + "ld.global.b32 %r4, [%rd1]; bar.sync 0; @%p1 st.global.b32 [%rd1], %r1;", numbers, grid=(3,))
    assert numbers[:4].tolist() == [0, 0, 0, 3]


def test_one_thread_writes_what_all_read(numbers):
    body = "ld.global.b32 %r4, [%rd10]; add.s32 %r4, %r4, 7; setp.eq.s32 %p1, %r1, 0; @%p1 st.global.b32 [%rd10], %r4;"
    with pytest.warns(
        Hazard, match="test, kernel.py:7:3: written while other threads may still read it at kernel.py:7:3"
    ):
        run(body, numbers)
    assert numbers[0] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(body.replace("setp", "bar.sync 0; setp"), numbers)


COPY = "cp.async.ca.shared.global [ %r2 + 0 ], [ %rd20 + 0 ], 0x4; cp.async.commit_group;"


@pytest.mark.parametrize(
    ("after", "how"),
    [
        ("ld.shared.b32 %r4, [%r2];", "race: touched while another thread still copies it: test, .*cp.async"),
        ("cp.async.wait_group 1; ld.shared.b32 %r4, [%r2];", "copies"),
        ("cp.async.wait_group 0;" + READ_WARP, "race: read while another thread still writes it"),
    ],
    ids=["no wait", "a group is left", "no barrier"],
)
def test_read_of_a_copy_that_may_be_under_way(after, how, numbers):
    with pytest.raises(Fault, match=how):
        run(COPY + after, numbers, shared=256)


def test_copies_in_a_pipeline(numbers):
    second = COPY.replace("%r2 + 0", "%r2 + 256").replace("0x4", "0x4, 0")  # zeros
    first = "cp.async.wait_group 1; bar.sync 0; ld.shared.b32 %r4, [%r3];"
    last = "cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r5, [%r3 + 256]; add.s32 %r4, %r4, %r5;"
    run("xor.b32 %r3, %r2, 128;" + COPY + second + first + last + RESULT, numbers, shared=512)
    assert numbers.tolist() == [k ^ 32 for k in range(64)]


def test_write_where_others_still_read_while_a_copy_begins(numbers):
    with pytest.raises(Fault, match="written while another thread still reads"):
        run(WRITE + BARRIER + READ_WARP + COPY, numbers, shared=256)


def test_a_source_that_changes_while_the_copy_is_under_way(numbers):
    change = "st.global.b32 [%rd20], 9; cp.async.wait_group 0; ld.shared.b32 %r4, [%r2];"
    run(COPY + change + RESULT, numbers, shared=256)
    assert (numbers == 9).all()
