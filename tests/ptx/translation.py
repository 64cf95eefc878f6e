"""An instruction of PTX as a function that does the same with arrays, for those that Triton makes of our kernels."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx.program import Fault, Instruction
from tests.ptx.registers import DTYPES, WIDE, names

if TYPE_CHECKING:
    from tests.ptx.machine import Machine

# Of the threads that execute an instruction; True if all do.
Mask = np.ndarray | bool
Operation = Callable[[Mask], None]


def _wide(x: np.ndarray) -> str:
    return f"{x.dtype.kind}{2 * x.itemsize}"


def _fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    # What is left of the rounding is far below that of the numbers themselves.
    return x.astype("f8" if x.itemsize == 4 else np.longdouble) * y + z


def _reciprocal(x: np.ndarray) -> np.ndarray:
    # In float64 the hardware gives the upper half of the digits.
    return ((1 / x).view("u8") & np.uint64(0xFFFFFFFF00000000)).view("f8")


def _field(x: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    bits = 8 * x.itemsize
    return x << (bits - start - length).astype(x.dtype) >> (bits - length).astype(x.dtype)


def _permuted(x: np.ndarray, y: np.ndarray, selector: np.ndarray) -> np.ndarray:
    selected = selector[:, None] >> np.arange(0, 16, 4, dtype="u4") & 15
    picked = np.take_along_axis(np.stack([x, y], 1).view("u1"), (selected & 7).astype("i8"), 1)
    return np.where(selected & 8, (picked >> 7) * 255, picked).astype("u1").view("u4")[:, 0]


# Without the last word, which is the type, and .ftz. A shift by more than there is leaves nothing, in numpy as well.
_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    **dict.fromkeys(("add", "add.rn"), np.add),
    "sub": np.subtract,
    **dict.fromkeys(("mul", "mul.lo"), np.multiply),
    "mul.wide": lambda x, y: np.multiply(x, y, dtype=_wide(x)),
    "mad.lo": lambda x, y, z: x * y + z,
    "mad.wide": lambda x, y, z: np.multiply(x, y, dtype=_wide(x)) + z,
    "fma.rn": _fused,
    "min": np.fmin,
    "max": np.fmax,
    "neg": np.negative,
    "abs": np.absolute,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "bfe": _field,
    "prmt": _permuted,
    "selp": lambda x, y, p: np.where(p, x, y),
    "div": lambda x, y: (x - np.fmod(x, y)) // y,
    "rem": np.fmod,
    **dict.fromkeys(("div.full", "div.rn"), np.divide),
    "rcp.approx": _reciprocal,
    "ex2.approx": np.exp2,
}
_ORDERED: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal,
    "ne": lambda x, y: (x < y) | (x > y),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
}
# True of NaN too: each is the negation of another.
_UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt", "nan": "num"}


def translate(instruction: Instruction, machine: "Machine") -> Operation:
    """The function for an instruction, all but branches.

    Raises:
        Fault: there is none.
    """
    name, _, kind = instruction.opcode.rpartition(".")
    if instruction.is_collective:
        operation = _together(instruction, machine.collective(instruction))
    elif access := re.fullmatch(r"(ld|st)(?:\.volatile)?\.(global|shared)(?:\.v[24])?", name):
        operation = (_load if access[1] == "ld" else _store)(instruction, machine, access[2], kind)
    elif re.fullmatch(r"cp\.async\.c[ag]\.shared", name):
        operation = _copy(instruction, machine)
    elif name == "ld.param":
        operation = _parameter(instruction, machine, kind)
    elif name == "mov":
        operation = _move(instruction, machine, kind)
    elif name.startswith("cvt."):
        operation = _convert(instruction, machine)
    elif name.startswith("setp."):
        operation = _compare(instruction, machine, kind)
    elif name.removesuffix(".ftz") in _ELEMENTWISE and kind in DTYPES:
        operation = _elementwise(instruction, machine, name, kind)
    else:
        raise Fault(instruction, "not emulated")
    return _guarded(instruction, machine, operation) if instruction.guard else operation


def lanes(mask: Mask, num_threads: int) -> np.ndarray:
    """Which threads."""
    return np.arange(num_threads) if mask is True else np.flatnonzero(mask)


def _guarded(instruction: Instruction, machine: "Machine", operation: Operation) -> Operation:
    guard, negated = machine.registers.register(instruction, instruction.guard, "pred"), instruction.negated
    return lambda mask: operation((~guard if negated else guard) & mask)


def _together(instruction: Instruction, operation: Callable[[], None]) -> Operation:
    def run(mask: Mask) -> None:
        if mask is not True and not np.all(mask):
            raise Fault(instruction, "not all threads of the program are here")
        operation()

    return run


def _assign(
    instruction: Instruction, machine: "Machine", kind: str, function: Callable[..., np.ndarray], *sources: np.ndarray
) -> Operation:
    target = machine.registers.register(
        instruction, instruction.operands[0], kind, widen=instruction.opcode.startswith(("ld.", "cvt."))
    )
    if isinstance(function, np.ufunc):
        return lambda mask: function(*sources, out=target, where=mask, casting="unsafe")
    return lambda mask: np.copyto(target, function(*sources), where=mask, casting="unsafe")


def _elementwise(instruction: Instruction, machine: "Machine", name: str, kind: str) -> Operation:
    count = len(instruction.operands) - 1
    kinds, result = [kind] * count, kind
    if name in ("shl", "shr", "bfe"):
        kinds[1:] = ["u32"] * (count - 1)
    elif name == "selp":
        kinds[2] = "pred"
    elif name.endswith(".wide"):
        kinds[2:], result = [WIDE[kind]] * (count - 2), WIDE[kind]
    sources = [
        machine.registers.value(instruction, operand, kind)
        for operand, kind in zip(instruction.operands[1:], kinds, strict=True)
    ]
    function = _ELEMENTWISE[name.removesuffix(".ftz")]
    if name.endswith(".ftz"):
        function = _flushing(function)
    return _assign(instruction, machine, result, function, *sources)


def _flushing(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def flush(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)

    return lambda *sources: flush(function(*map(flush, sources)).astype(sources[0].dtype))


def _compare(instruction: Instruction, machine: "Machine", kind: str) -> Operation:
    _, relation, *rest = instruction.opcode.split(".")
    if rest != [kind] or relation not in _ORDERED | _UNORDERED:
        raise Fault(instruction, "not emulated")
    sources = [machine.registers.value(instruction, operand, kind) for operand in instruction.operands[1:]]
    if relation in _ORDERED:
        return _assign(instruction, machine, "pred", _ORDERED[relation], *sources)
    ordered = _ORDERED[_UNORDERED[relation]]
    return _assign(instruction, machine, "pred", lambda x, y: ~ordered(x, y), *sources)


def _convert(instruction: Instruction, machine: "Machine") -> Operation:
    _, *rounding, to, of = instruction.opcode.split(".")
    if (to, rounding) == ("tf32", ["rna"]):
        source = machine.registers.value(instruction, instruction.operands[1], "u32")
        return _assign(instruction, machine, "u32", _tf32, source)
    if rounding not in ([], ["rn"]) or not {to, of} <= DTYPES.keys():
        raise Fault(instruction, "not emulated")
    return _assign(
        instruction, machine, to, np.positive, machine.registers.value(instruction, instruction.operands[1], of)
    )


def _tf32(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x.view("f4")), np.uint32(0x7FFFFFFF), (x + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


def _move(instruction: Instruction, machine: "Machine", kind: str) -> Operation:
    registers, (target, source) = machine.registers, instruction.operands
    half = {"b64": "b32", "b32": "b16"}.get(kind, kind)
    if source.startswith("{"):
        parts = [registers.value(instruction, name, half) for name in names(source)]
        return _assign(instruction, machine, kind, lambda *x: np.stack(x, 1).view(DTYPES[kind])[:, 0], *parts)
    value = registers.value(instruction, source, kind)
    if not target.startswith("{"):
        return _assign(instruction, machine, kind, np.copy, value)
    # What goes nowhere has no register.
    parts = value.view(DTYPES[half]).reshape(registers.num_threads, -1)
    pairs = [
        (registers.register(instruction, name, half), parts[:, k])
        for k, name in enumerate(names(target))
        if name.startswith("%")
    ]

    def run(mask: Mask) -> None:
        for part, of in pairs:
            np.copyto(part, of, where=mask)

    return run


def _parameter(instruction: Instruction, machine: "Machine", kind: str) -> Operation:
    name = instruction.operands[1].strip("[]")
    if name not in machine.program.parameters:
        raise Fault(instruction, f"there is no parameter {name!r}")
    return _assign(instruction, machine, kind, lambda: np.frombuffer(machine.arguments[name], DTYPES[kind], 1))


def _load(instruction: Instruction, machine: "Machine", space: str, kind: str) -> Operation:
    registers, dtype = machine.registers, DTYPES[kind]
    targets = [registers.register(instruction, name, kind, widen=True) for name in names(instruction.operands[0])]
    base, offset = registers.address(instruction, instruction.operands[1])

    def run(mask: Mask) -> None:
        if len(these := lanes(mask, registers.num_threads)):
            addresses = base[these].astype("i8") + offset
            values = machine.spaces[space].read(instruction, these, addresses, dtype.itemsize * len(targets))
            for target, value in zip(targets, values.view(dtype).reshape(len(these), -1).T, strict=True):
                target[these] = value

    return run


def _store(instruction: Instruction, machine: "Machine", space: str, kind: str) -> Operation:
    registers, dtype = machine.registers, DTYPES[kind]
    sources = [registers.value(instruction, name, kind, widen=True) for name in names(instruction.operands[1])]
    base, offset = registers.address(instruction, instruction.operands[0])

    def run(mask: Mask) -> None:
        if len(these := lanes(mask, registers.num_threads)):
            values = np.stack([source[these].astype(dtype) for source in sources], 1)
            machine.spaces[space].write(
                instruction, these, base[these].astype("i8") + offset, values.view(f"V{values[0].nbytes}")[:, 0]
            )

    return run


def _copy(instruction: Instruction, machine: "Machine") -> Operation:
    registers = machine.registers
    (to, to_offset), (of, of_offset) = (registers.address(instruction, operand) for operand in instruction.operands[:2])
    size = int(instruction.operands[2], 0)
    given = registers.value(instruction, instruction.operands[-1], "u32")

    def run(mask: Mask) -> None:
        if not len(these := lanes(mask, registers.num_threads)):
            return
        read, targets = given[these] > 0, to[these].astype("i8") + to_offset
        if (given[these][read] != size).any():
            raise Fault(instruction, "not emulated: a part of the bytes")
        sources = of[these][read].astype("i8") + of_offset

        def fetch() -> np.ndarray:
            values = np.zeros(len(these), f"V{size}")
            if read.any():
                values[read] = machine.spaces["global"].read(instruction, these[read], sources, size)
            return values

        fetch()  # which may be done now, or as late as when it is waited for
        shared = machine.spaces["shared"]
        shared.claim(instruction, these, targets, size)
        machine.copies.begin(lambda: shared.fill(instruction, these, targets, fetch()))

    return run
