"""The machine: what it is, its ceilings, and how long an operation must take on it at the least."""

import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.problem import Shape
from benchmarks.timing import Seconds, wall_seconds

_PACKAGES = (
    *("pyrohmm", "torch", "pyro-ppl", "numba", "numpy"),
    *("dynamax", "jax", "jaxlib", "hmmlearn", "funsor"),
)


class Ceilings(NamedTuple):
    """What the machine can do at best, float32, with torch's threads."""

    flops: float  # of a matrix product of 2048 x 2048, an add and a multiply being two, a second
    bytes: float  # copied from memory to memory, those read and those written both counted, a second
    exps: float  # exponentials of a tensor that fits the cache, a second


def describe() -> dict[str, str]:
    """CPU, cores, threads, versions."""
    info = {
        "CPU": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "torch threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    return info | versions(_PACKAGES)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What is installed of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_model() -> str:
    """The processor's name, from the system's description of it where there is one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_ceilings(size: int = 2048, copied: int = 2**26, repeats: int = 10) -> Ceilings:
    """The best of several runs each; an exponential, being short, has ten times as many.

    Args:
        size: of the matrices.
        copied: floats in the copy, far more than fit the cache.
        repeats: runs of each.
    """
    a, b, c = (torch.ones(size, size) for _ in range(3))
    source, target = torch.ones(copied), torch.ones(copied)
    cached = torch.linspace(-10, 0, 2**17)
    out = torch.empty_like(cached)
    return Ceilings(
        flops=2 * size**3 / best(lambda: torch.mm(a, b, out=c), repeats),
        bytes=2 * source.nbytes / best(lambda: target.copy_(source), repeats),
        exps=cached.numel() / best(lambda: torch.exp(cached, out=out), 10 * repeats),
    )


def floor(operation: str, shape: Shape, ceilings: Ceilings) -> float:
    """Seconds that the operation takes at the least on this machine; derived in this folder's README."""
    if shape.time_varying:
        return transition_bytes(operation, shape) / ceilings.bytes
    if operation == "viterbi":
        return shape.edges / (ceilings.flops / 4)
    exps = shape.batch * shape.num_steps * shape.num_states
    return product_flops(operation, shape) / ceilings.flops + exps / ceilings.exps


def product_flops(operation: str, shape: Shape) -> float:
    """Of the products with the matrix: forward, for the gradient also backward and for the counts."""
    return (1 if operation == "log_partition" else 3) * 2 * shape.edges


def transition_bytes(operation: str, shape: Shape) -> float:
    """Of a matrix per step; one for all is too small to count."""
    if not shape.time_varying:
        return 0
    return passes(operation) * 4 * shape.batch * (shape.num_steps - 1) * shape.num_states**2


def passes(operation: str) -> int:
    """Read, and written too where there are gradients."""
    return 2 if operation in ("gradient", "smooth") else 1


def best(function: Callable[[], Any], repeats: int, seconds: Seconds = wall_seconds) -> float:
    """The shortest time of several runs, after one that does not count."""
    function()
    return min(seconds(function) for _ in range(repeats))
