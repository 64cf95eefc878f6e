"""Every Triton kernel of the library, compiled ahead of time for GPUs that need not be there.

The library's own code launches the kernels, on small chains in the memory of the CPU. A driver that only claims to be
that of a GPU takes the launches: Triton specialises them by their arguments as ever, and a hook of it notes what it
would now compile instead. So these are the kernels, with the options, that a GPU would run.
"""

import io
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from datetime import date
from importlib import import_module
from multiprocessing import get_context
from typing import NamedTuple

import torch
from tqdm import tqdm
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.machine import versions
from benchmarks.table import markdown
from pyrohmm.ops.chain import Chain, fit_chain

# Compute capability, and the most bytes of shared memory that a program can have there.
TARGETS = {80: 163 * 1024, 90: 227 * 1024}
# Numbers in one potential, roughly at most, so that chains of many states fit the memory.
_NUMBERS = 2**23


class Settings(NamedTuple):
    """Which chains.

    50 and 1440 are no powers of two; what is addressed with 50 is not aligned to 16 numbers.
    """

    states: Sequence[int] = (2, 4, 8, 16, 32, 50, 64, 128, 512, 1440, 4096)
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64)
    processes: int = len(os.sched_getaffinity(0))


# One for each form of the kernels.
QUICK = Settings(states=(8, 64, 512))


class Launch(NamedTuple):
    """A kernel as Triton specialises it for some arguments.

    Attributes:
        module, name: where it is.
        dtype, num_states: of the first chain that led to it.
        arch: compute capability.
        specialization: Triton's own description, JSON.
    """

    module: str
    name: str
    dtype: str
    num_states: int
    arch: int
    specialization: str

    @property
    def described(self) -> dict:
        """Types, constants, what is divisible by 16, and options."""
        return json.loads(self.specialization)

    @property
    def constants(self) -> str:
        """Constants that the library chose, with their values; switches that are on, by their name."""
        names = list(self.described["signature"])
        paths, values = self.described["constant_keys"], self.described["constant_vals"]
        constants = {names[path[0]]: value for path, value in zip(paths, values, strict=True)}
        chosen = {name: value for name, value in constants.items() if name.isupper() and value is not False}
        return " ".join(name if value is True else f"{name}={value}" for name, value in chosen.items())

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return self.described["options"]["num_warps"]


class Usage(NamedTuple):
    """What a compiled kernel takes.

    Attributes:
        registers: of a thread.
        shared: bytes of a program.
        stores, loads: bytes of a thread that do not fit the registers.
        error: why there is no kernel, empty if there is one.
    """

    registers: int = 0
    shared: int = 0
    stores: int = 0
    loads: int = 0
    error: str = ""

    @property
    def spills(self) -> bool:
        """Whether the registers do not suffice."""
        return self.stores > 0 or self.loads > 0


class Row(NamedTuple):
    """A kernel and what it takes, by compute capability."""

    launch: Launch
    usage: dict[int, Usage]

    @property
    def spills(self) -> bool:
        """Whether registers do not suffice somewhere."""
        return any(usage.spills for usage in self.usage.values())

    @property
    def failed(self) -> bool:
        """Whether there is no kernel somewhere."""
        return any(usage.error for usage in self.usage.values())

    @property
    def demand(self) -> tuple[bool, int, int]:
        """To be compared with another's: failures first, then what spills, then registers."""
        spilled = max(usage.stores + usage.loads for usage in self.usage.values())
        return self.failed, spilled, max(usage.registers for usage in self.usage.values())


class Report(NamedTuple):
    """All kernels."""

    date: str
    machine: dict[str, str]
    rows: list[Row]

    @property
    def name(self) -> str:
        """Of the files: date and kind."""
        return f"{self.date}-compile"

    @property
    def ok(self) -> bool:
        """Whether everything was compiled."""
        return not any(row.failed for row in self.rows)

    def as_json(self) -> dict:
        """Plain numbers and texts."""
        kernels = [
            {
                "kernel": f"{row.launch.module}.{row.launch.name}",
                "dtype": row.launch.dtype,
                "num_states": row.launch.num_states,
                "constants": row.launch.constants,
                "num_warps": row.launch.num_warps,
                **{f"sm_{arch}": usage._asdict() for arch, usage in row.usage.items()},
            }
            for row in self.rows
        ]
        return {"date": self.date, "machine": self.machine, "kernels": kernels}

    def as_markdown(self) -> str:
        """The table."""
        header = ["kernel", "dtype", "K", "constants", "variants", "warps"]
        for arch in TARGETS:
            header += [f"sm_{arch} registers", "shared", "spilled"]
        count, spilling = len(self.rows), sum(row.spills for row in self.rows)
        summary = f"{count} kernels, {spilling} with spills"
        if not self.ok:
            summary += f", **{sum(row.failed for row in self.rows)} failed**"
        parts = [
            f"# Kernels, {self.date}",
            ", ".join(f"{key}: {value}" for key, value in self.machine.items()) + ".",
            "Registers of a thread; bytes of shared memory of a program; bytes of a thread that do not fit the "
            "registers, stored / loaded. K is that of the first chain that led to the kernel. Variants differ in what "
            "is known of the arguments, one or divisible by 16; shown is the one that takes most.",
            markdown(header, (_cells(row, variants) for row, variants in _worst(self.rows)), left=4),
            *(
                f"sm_{arch}, {row.launch.name}, {row.launch.dtype}, K = {row.launch.num_states}: {usage.error}"
                for row in self.rows
                for arch, usage in row.usage.items()
                if usage.error
            ),
            summary,
        ]
        return "\n\n".join(parts) + "\n"


def run(settings: Settings) -> Report:
    """Compile everything.

    Raises:
        SystemExit: Triton interprets kernels in this process, and so has none to compile.
    """
    if knobs.runtime.interpret:
        raise SystemExit("python -m benchmarks compile: unset TRITON_INTERPRET, with which nothing is compiled")
    launches = {arch: record(settings, arch) for arch in TARGETS}
    tasks = [launch for same in zip(*launches.values(), strict=True) for launch in same]
    with ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn")) as pool:
        compiled = tqdm(pool.map(compile_launch, tasks), "kernels", len(tasks))
        found = dict(zip(tasks, compiled, strict=True))
    rows = [Row(same[0], {one.arch: found[one] for one in same}) for same in zip(*launches.values(), strict=True)]
    machine = {"Python": platform.python_version(), **versions(("pyrohmm", "torch", "triton"))}
    machine["ptxas"] = knobs.nvidia.ptxas.version
    return Report(date.today().isoformat(), machine, rows)


def record(settings: Settings, arch: int) -> list[Launch]:
    """What the library launches on a GPU of this compute capability, each kernel once, in the order of the launches."""
    found: dict[tuple, Launch] = {}

    def note(*, key: str, fn, compile: dict, **_) -> bool:
        place = (fn.module, fn.name)
        about = (str(dtype).removeprefix("torch."), num_states, arch, compile["specialization_data"])
        found.setdefault((*place, key), Launch(*place, *about))
        return True  # do not compile, and so do not run

    driver.set_active(ClaimedDriver(arch))
    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        for num_states in settings.states:
            for dtype in settings.dtypes:
                for chain in chains(num_states, dtype):
                    for name, operate in OPERATIONS.items():
                        operate(import_module(name), chain)
    return list(found.values())


class ClaimedDriver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # a kernel keeps what it knows of each device apart

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch) -> Usage:
    """Compile a kernel; in a process of its own, since Triton is told so for good."""
    driver.set_active(ClaimedDriver(launch.arch))
    # ptxas tells what a kernel takes only while it compiles.
    knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True
    log = io.StringIO()
    try:
        with redirect_stdout(log):
            kernel = getattr(import_module(launch.module), launch.name).preload(launch.specialization)
    except Exception as error:
        return Usage(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return usage(log.getvalue(), kernel.metadata.shared, TARGETS[launch.arch])


def usage(log: str, shared: int, most_shared: int) -> Usage:
    """What a kernel takes, from the log of ptxas and the size of its shared memory."""

    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, log)]

    return Usage(
        registers=max(numbers(r"Used (\d+) registers")),
        shared=shared,
        stores=sum(numbers(r"(\d+) bytes spill stores")),
        loads=sum(numbers(r"(\d+) bytes spill loads")),
        error=f"{shared} bytes of shared memory, there are {most_shared}" if shared > most_shared else "",
    )


def chains(num_states: int, dtype: torch.dtype) -> Iterator[Chain]:
    """Many sequences with one matrix, one long sequence, and the same with a matrix for each step."""
    K = num_states
    initial, matrix = torch.zeros(K, dtype=dtype), torch.zeros(K, K, dtype=dtype)
    batch = min(4096, 2**20 // K)
    steps = min(100, _NUMBERS // (batch * K))
    yield fit_chain(initial, matrix, torch.zeros(batch, steps, K, dtype=dtype))
    yield fit_chain(initial, matrix, torch.zeros(1, min(100_000, max(3, 2 * _NUMBERS // K**2)), K, dtype=dtype))
    steps = min(100, max(3, _NUMBERS // (batch * K**2)))
    batch = min(batch, max(2, _NUMBERS // (steps * K**2)))
    for sequences, length in ((batch, steps), (1, min(5000, max(3, _NUMBERS // K**2)))):
        per_step = torch.zeros(sequences, length - 1, K, K, dtype=dtype)
        yield fit_chain(initial, per_step, torch.zeros(sequences, length, K, dtype=dtype))


def _forward_backward(gpu, chain: Chain) -> None:
    weight = chain.observation.new_ones(chain.batch_shape)
    gpu.partition(chain, keep=False)
    gpu.filter(chain)
    _, messages = gpu.partition(chain, keep=True)
    for each in (False, True):
        matrices = chain.batch_shape.numel() * (chain.num_steps if each else 1)
        if matrices * chain.num_states**2 <= 8 * _NUMBERS:
            gpu.smooth(chain, messages, each=each)
    gpu.smooth(chain, messages, each=False, weight=weight)  # the gradient
    if gpu.has_hessian_product(chain):
        gpu.hessian_product(chain, messages, tuple(chain[:3]), weight=weight, offset=weight)


def _viterbi(gpu, chain: Chain) -> None:
    gpu.viterbi(chain)


def _sampling(gpu, chain: Chain) -> None:
    shape = (*chain.batch_shape, chain.num_steps)
    gpu.sample(chain, torch.zeros_like(chain.observation), torch.zeros(shape, dtype=torch.float64))


OPERATIONS: dict[str, Callable[..., None]] = {
    "pyrohmm.ops.forward_backward.gpu": _forward_backward,
    "pyrohmm.ops.viterbi.gpu": _viterbi,
    "pyrohmm.ops.sampling.gpu": _sampling,
}


def _worst(rows: Iterable[Row]) -> list[tuple[Row, int]]:
    """Of kernels that differ only in what their arguments are divisible by, the one that takes most, and their number.

    Triton makes a constant of an argument that is one, and knows which ones are divisible by 16.
    """
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        launch = row.launch
        key = (launch.module, launch.name, launch.dtype, launch.num_states, launch.constants, launch.num_warps)
        alike.setdefault(key, []).append(row)
    return [(max(group, key=lambda row: row.demand), len(group)) for group in alike.values()]


def _cells(row: Row, variants: int) -> Iterator[str]:
    launch = row.launch
    kernel = f"{launch.module.removeprefix('pyrohmm.ops.')}.{launch.name}"
    yield from (kernel, launch.dtype, str(launch.num_states), launch.constants, str(variants), str(launch.num_warps))
    for usage in row.usage.values():
        if usage.error:
            yield from ("**failed**", "", "")
        else:
            spilled = f"{usage.stores} / {usage.loads}"
            yield from (str(usage.registers), str(usage.shared), f"**{spilled}**" if usage.spills else "0")
