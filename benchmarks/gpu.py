"""The GPU benchmark: ours and other ways, in turns, in one process, on inputs that are not in the cache."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch

from benchmarks import device, ours, report
from benchmarks.device import Ceilings, Gpu
from benchmarks.measure import Effort, Failure, measure, say
from benchmarks.peers import GPU, peers
from benchmarks.problem import OPERATIONS, DisagreementError, Job, Prepare, Shape, random_problem, rotating
from benchmarks.svi import Size, prepare_steps, prepare_unread_steps
from benchmarks.table import markdown, number
from benchmarks.targets import HUGE, LONG, MANY, PITCH, STREAM, WIDE, Cell, gpu_targets
from benchmarks.timing import Queued, Timing


class Settings(NamedTuple):
    """How much is measured."""

    cells: Sequence[tuple[Shape, Sequence[str]]] = (
        (MANY, ("log_partition", "gradient", "viterbi")),
        (WIDE, ("log_partition", "gradient", "viterbi")),
        (STREAM, ("log_partition", "gradient", "viterbi")),
        (LONG, ("log_partition", "gradient", "viterbi")),
        (HUGE, ("log_partition", "gradient")),
        (PITCH, ("viterbi",)),
    )
    effort: Effort = Effort(rounds=15, budget=5.0)
    svi_size: Size = Size()


QUICK = Settings(
    cells=((MANY, ("gradient",)), (STREAM, ("log_partition",)), (PITCH, ("viterbi",))),
    effort=Effort(rounds=3, warmups=1, budget=1.0, longest=0.5),
)


class Report(NamedTuple):
    """Everything that one run measured."""

    date: str
    machine: dict[str, str]
    ceilings: Ceilings
    missing: list[str]  # libraries that are not installed
    cells: list[Cell]
    steps: dict[str, Timing | None]
    queued: dict[str, Queued]
    failures: list[Failure]

    @property
    def name(self) -> str:
        """Of the files: date, kind, device."""
        return f"{self.date}-gpu-{report.in_file_name(self.machine['GPU'])}"

    @property
    def ok(self) -> bool:
        """Whether ours ran everywhere, and nobody disagreed."""
        ran = all(cell.timings["pyrohmm"] for cell in self.cells)
        return ran and not any(failure.error == DisagreementError.__name__ for failure in self.failures)

    def as_json(self) -> dict:
        """Plain numbers and texts."""
        return {
            "date": self.date,
            "machine": self.machine,
            "ceilings": self.ceilings._asdict(),
            "cells": report.plain_cells(self.cells),
            "svi_step": report.plain_timings(self.steps),
            "svi_step_queued": {name: queued._asdict() for name, queued in self.queued.items()},
            "targets": report.plain_targets(self._targets()),
            "left_out": [failure._asdict() for failure in self.failures],
        }

    def as_markdown(self) -> str:
        """The tables."""
        flops, tf32, copied, instructions = self.ceilings
        parts = [
            f"# GPU, {self.date}",
            report.listed(self.machine),
            f"Ceilings in this run: {flops / 1e12:.1f} TFLOP/s matrix product in float32 with TF32 off, "
            f"{tf32 / 1e12:.1f} TFLOP/s with TF32, {copied / 1e9:.0f} GB/s copy (read and write counted). Computed "
            f"from lanes and clock: {instructions / 1e12:.1f} T instructions/s in float32.",
            "Milliseconds, medians; what the operations are, who computes how, and the floors: `benchmarks/README.md`.",
        ]
        ratios = {
            "fastest other / ours": [column for column in GPU if column != "bare products"],
            "bare products / ours": ("bare products",),
        }
        parts += report.operation_tables(self.cells, OPERATIONS, self.missing, ratios)
        parts += self._decoded()
        parts += ["## One SVI step", self._step_table(), "## Targets", report.targets_table(self._targets())]
        if self.failures:
            rows = [[f.what, f.job, f.error, f.text.replace("|", "/")] for f in self.failures]
            parts += ["## Left out", markdown(["", "", "", ""], rows, left=4)]
        return "\n\n".join(parts) + "\n"

    def _targets(self):
        return gpu_targets(self.cells, self.ceilings)

    def _decoded(self) -> list[str]:
        cells = [cell for cell in self.cells if cell.operation == "viterbi" and cell.seconds("pyrohmm")]
        if not cells:
            return []
        rates = (
            f"{cell.shape.batch * cell.shape.num_steps / cell.seconds('pyrohmm') / 1e6:.3g} M at {cell.shape}"
            for cell in cells
        )
        return [f"Steps that ours decodes a second, B T / seconds: {'; '.join(rates)}."]

    def _step_table(self) -> str:
        loop = self.steps.get("pyrohmm loop")
        rows = []
        for name, timing in self.steps.items():
            queued = self.queued.get(name)
            over = number(timing and loop and timing.median / loop.median)
            apart = [number(1e3 * seconds) for seconds in queued] if queued else ["-", "-"]
            rows.append([name, report.milliseconds(name, timing, self.missing), over, *apart])
        return markdown(["", "ms", "/ pyrohmm loop", "host alone, ms", "device alone, ms"], rows)


def run(settings: Settings, gpu: Gpu | None = None, libraries: Mapping[str, Prepare | None] | None = None) -> Report:
    """Measure everything.

    Args:
        settings: how much.
        gpu: where, and how to time it. Default: torch's.
        libraries: other libraries by column; None as a value says that one is not installed. Default: all.

    Raises:
        SystemExit: there is no GPU.
    """
    gpu = device.find() if gpu is None else gpu
    # JAX would take most of the memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    failures: list[Failure] = []
    if libraries is None:
        libraries = {}
        for column in GPU:
            libraries |= _attempt(partial(peers, [column]), "import", column, failures) or {}
    say("ceilings")
    ceilings = device.measure_ceilings(gpu)
    cells = []
    # Validation waits for the device at each call.
    with pyro.validation_enabled(False):
        for shape, operations in settings.cells:
            for operation in operations:
                say(f"{operation} ({shape})")
                cells.append(measure_cell(operation, shape, libraries, ceilings, gpu, settings.effort, failures))
                _forget(gpu)
        say("SVI step")
        steps, queued = measure_steps(settings, gpu, failures)
    missing = [name for name, there in libraries.items() if there is None]
    return Report(date.today().isoformat(), gpu.facts, ceilings, missing, cells, steps, queued, failures)


def measure_cell(
    operation: str,
    shape: Shape,
    libraries: Mapping[str, Prepare | None],
    ceilings: Ceilings,
    gpu: Gpu,
    effort: Effort,
    failures: list[Failure],
) -> Cell:
    """Times of one operation on one shape, after a check that all agree."""
    what = f"{operation} ({shape})"
    pool = [random_problem(shape, seed, gpu.device) for seed in range(_pool_size(shape, gpu.cache))]
    prepares: dict[str, Prepare | None] = {"pyrohmm": partial(ours.prepare, impl="gpu"), **libraries}

    def prepare(column: str) -> Job | None:
        make = prepares[column]
        jobs = [make(operation, problem) for problem in pool] if make else [None]
        return None if None in jobs else rotating(jobs)

    jobs = {column: _attempt(partial(prepare, column), what, column, failures) for column in prepares}
    timings = measure(jobs, what, effort, seconds=gpu.seconds, failures=failures)
    return Cell(operation, shape, timings, device.floor(operation, shape, ceilings))


def measure_steps(
    settings: Settings, gpu: Gpu, failures: list[Failure]
) -> tuple[dict[str, Timing | None], dict[str, Queued]]:
    """Times of one SVI step in each way, and those of the host and of the device alone."""
    size, effort = settings.svi_size, settings.effort
    with pyro.get_param_store().scope():
        ways = _attempt(partial(prepare_steps, size, gpu.device), "SVI step", "all", failures) or {}
        steps = measure(ways, "SVI step", effort, seconds=gpu.seconds, failures=failures)
    queued = {}
    with pyro.get_param_store().scope():
        what = "SVI step, queued"
        ways = _attempt(partial(prepare_unread_steps, size, gpu.device), what, "all", failures) or {}
        for name, step in ways.items():
            found = _attempt(partial(_queued, step, gpu, effort), what, name, failures)
            if found:
                queued[name] = found
    return steps, queued


def _queued(step: Callable[[], Any], gpu: Gpu, effort: Effort) -> Queued:
    for _ in range(effort.warmups + 1):
        step()
    return Queued(*map(statistics.median, zip(*(gpu.queued(step) for _ in range(effort.rounds)), strict=True)))


def _pool_size(shape: Shape, cache: int) -> int:
    """So many problems that one has left the cache when its turn comes again."""
    size = 4 * (shape.edges if shape.time_varying else shape.edges // shape.num_states)
    return max(2, min(8, -(-4 * cache // size)))


def _attempt(function: Callable[[], Any], what: str, name: str, failures: list[Failure]) -> Any:
    """The function's result; None if it fails."""
    try:
        return function()
    except Exception as error:
        failures.append(Failure.of(what, name, error))
        return None


def _forget(gpu: Gpu) -> None:
    """Give memory back that torch keeps for itself."""
    if gpu.device.type == "cuda":
        torch.cuda.empty_cache()
