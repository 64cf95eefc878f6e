"""Times of several functions, taken in turns in one process."""

import random
import statistics
from collections.abc import Callable, Mapping
from time import perf_counter, sleep
from typing import Any, NamedTuple

import torch

PAUSE = 0.02  # seconds; OpenMP's threads spin for some milliseconds
LONG = 0.2  # seconds; for a run that takes longer, what went before does not matter
STEADY = 0.03  # seconds; threads that were asleep may meet on one core, until the system parts them some ticks later

# Runs a function and tells how long that took.
Seconds = Callable[[Callable[[], Any]], float]


class Timing(NamedTuple):
    """Seconds of one function."""

    median: float
    smallest: float
    largest: float
    rounds: int


class Queued(NamedTuple):
    """Seconds of a function that only tells a device what to do.

    Attributes:
        host: until it has told all.
        device: from the first that the device does to the last, when nothing keeps it waiting.
    """

    host: float
    device: float


def wall_seconds(function: Callable[[], Any]) -> float:
    """Seconds until a function returns."""
    start = perf_counter()
    function()
    return perf_counter() - start


def device_seconds(function: Callable[[], Any]) -> float:
    """Seconds until the device, idle before, has done what a function tells it, or until the function returns."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def queued_seconds(function: Callable[[], Any], idle_cycles: int = 200_000_000) -> Queued:
    """Times of a function that never waits for the device, which is kept idle for so many cycles before.

    Raises:
        RuntimeError: it does wait.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(idle_cycles)
        start.record()
        host = wall_seconds(function)
        end.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    end.synchronize()
    return Queued(host, start.elapsed_time(end) / 1e3)


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 9,
    warmups: int = 2,
    budget: float = 15.0,
    seconds: Seconds = wall_seconds,
) -> dict[str, Timing]:
    """Median times of functions that take turns in every round, so that a slow minute of the machine meets all.

    A library's threads spin for a while after its work is done, and its data fill the cache. So a turn begins with a
    pause, in which the threads of the one before go to sleep, and with runs that do not count until the function is in
    the steady state of a program that uses one library. The order within a round changes (from a fixed seed).

    Args:
        functions: by name.
        rounds: how many rounds count; fewer, but at least 3, where they would take longer than the budget.
        warmups: rounds before that.
        budget: seconds for the rounds that count, the runs that do not and the pauses not included.
        seconds: runs a function and tells how long it took.
    """
    order, shuffle = list(functions), random.Random(0).shuffle
    found: dict[str, list[float]] = {name: [] for name in order}
    # The last of the warm-ups tells how long a round takes.
    for _ in range(warmups):
        round_seconds = sum(seconds(functions[name]) for name in order)
    if warmups:
        rounds = max(min(rounds, 3), min(rounds, int(budget / round_seconds)))
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            sleep(PAUSE)
            spent = latest = 0.0
            while spent < STEADY:
                latest = seconds(functions[name])
                spent += latest
            found[name].append(latest if latest > LONG else seconds(functions[name]))
    return {name: Timing(statistics.median(s), min(s), max(s), len(s)) for name, s in found.items()}
