"""Operands: registers, each an array with a number for every thread, and constants."""

import re

import numpy as np

from tests.ptx.program import Fault, Instruction

DTYPES = {
    f"{kind}{8 * size}": np.dtype(f"{letter}{size}")
    for kind, letter, sizes in (
        ("b", "u", (1, 2, 4, 8)),
        ("u", "u", (1, 2, 4, 8)),
        ("s", "i", (1, 2, 4, 8)),
        ("f", "f", (4, 8)),
    )
    for size in sizes
} | {"pred": np.dtype("?")}
WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
_CLASSES = {"p": np.dtype("?"), "rs": np.dtype("u2"), "r": np.dtype("u4"), "rd": np.dtype("u8")}


class Registers:
    """Registers of all threads of a program; what was not written holds anything.

    Attributes:
        num_threads: of a program.
        special: those that tell a thread where it is.
    """

    def __init__(self, num_threads: int, random: np.random.Generator):
        self.num_threads = num_threads
        self.special = {"%tid.x": np.arange(num_threads, dtype="u4")}
        self.special |= {
            f"%{name}.{axis}": np.zeros(num_threads, "u4") for name in ("ctaid", "nctaid") for axis in "xyz"
        }
        self._random = random
        self._registers: dict[str, np.ndarray] = {}

    def register(self, instruction: Instruction, name: str, kind: str, *, widen: bool = False) -> np.ndarray:
        """The register as numbers of this type, or with `widen` as wider ones where it is wider.

        Raises:
            Fault: it is no register, or one of another width.
        """
        found = re.fullmatch(r"%(p|rs|r|rd)\d+", name)
        if found is None:
            raise Fault(instruction, f"expected a register, got {name!r}")
        own, dtype = _CLASSES[found[1]], DTYPES[kind]
        if name not in self._registers:
            noise = self._random.bytes(self.num_threads * own.itemsize)
            self._registers[name] = np.frombuffer(noise, f"u{own.itemsize}").copy().astype(own, copy=False)
        if widen and own.itemsize > dtype.itemsize and dtype.kind in "iu":
            dtype = np.dtype(f"{dtype.kind}{own.itemsize}")
        if dtype.itemsize != own.itemsize or (dtype.kind == "b") != (own.kind == "b"):
            raise Fault(instruction, f"{name} is no {kind}")
        return self._registers[name].view(dtype)

    def value(self, instruction: Instruction, operand: str, kind: str, *, widen: bool = False) -> np.ndarray:
        """A register, or a constant that is the same for all threads; `widen` as for `register`.

        Raises:
            Fault: neither, or a register of another width.
        """
        if operand in self.special:
            return self.special[operand].view(DTYPES[kind])
        if operand.startswith("%"):
            return self.register(instruction, operand, kind, widen=widen)
        dtype = DTYPES[kind]
        if match := re.fullmatch(r"0([fd])([0-9A-F]+)", operand):
            bits = int(match[2], 16)
            if dtype.itemsize != {"f": 4, "d": 8}[match[1]]:
                raise Fault(instruction, f"{operand} is no {kind}")
        elif match := re.fullmatch(r"(-?(?:0x[0-9A-Fa-f]+|\d+))U?", operand):
            if dtype.kind == "f":
                raise Fault(instruction, f"{operand} is no {kind}")
            bits = int(match[1], 0)
        elif match := re.fullmatch(r"global_smem(?:\+(\d+))?", operand):  # shared memory begins at zero
            bits = int(match[1] or 0)
        else:
            raise Fault(instruction, f"expected a register or a number, got {operand!r}")
        if dtype.kind == "b":
            return np.full(self.num_threads, bits != 0)
        return np.full(self.num_threads, bits % 2 ** (8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)

    def address(self, instruction: Instruction, operand: str) -> tuple[np.ndarray, int]:
        """Base, which may change, and offset of an address in brackets."""
        match = re.fullmatch(r"\[\s*(%\w+|global_smem)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if match is None:
            raise Fault(instruction, f"expected an address, got {operand!r}")
        kind = "u64" if match[1].startswith("%rd") else "u32"
        return self.value(instruction, match[1], kind), int(match[2] or 0)


def names(operand: str) -> list[str]:
    """What stands in braces, or alone."""
    return [name.strip() for name in operand.strip("{}").split(",")]
