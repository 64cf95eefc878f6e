import pytest

from tests.ptx.cases import kernel
from tests.ptx.program import Fault, parse

LOOP = """
$L__tmp0:
@!%p1 bra $L_2;
$L_1: add.s32 %r3, %r3, -1; setp.ne.b32 %p1, %r3, 0;
// a comment; no instruction
.loc 1 8 5 // kernel.py:8:5 @[ other.py:1:1 ]
{ .reg .b32 tmp; mov.b64 {tmp, %r4}, %rd1; }
@%p1 bra $L_1;
$L_2:
bar.sync 0;
st.shared.v2.b32 [ %r1 + 8 ], {%r3, %r4};
"""


def test_blocks_begin_at_labels_after_branches_and_at_what_is_collective():
    program = kernel(LOOP, num_threads=96, parameters=2)
    assert (program.name, program.num_threads, program.parameters) == ("test", 96, ["p0", "p1"])
    opcodes = [[instruction.opcode for instruction in block] for block in program.blocks]
    assert opcodes[0][-1] == "bra" and len(opcodes[0]) == 7
    assert opcodes[1:] == [["add.s32", "setp.ne.b32", "mov.b64", "bra"], ["bar.sync", "st.shared.v2.b32", "ret"]]
    assert program.labels == {"$L_1": 1, "$L_2": 2}


def test_instructions():
    program = kernel(LOOP)
    leave, _, _, move, again, meet, store, _ = program.instructions[2:]
    assert (leave.guard, leave.negated, leave.operands) == ("%p1", True, ["$L_2"])
    assert (again.guard, again.negated) == ("%p1", False)
    assert move.operands == ["{tmp, %r4}", "%rd1"]
    assert store.operands == ["[ %r1 + 8 ]", "{%r3, %r4}"]
    assert meet.is_collective and not store.is_collective
    assert str(move) == "test, kernel.py:8:5: mov.b64 {tmp, %r4}, %rd1"
    assert [instruction.number for instruction in program.instructions] == list(range(10))
    assert str(Fault(meet, "why")) == "test, kernel.py:8:5: bar.sync 0: why"


def test_no_kernel():
    with pytest.raises(ValueError, match="no kernel"):
        parse(".version 8.7\n")


def test_no_instruction():
    with pytest.raises(ValueError, match=r"expected an instruction, got '.local .b8 x' \(test, kernel.py:7:3\)"):
        kernel(".local .b8 x;")
