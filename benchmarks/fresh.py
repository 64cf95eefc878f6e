"""What is measured in a new Python process: import, first call, peak memory.

`python -m benchmarks.fresh NAME [ARGUMENT ...]` prints one number.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

_ROOT = Path(__file__).parents[1]


def import_seconds() -> float:
    """Seconds that importing pyrohmm takes after pyro was imported."""
    import pyro  # noqa: F401

    start = perf_counter()
    import pyrohmm  # noqa: F401

    return perf_counter() - start


def first_call_seconds() -> float:
    """Seconds of the first log_partition with its gradient, everything imported."""
    import pyrohmm  # noqa: F401

    run = _gradient_of(16, 8, 20)
    start = perf_counter()
    run()
    return perf_counter() - start


def peak_bytes() -> float:
    """Most memory of value and gradient at (4, 1, 1000000), beyond what was resident with the inputs made.

    A small problem is run before, so that code that is loaded once does not count.
    """
    _gradient_of(4, 1, 100)()
    return peak_bytes_of(_gradient_of(4, 1, 1_000_000))


def em_peak_bytes(*task: str) -> float:
    """The same of `pyrohmm.fit_em`, float32, with the fields of a `benchmarks.fit.Task`."""
    from benchmarks.fit import Task, prepare, random_start

    task = Task(task[0], *map(int, task[1:]))
    prepare(random_start(task._replace(batch=2, num_steps=10))).run()
    return peak_bytes_of(prepare(random_start(task)).run)


def peak_bytes_of(run: Callable[[], object]) -> float:
    """Most memory while a function runs, beyond what was resident before; on Linux."""
    # 5 sets the peak back to what is resident now. ru_maxrss would remember the parent process.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    run()
    return _status("VmHWM") - before


MEASUREMENTS: dict[str, Callable[[], float]] = {
    "import": import_seconds,
    "first call": first_call_seconds,
    "peak memory": peak_bytes,
}
# Beside `MEASUREMENTS`, which are of the whole library; it takes arguments.
EM_PEAK = "peak memory of EM"


def measure(name: str, repeats: int = 5, arguments: Iterable[object] = ()) -> float:
    """The median over new processes, after one whose result does not count: it fills the caches on disk."""
    command = [sys.executable, "-m", "benchmarks.fresh", name, *map(str, arguments)]
    results = [
        float(subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
        for _ in range(repeats + 1)
    ]
    return statistics.median(results[1:])


def _gradient_of(*sizes: int) -> Callable[[], object]:
    from benchmarks.ours import prepare
    from benchmarks.problem import Shape, random_problem

    return prepare("gradient", random_problem(Shape(*sizes))).run


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print({**MEASUREMENTS, EM_PEAK: em_peak_bytes}[name](*arguments))
