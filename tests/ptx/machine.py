"""A machine that runs a kernel: the programs of a grid one by one, all threads of a program in step.

Threads that branch apart run one after the other, until they meet again. What a GPU could do in another order is not
tried out but found: see `tests.ptx.memory`. What is asynchronous happens as late as it may.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tests.ptx import tensor_cores
from tests.ptx.memory import WARP, Order, Space
from tests.ptx.program import Fault, Instruction, Program
from tests.ptx.registers import DTYPES, Registers, names
from tests.ptx.translation import Mask, Operation, translate


class Asynchronous:
    """What was begun and is done when it is waited for, in groups."""

    def __init__(self):
        self._open: list[Callable[[], None]] = []
        self._groups: list[list[Callable[[], None]]] = []

    def begin(self, operation: Callable[[], None]) -> None:
        """Do this later."""
        self._open.append(operation)

    def commit(self) -> None:
        """What was begun is one group."""
        self._groups.append(self._open)
        self._open = []

    def wait(self, count: int) -> None:
        """Until no more than so many groups are left."""
        while len(self._groups) > count:
            for operation in self._groups.pop(0):
                operation()


class Block(NamedTuple):
    """Instructions that threads execute together.

    Attributes:
        operations: what they do.
        collective: whether all threads have to be there.
        guard, negated: which threads go on at the target, all without a guard; the others do at the next block.
        target: number of a block.
    """

    operations: list[Operation]
    collective: bool
    guard: np.ndarray | None
    negated: bool
    target: int


class Machine:
    """A kernel, ready to run.

    Args:
        program: the kernel.
        shared: bytes of shared memory of each program.

    Attributes:
        registers: of the program that runs.
        spaces: its memory, `global` and `shared`.
        arguments: bytes of each parameter.
        copies, products: what it has begun.
    """

    def __init__(self, program: Program, shared: int):
        if program.num_threads % WARP:
            raise ValueError(f"program: expected whole warps, got {program.num_threads} threads")
        self.program = program
        self.arguments: dict[str, bytes] = {}
        self.spaces: dict[str, Space] = {}
        self.copies, self.products = Asynchronous(), Asynchronous()
        self._shared = shared
        self._random = np.random.default_rng(0)
        self.registers = Registers(program.num_threads, self._random)
        self._order = Order(program.num_threads)
        self._units = {name: self._unit(name) for name in ("global", "shared")}
        self._blocks = [self._block(number, block) for number, block in enumerate(program.blocks)]

    def launch(
        self, grid: Sequence[int], arguments: Sequence[bytes], memory: Sequence[tuple[str, int, np.ndarray]]
    ) -> None:
        """Run all programs of a grid, in some order.

        Args:
            grid: up to three numbers of programs.
            arguments: what the first parameters are; the others are zero.
            memory: name, address and bytes of each region of global memory.

        Raises:
            Fault: a program does what it must not do.
        """
        given = [*arguments, *[bytes(8)] * (len(self.program.parameters) - len(arguments))]
        self.arguments = dict(zip(self.program.parameters, given, strict=True))
        self._order = Order(self.program.num_threads)
        self.spaces["global"] = self._space("global", memory)
        sizes = dict(zip("xyz", (*grid, 1, 1), strict=False))
        with np.errstate(all="ignore"):
            for number, place in enumerate(self._random.permutation(list(np.ndindex(*sizes.values())))):
                for (axis, size), index in zip(sizes.items(), place, strict=True):
                    self.registers.special[f"%nctaid.{axis}"][:] = size
                    self.registers.special[f"%ctaid.{axis}"][:] = index
                self._run(number)
        self.spaces["global"].write_back()

    def collective(self, instruction: Instruction) -> Callable[[], None]:
        """What all threads of a program do together.

        Raises:
            Fault: it is not emulated.
        """
        opcode, operands = instruction.opcode, instruction.operands
        match opcode.split("."):
            case ["bar", "sync"] if operands == ["0"]:
                return lambda: self._order.meet()
            case ["bar", "warp", "sync"]:
                return lambda: self._order.meet_in_warps()
            case ["fence", "proxy", "async", "shared::cta"]:
                return lambda: self._order.fence()
            case ["cp", "async", "commit_group"]:
                return lambda: self.copies.commit()
            case ["cp", "async", "wait_group"]:
                return lambda: self.copies.wait(int(operands[0]))
            case ["wgmma", "fence", "sync", "aligned"]:
                return lambda: None
            case ["wgmma", "commit_group", "sync", "aligned"]:
                return lambda: self.products.commit()
            case ["wgmma", "wait_group", "sync", "aligned"]:
                return lambda: self.products.wait(int(operands[0]))
            case ["wgmma", "mma_async", "sync", "aligned", shape, "f32", "tf32", "tf32"]:
                return self._warp_group_product(instruction, shape)
            case ["mma", "sync", "aligned", "m16n8k8", "row", "col", "f32", "tf32", "tf32", "f32"]:
                return self._product(instruction, "f32", tensor_cores.truncated)
            case ["mma", "sync", "aligned", "m8n8k4" | "m16n8k16", "row", "col", "f64", "f64", "f64", "f64"]:
                return self._product(instruction, "f64", lambda values: values)
            case ["ldmatrix" | "stmatrix" as name, "sync", "aligned", "m8n8", "x1" | "x2" | "x4", "shared", "b16"]:
                return self._load_matrices(instruction) if name == "ldmatrix" else self._store_matrices(instruction)
            case ["shfl", "sync", mode, "b32"] if mode in _SOURCES:
                return self._shuffle(instruction, mode)
            case ["redux", "sync", "min" | "max" as name, kind]:
                return self._reduce(instruction, {"min": np.min, "max": np.max}[name], kind)
        raise Fault(instruction, "not emulated")

    def _block(self, number: int, instructions: list[Instruction]) -> Block:
        *_, last = instructions
        body = instructions[:-1] if last.is_branch else instructions
        target = number + 1
        if last.opcode == "ret":
            target = len(self.program.starts)
        elif last.is_branch:
            target = self.program.labels[last.operands[0]]
        guard = self.registers.register(last, last.guard, "pred") if last.is_branch and last.guard else None
        operations = [translate(instruction, self) for instruction in body]
        return Block(operations, instructions[0].is_collective, guard, last.negated, target)

    def _unit(self, name: str) -> int:
        """Bytes of the shortest access to some memory, at most four."""
        opcodes = (instruction.opcode for instruction in self.program.instructions)
        found = (re.fullmatch(rf"(?:ld|st)(?:\.volatile)?\.{name}(?:\.v\d)?\.(\w+)", opcode) for opcode in opcodes)
        return min([4, *(DTYPES[access[1]].itemsize for access in found if access)])

    def _space(self, name: str, regions: Sequence[tuple[str, int, np.ndarray]]) -> Space:
        return Space(self.program, self._order, regions, unit=self._units[name], strict=name == "shared")

    def _run(self, number: int) -> None:
        self._order.begin(number)
        shared = np.frombuffer(self._random.bytes(self._shared), "u1")
        self.spaces["shared"] = self._space("shared", [("shared memory", 0, shared)])
        self.copies, self.products = Asynchronous(), Asynchronous()
        where: int | np.ndarray = 0  # the block where all threads are, or that of each
        while True:
            here, mask = (where, True) if isinstance(where, int) else self._next(where)
            if here == len(self._blocks):
                return
            for operation in self._blocks[here].operations:
                operation(mask)
            where = self._follow(where, here, mask)

    def _next(self, where: np.ndarray) -> tuple[int, Mask]:
        """The first block where no thread has to wait for the others."""
        blocks = [int(block) for block in np.unique(where) if block < len(self._blocks)]
        free = [block for block in blocks if not self._blocks[block].collective]
        if not free:
            waiting = self.program.blocks[blocks[0]][0]
            raise Fault(waiting, "some threads wait here, others elsewhere or not at all")
        return free[0], where == free[0]

    def _follow(self, where: int | np.ndarray, here: int, mask: Mask) -> int | np.ndarray:
        """Where the threads are after a block."""
        block = self._blocks[here]
        if block.guard is None:
            after = np.full(self.program.num_threads, block.target)
        else:
            after = np.where(block.guard != block.negated, block.target, here + 1)
        after = np.where(mask, after, where)
        return int(after[0]) if (after == after[0]).all() else after

    def _stack(self, instruction: Instruction, operand: str, kind: str) -> Callable[[], np.ndarray]:
        sources = [self.registers.value(instruction, name, kind) for name in names(operand)]
        return lambda: np.stack(sources)

    def _targets(self, instruction: Instruction, operand: str, kind: str) -> list[np.ndarray]:
        return [self.registers.register(instruction, name, kind) for name in names(operand)]

    def _product(
        self, instruction: Instruction, kind: str, seen: Callable[[np.ndarray], np.ndarray]
    ) -> Callable[[], None]:
        targets = self._targets(instruction, instruction.operands[0], kind)
        a, b, c = (self._stack(instruction, operand, kind) for operand in instruction.operands[1:])

        def run() -> None:
            matrices = tensor_cores.left(seen(a())), tensor_cores.right(seen(b()))
            _assign(targets, tensor_cores.multiply_add(*matrices, c()))

        return run

    def _warp_group_product(self, instruction: Instruction, shape: str) -> Callable[[], None]:
        to, of, place, scale, *signs = instruction.operands
        columns = re.fullmatch(r"m64n(\d+)k8", shape)
        if columns is None or signs != ["1", "1"] or self.program.num_threads % (4 * WARP):
            raise Fault(instruction, "not emulated")
        targets = self._targets(instruction, to, "f32")
        a, c = self._stack(instruction, of, "f32"), self._stack(instruction, to, "f32")
        descriptors = self.registers.value(instruction, place, "u64")
        scaled = self.registers.value(instruction, scale, "pred")
        leaders = np.arange(0, self.program.num_threads, 4 * WARP)

        def later(a: np.ndarray, descriptors: np.ndarray, scaled: np.ndarray) -> None:
            seen = []
            for leader, descriptor in zip(leaders, descriptors[leaders], strict=True):
                addresses = tensor_cores.described(int(descriptor), int(columns[1]))
                lanes = np.full(addresses.size, leader)
                values = self.spaces["shared"].read(instruction, lanes, addresses.reshape(-1), 4, fenced=True)
                seen.append(tensor_cores.truncated(values.view("f4")).reshape(addresses.shape))
            b = np.repeat(seen, 4, axis=0)
            _assign(targets, tensor_cores.multiply_add(tensor_cores.left(a), b, np.where(scaled, c(), np.float32(0))))

        def run() -> None:
            given = tensor_cores.truncated(a()), descriptors.copy(), scaled.copy()
            self.products.begin(lambda: later(*given))

        return run

    def _load_matrices(self, instruction: Instruction) -> Callable[[], None]:
        targets = self._targets(instruction, instruction.operands[0], "b32")
        base, offset = self.registers.address(instruction, instruction.operands[1])
        lanes = np.arange(self.program.num_threads)

        def run() -> None:
            addresses = self._rows(instruction, base.astype("i8") + offset, len(targets))
            for target, places in zip(targets, addresses, strict=True):
                target[:] = self.spaces["shared"].read(instruction, lanes, places, 4).view("u4")

        return run

    def _store_matrices(self, instruction: Instruction) -> Callable[[], None]:
        sources = self._targets(instruction, instruction.operands[1], "b32")
        base, offset = self.registers.address(instruction, instruction.operands[0])
        lanes = np.arange(self.program.num_threads)

        def run() -> None:
            addresses = self._rows(instruction, base.astype("i8") + offset, len(sources))
            for source, places in zip(sources, addresses, strict=True):
                self.spaces["shared"].write(instruction, lanes, places, source.view("V4"))

        return run

    def _rows(self, instruction: Instruction, addresses: np.ndarray, count: int) -> list[np.ndarray]:
        if (addresses.reshape(-1, WARP)[:, : 8 * count] % 16).any():
            raise Fault(instruction, "misaligned: rows have 16 bytes")
        return [tensor_cores.rows(addresses, number) for number in range(count)]

    def _shuffle(self, instruction: Instruction, mode: str) -> Callable[[], None]:
        target, *inside = instruction.operands[0].split("|")
        targets = [self.registers.register(instruction, target, "b32")]
        targets += [self.registers.register(instruction, name, "pred") for name in inside]
        value, by, bounds, members = (
            self.registers.value(instruction, operand, "u32") for operand in instruction.operands[1:]
        )
        if (members != 2**WARP - 1).any():
            raise Fault(instruction, "not emulated: a part of a warp")
        threads = np.arange(self.program.num_threads)
        lane, warp = threads % WARP, threads // WARP * WARP

        def run() -> None:
            clamp, segment = bounds.astype("i8") & 31, bounds.astype("i8") >> 8 & 31
            source = _SOURCES[mode](lane, by.astype("i8"), segment)
            last = lane & segment | clamp & ~segment
            within = source >= last if mode == "up" else source <= last
            _assign(targets, (value[warp + np.where(within, source, lane)], within)[: len(targets)])

        return run

    def _reduce(self, instruction: Instruction, function: Callable[..., np.ndarray], kind: str) -> Callable[[], None]:
        target = self.registers.register(instruction, instruction.operands[0], kind)
        value = self.registers.value(instruction, instruction.operands[1], kind)

        def run() -> None:
            target[:] = np.repeat(function(value.reshape(-1, WARP), axis=1), WARP)

        return run


# The lane whose number a lane gets, from its own, the operand, and the bits that tell parts of a warp apart.
_SOURCES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "bfly": lambda lane, by, segment: lane ^ by,
    "up": lambda lane, by, segment: lane - by,
    "down": lambda lane, by, segment: lane + by,
    "idx": lambda lane, by, segment: lane & segment | by & 31 & ~segment,
}


def _assign(targets: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> None:
    for target, value in zip(targets, values, strict=True):
        target[:] = value
