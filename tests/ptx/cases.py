"""Kernels written by hand."""

import numpy as np

from tests.ptx.machine import Machine
from tests.ptx.program import Program, parse


def kernel(body: str, *, num_threads: int = 64, parameters: int = 0) -> Program:
    """A kernel with this body.

    Thread %r1 finds the array that parameter k points to at %rd1k, and the four bytes of its own at %rd2k; %r2 is four
    times its number.
    """
    lines = ["mov.u32 %r1, %tid.x;", "shl.b32 %r2, %r1, 2;"]
    for k in range(parameters):
        lines += [f"ld.param.b64 %rd1{k}, [p{k}];", f"mad.wide.u32 %rd2{k}, %r1, 4, %rd1{k};"]
    given = ", ".join(f".param .u64 .ptr .global .align 1 p{k}" for k in range(parameters))
    text = "\n".join([*lines, ".loc 1 7 3 // kernel.py:7:3", *body.splitlines()])
    return parse(f".visible .entry test(\n{given}\n)\n.reqntid {num_threads}\n{{\n{text}\n ret;\n}}\n")


def run(body: str, *arrays: np.ndarray, num_threads: int = 64, shared: int = 0, grid: tuple[int, ...] = (1,)) -> None:
    """Run such a kernel on arrays, in place."""
    program = kernel(body, num_threads=num_threads, parameters=len(arrays))
    memory = [(f"array {k}", array.ctypes.data, array.reshape(-1).view("u1")) for k, array in enumerate(arrays)]
    Machine(program, shared).launch(grid, [np.uint64(address).tobytes() for _, address, _ in memory], memory)
