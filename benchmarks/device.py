"""A GPU: what it is, its ceilings, and how long an operation must take on it at the least."""

import platform
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.machine import best, cpu_model, passes, product_flops, transition_bytes, versions
from benchmarks.problem import Shape
from benchmarks.timing import Queued, Seconds, device_seconds, queued_seconds

_PACKAGES = (*("pyrohmm", "torch", "triton", "pyro-ppl"), *("dynamax", "jax", "torbi", "funsor"))


class Ceilings(NamedTuple):
    """What a GPU can do at best, a second.

    Attributes:
        flops: of a matrix product in float32, an add and a multiply being two; TF32 is off.
        tf32_flops: of the same with TF32.
        bytes: copied from memory to memory, those read and those written both counted.
        instructions: in float32, one for each lane and cycle at the highest clock; computed, not measured.
    """

    flops: float
    tf32_flops: float
    bytes: float
    instructions: float

    @property
    def accurate_flops(self) -> float:
        """Of a matrix product as accurate as float32: three products in TF32 are."""
        return max(self.flops, self.tf32_flops / 3)


class Gpu(NamedTuple):
    """A GPU, how it is told to work, and how that is timed.

    Attributes:
        device: torch's.
        facts: name, driver and the like.
        cache: bytes of its last cache.
        instructions: as in `Ceilings`.
        seconds: runs a function and tells how long that took.
        queued: the same of the host and the device apart.
    """

    device: torch.device
    facts: dict[str, str]
    cache: int
    instructions: float
    seconds: Seconds = device_seconds
    queued: Callable[[Callable[[], Any]], Queued] = queued_seconds


def find() -> Gpu:
    """The GPU that torch uses.

    Raises:
        SystemExit: there is none.
    """
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks gpu: torch sees no CUDA device")
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout
    driver, megahertz = answer.splitlines()[0].split(",")
    lanes = 64 if (about.major, about.minor) <= (8, 0) else 128
    facts = {
        "GPU": about.name,
        "compute capability": f"{about.major}.{about.minor}",
        "processors": f"{about.multi_processor_count} of {lanes} lanes for float32",
        "highest clock": f"{int(megahertz)} MHz",
        "memory": f"{about.total_memory / 2**30:.0f} GiB",
        "last cache": f"{about.L2_cache_size / 2**20:.0f} MiB",
        "driver": driver,
        "CUDA": str(torch.version.cuda),
        "CPU": cpu_model(),
        "Python": platform.python_version(),
        **versions(_PACKAGES),
    }
    instructions = about.multi_processor_count * lanes * int(megahertz) * 1e6
    return Gpu(torch.device("cuda", torch.cuda.current_device()), facts, about.L2_cache_size, instructions)


def measure_ceilings(gpu: Gpu, size: int = 8192, copied: int = 2**29, repeats: int = 10) -> Ceilings:
    """The best of several runs each.

    Args:
        gpu: which.
        size: of the matrices.
        copied: floats in the copy, far more than fit the cache.
        repeats: runs of each.
    """
    # Zeros or ones take less power, and so run faster than numbers of any use.
    a, b = (torch.randn(size, size, device=gpu.device) for _ in range(2))
    c = torch.empty_like(a)
    source = torch.randn(copied, device=gpu.device)
    target = torch.empty_like(source)
    before = torch.get_float32_matmul_precision()
    rates = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        rates.append(2 * size**3 / best(lambda: torch.mm(a, b, out=c), repeats, gpu.seconds))
    torch.set_float32_matmul_precision(before)
    copy = 2 * source.nbytes / best(lambda: target.copy_(source), repeats, gpu.seconds)
    return Ceilings(*rates, copy, gpu.instructions)


def floor(operation: str, shape: Shape, ceilings: Ceilings) -> float:
    """Seconds that the operation takes at the least on a GPU; derived in this folder's README."""
    if operation == "viterbi":
        arithmetic = instructions(shape) / ceilings.instructions
    else:
        arithmetic = product_flops(operation, shape) / ceilings.accurate_flops
    return max(arithmetic, memory_floor(operation, shape, ceilings))


def memory_floor(operation: str, shape: Shape, ceilings: Ceilings) -> float:
    """Seconds that the potentials take to be read once, and gradients of their size to be written once."""
    observation = passes(operation) * 4 * shape.batch * shape.num_steps * shape.num_states
    return (observation + transition_bytes(operation, shape)) / ceilings.bytes


def instructions(shape: Shape) -> float:
    """Of Viterbi: an add and a maximum for each pair of states."""
    return 2 * shape.edges
