"""Threads for compiled kernels: ranges of sequences on as many threads as torch uses."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

# Handing a range to another thread takes some 30 microseconds: that many operations that a thread does meanwhile.
SMALLEST_SHARE = 200_000

_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def split(work: np.ndarray, align: int = 1) -> list[int]:
    """Bounds of ranges with about the same work, one a thread that torch would use, fewer for little work.

    Args:
        work: (n,), arithmetic operations of each item, roughly.
        align: inner bounds are multiples of this where there are several times as many items.

    Example:
        >>> split(np.ones(10))
        [0, 10]
    """
    so_far = work.cumsum()
    total = so_far[-1] if len(work) else 0.0
    shares = max(1, min(torch.get_num_threads(), len(work), int(total / SMALLEST_SHARE)))
    align = align if len(work) >= 2 * shares * align else 1
    inner = np.searchsorted(so_far, total * np.arange(1, shares) / shares) + 1
    return [0, *(int(bound) for bound in np.rint(inner / align) * align), len(work)]


def run(kernel: Callable[..., Any], bounds: list[int], *arguments: Any) -> None:
    """Call `kernel(share, first, last, *arguments)` on each range, side by side.

    The kernel must release the interpreter lock. The calling thread takes a share itself, and a process that was
    forked off makes threads of its own, so any thread of any process may call.

    Args:
        kernel: a function compiled with `nogil=True`.
        bounds: from `split`.
        arguments: passed on.

    Example:
        >>> done = []
        >>> run(lambda share, first, last: done.append((share, first, last)), [0, 10])
        >>> done
        [(0, 0, 10)]
    """
    ranges = list(zip(range(len(bounds)), bounds[:-1], bounds[1:], strict=False))
    others = [_workers(len(ranges) - 1).submit(kernel, *here, *arguments) for here in ranges[1:]]
    try:
        kernel(*ranges[0], *arguments)
    finally:
        for other in others:
            other.result()


def _workers(number: int) -> ThreadPoolExecutor:
    """The pool, made anew where it is too small or belongs to the process that this one was forked from."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < number:
        _pool = (os.getpid(), number, ThreadPoolExecutor(number, thread_name_prefix="pyrohmm"))
    return _pool[2]
