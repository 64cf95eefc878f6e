import numpy as np
import pytest

from tests.ptx.cases import kernel, run
from tests.ptx.machine import Machine
from tests.ptx.program import Fault

RESULT = "st.global.b32 [%rd20], %r4;"
LANE = np.arange(64) % 32


@pytest.fixture
def numbers() -> np.ndarray:
    return np.arange(64, dtype="u4")


def test_threads_that_branch_apart_meet_again(numbers):
    run(
        """
        mov.b32 %r4, 0;
        and.b32 %r3, %r1, 3;
        setp.eq.b32 %p1, %r3, 1;
        @%p1 bra $one;
        setp.eq.b32 %p2, %r3, 2;
        @%p2 bra $two;
        add.s32 %r4, %r4, 100;
        bra.uni $end;
        $one:
        add.s32 %r4, %r4, 10;
        bra.uni $end;
        $two:
        add.s32 %r4, %r4, 20;
        $end:
        bar.sync 0;
        shfl.sync.bfly.b32 %r4, %r4, 1, 31, -1;
        """
        + RESULT,
        numbers,
    )
    assert numbers.tolist() == [10, 100, 100, 20] * 16


def test_loops_of_different_lengths(numbers):
    run(
        """
        mov.b32 %r4, 0;
        mov.b32 %r3, %r1;
        $again:
        setp.eq.b32 %p1, %r3, 0;
        @%p1 bra $end;
        add.s32 %r4, %r4, %r3;
        add.s32 %r3, %r3, -1;
        bra.uni $again;
        $end:
        """
        + RESULT,
        numbers,
    )
    assert numbers.tolist() == [k * (k + 1) // 2 for k in range(64)]


def test_some_threads_end_early(numbers):
    run("setp.lt.u32 %p1, %r1, 10; @!%p1 ret; mov.b32 %r4, 7;" + RESULT, numbers)
    assert numbers.tolist() == [7] * 10 + list(range(10, 64))


@pytest.mark.parametrize("branch", ["@%p1 bra $end;", "@%p1 ret;", "@%p1 bra $other;"])
def test_a_barrier_in_divergent_code(branch):
    with pytest.raises(Fault, match="bar.sync 0: some threads wait here, others elsewhere or not at all"):
        run(f"setp.lt.u32 %p1, %r1, 32; {branch} bar.sync 0; bra.uni $end; $other: bar.sync 0; $end:\nbar.sync 0;")


def test_a_barrier_with_a_guard():
    with pytest.raises(Fault, match="not all threads of the program are here"):
        run("setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 0;")
    run("setp.lt.u32 %p1, %r1, 64; @%p1 bar.sync 0;")


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("bfly.b32 %r4, %r1, 5, 31", LANE ^ 5),
        ("up.b32 %r4, %r1, 3, 0", np.where(LANE < 3, LANE, LANE - 3)),
        ("down.b32 %r4, %r1, 3, 31", np.where(LANE > 28, LANE, LANE + 3)),
        ("idx.b32 %r4, %r1, 9, 31", np.full(64, 9)),
        ("idx.b32 %r4, %r1, 1, 7199", LANE // 4 * 4 + 1),  # 28 << 8 | 31: four lanes each
    ],
)
def test_shuffles(what, source, numbers):
    run(f"shfl.sync.{what}, -1;" + RESULT, numbers)
    assert numbers.tolist() == (np.arange(64) // 32 * 32 + source).tolist()


def test_whether_there_is_a_lane_to_shuffle_from(numbers):
    run("shfl.sync.up.b32 %r3|%p1, %r1, 3, 0, -1; selp.b32 %r4, 1, 0, %p1;" + RESULT, numbers)
    assert numbers.tolist() == ([0] * 3 + [1] * 29) * 2


def test_a_sum_over_all_threads(numbers):
    lanes = "".join(f"shfl.sync.bfly.b32 %r3, %r4, {by}, 31, -1; add.s32 %r4, %r4, %r3;" for by in (16, 8, 4, 2, 1))
    run(
        f"mov.b32 %r4, %r1; {lanes} shr.u32 %r5, %r1, 5; shl.b32 %r5, %r5, 2; st.shared.b32 [%r5], %r4; bar.sync 0;"
        "ld.shared.v2.b32 {%r4, %r6}, [global_smem]; add.s32 %r4, %r4, %r6;" + RESULT,
        numbers,
        shared=8,
    )
    assert (numbers == 2016).all()


@pytest.mark.parametrize(("what", "expected"), [("min.s32", -3), ("max.s32", 28)])
def test_reductions_of_a_warp(what, expected):
    results = np.arange(32, dtype="i4")
    run(f"add.s32 %r3, %r1, -3; redux.sync.{what} %r4, %r3, -1;" + RESULT, results, num_threads=32)
    assert (results == expected).all()


def test_programs_of_a_grid():
    visits = np.zeros((2, 3, 4), "i4")
    run(
        """
        mov.u32 %r3, %ctaid.z; mov.u32 %r4, %nctaid.y; mov.u32 %r5, %ctaid.y;
        mad.lo.s32 %r3, %r3, %r4, %r5;
        mov.u32 %r4, %nctaid.x; mov.u32 %r5, %ctaid.x;
        mad.lo.s32 %r3, %r3, %r4, %r5;
        mad.wide.s32 %rd1, %r3, 4, %rd10;
        setp.eq.s32 %p1, %r1, 0;
        @%p1 st.global.b32 [%rd1], %r3;
        """,
        visits,
        grid=(4, 3, 2),
    )
    assert visits.reshape(-1).tolist() == list(range(24))


def test_a_program_finds_nothing_of_the_one_before():
    found = np.zeros(64, "u4")
    read = "mov.u32 %r3, %ctaid.x; mad.wide.u32 %rd1, %r3, 4, %rd10; ld.shared.b32 %r4, [global_smem];"
    body = read + "setp.eq.s32 %p1, %r1, 0; @%p1 st.global.b32 [%rd1], %r4; bar.sync 0; @%p1 st.shared.b32 [%r2], 1;"
    run(body.replace("st.shared.b32 [%r2], 1", "st.shared.b32 [global_smem], %r2"), found, grid=(64,), shared=4)
    assert len(set(found.tolist())) > 60


# Of the fragments of mma.m16n8k8 by the figures of the PTX ISA.
def test_a_product_is_exact_but_for_what_is_cut_off():
    random = np.random.default_rng(0)
    a, b, c = (random.normal(size=shape).astype("f4") for shape in ((16, 8), (8, 8), (16, 8)))
    group, member = np.arange(32) // 4, np.arange(32) % 4
    given = np.stack(
        [a[group, member], a[group + 8, member], a[group, member + 4], a[group + 8, member + 4]]
        + [b[member, group], b[member + 4, group]]
        + [c[group, 2 * member], c[group, 2 * member + 1], c[group + 8, 2 * member], c[group + 8, 2 * member + 1]]
    )
    results = np.zeros((4, 32), "f4")
    loads = "".join(f"ld.global.b32 %r{10 + k}, [%rd20 + {128 * k}];" for k in range(10))
    product = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
    operands = "{ %r20, %r21, %r22, %r23 }, { %r10, %r11, %r12, %r13 }, { %r14, %r15 }, { %r16, %r17, %r18, %r19 }"
    stores = "".join(f"st.global.b32 [%rd21 + {128 * k}], %r{20 + k};" for k in range(4))
    run(f"{loads} {product} {operands}; {stores}", given, results, num_threads=32)
    tf32 = [(x.view("u4") >> 13 << 13).view("f4").astype("f8") for x in (a, b)]
    exact = tf32[0] @ tf32[1] + c
    ours = np.zeros((16, 8), "f4")
    ours[group, 2 * member], ours[group, 2 * member + 1] = results[:2]
    ours[group + 8, 2 * member], ours[group + 8, 2 * member + 1] = results[2:]
    assert (np.abs(ours) <= np.abs(exact)).all()
    assert (np.abs(exact) < np.abs(np.nextafter(ours, np.copysign(np.inf, ours)))).all()


# A descriptor of rows of 128 bytes, which begin at zero.
WARP_GROUP = """
    mov.b32 %r4, 0f7FC00000; mov.b32 %r3, 0;
    st.shared.b32 [%r2], %r3; st.shared.b32 [%r2 + 512], %r3;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    mov.b64 %rd1, 4611686018427387904;
    wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%r4,%r5,%r6,%r7}, {%r3,%r3,%r3,%r3}, %rd1, 0, 1, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
"""


def test_products_of_warp_groups_are_there_when_they_were_waited_for():
    results = np.ones(128, "f4")
    run(WARP_GROUP + RESULT, results, num_threads=128, shared=1024)
    assert (results == 0).all()
    run(WARP_GROUP.replace("aligned 0", "aligned 1") + RESULT, results, num_threads=128, shared=1024)
    assert np.isnan(results).all()


def test_what_tensor_cores_read_needs_a_fence():
    with pytest.raises(Fault, match="race: read without a fence while another thread still writes it"):
        run(WARP_GROUP.replace("fence.proxy.async.shared::cta;", ""), num_threads=128, shared=1024)


@pytest.mark.parametrize("name", ["ldmatrix", "stmatrix"])
def test_matrices_between_registers_and_shared_memory(name, numbers):
    # Lane l of 8 has row l; lane l gets the four bytes l % 4 of row l // 4, of two matrices one behind the other.
    address = "shl.b32 %r3, %r1, 4;"
    if name == "stmatrix":
        body = "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r3], {%r1, %r2}; bar.sync 0; ld.shared.b32 %r4, [%r2];"
        expected = np.arange(32)
    else:
        body = "st.shared.b32 [%r2], %r1; st.shared.b32 [%r2 + 128], %r2; bar.sync 0; "
        body += "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r5, %r4}, [%r3];"
        expected = 4 * np.arange(32)
    run(address + body + RESULT, numbers[:32], num_threads=32, shared=256)
    assert numbers[:32].tolist() == expected.tolist()


def test_rows_of_matrices_are_aligned():
    with pytest.raises(Fault, match="misaligned: rows have 16 bytes"):
        run("shl.b32 %r3, %r1, 3; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3];", num_threads=32, shared=512)


@pytest.mark.parametrize(
    "what", ["bar.sync 1;", "vote.sync.all.pred %p1, %p1, -1;", "shfl.sync.bfly.b32 %r3, %r1, 1, 31, 1;"]
)
def test_what_is_not_emulated(what):
    with pytest.raises(Fault, match="kernel.py:7:3: .*not emulated"):
        run("setp.eq.s32 %p1, %r1, 0;" + what)


def test_parts_of_warps():
    with pytest.raises(ValueError, match="expected whole warps, got 48 threads"):
        Machine(kernel("", num_threads=48), 0)
