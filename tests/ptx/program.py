"""PTX, as Triton writes it, taken apart: blocks of instructions which threads enter at the first one only."""

import re
from typing import NamedTuple

# All threads of a program execute these together.
COLLECTIVE = (
    "bar.",
    "shfl.",
    "redux.",
    "ldmatrix.",
    "stmatrix.",
    "mma.",
    "wgmma.",
    "fence.",
    "cp.async.commit_group",
    "cp.async.wait_group",
)


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        number: its place in the program.
        kernel, line: where it comes from.
        text: what stands there.
        guard: register of the predicate on which it depends, empty if there is none.
        negated: whether the predicate must be false.
        opcode: with its modifiers.
        operands: as they are written.
    """

    number: int
    kernel: str
    line: str
    text: str
    guard: str
    negated: bool
    opcode: str
    operands: list[str]

    def __str__(self) -> str:
        return f"{self.kernel}, {self.line}: {self.text}"

    @property
    def is_collective(self) -> bool:
        """Whether all threads of a program execute it together."""
        return self.opcode.startswith(COLLECTIVE)

    @property
    def is_branch(self) -> bool:
        """Whether another instruction than the next one may follow."""
        return self.opcode in ("bra", "bra.uni", "ret")


class Fault(Exception):  # noqa: N818 - what is at fault is the kernel
    """What a GPU could do wrong, or what is not emulated."""

    def __init__(self, instruction: Instruction, problem: str):
        super().__init__(f"{instruction}: {problem}")


class Program(NamedTuple):
    """A kernel.

    Attributes:
        name: of the kernel.
        parameters: their names.
        num_threads: of one program.
        instructions: all but labels and declarations.
        starts: number of the first instruction of each block. A block ends with a branch, or where another one begins;
            what is collective stands at the beginning of one.
        labels: number of the block that follows each.
    """

    name: str
    parameters: list[str]
    num_threads: int
    instructions: list[Instruction]
    starts: list[int]
    labels: dict[str, int]

    @property
    def blocks(self) -> list[list[Instruction]]:
        """The instructions of each block."""
        ends = [*self.starts[1:], len(self.instructions)]
        return [self.instructions[start:end] for start, end in zip(self.starts, ends, strict=True)]


def parse(ptx: str) -> Program:
    """The only kernel of a text.

    Raises:
        ValueError: there is none, or something there is no instruction.
    """
    head = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)\s*\.reqntid\s+(\d+)[^{]*\{", ptx)
    if head is None:
        raise ValueError("ptx: no kernel with .reqntid")
    name, parameters, num_threads = head.groups()
    program = Program(
        name, [words.split()[-1] for words in parameters.split(",") if words.strip()], int(num_threads), [], [0], {}
    )
    targets = set(re.findall(r"\bbra(?:\.uni)?\s+(\S+?);", ptx))
    line = "?"
    for text in ptx[head.end() :].splitlines():
        if text.startswith("}"):
            break
        code, _, comment = text.partition("//")
        if code.split()[:1] == [".loc"]:
            line = comment.split()[0]
            continue
        for statement in re.split(r";|(?<=:)\s", code + " "):
            _add(program, statement.strip().lstrip("{").strip(), line, targets)
    return program


def _add(program: Program, statement: str, line: str, targets: set[str]) -> None:
    """Take up one statement; registers need no declaration, and labels that only a debugger uses begin no block."""
    instructions, starts = program.instructions, program.starts
    if statement in ("", "}") or statement.startswith((".reg ", ".pragma ")):
        return
    if statement.endswith(":"):
        if statement[:-1] in targets:
            if starts[-1] < len(instructions):
                starts.append(len(instructions))
            program.labels[statement[:-1]] = len(starts) - 1
        return
    parts = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", statement)
    if parts is None:
        raise ValueError(f"ptx: expected an instruction, got {statement!r} ({program.name}, {line})")
    negation, guard, opcode, operands = parts.groups(default="")
    split = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,\s])+", operands)
    made = Instruction(len(instructions), program.name, line, statement, guard, bool(negation), opcode, split)
    if starts[-1] < made.number and (made.is_collective or instructions[-1].is_branch):
        starts.append(made.number)
    instructions.append(made)
