"""The CPU benchmark: ours and the other libraries, in turns, in one process."""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import NamedTuple

import pyro

from benchmarks import fresh, machine, ours
from benchmarks.machine import Ceilings
from benchmarks.peers import peers
from benchmarks.problem import OPERATIONS, Job, Prepare, Shape, check_agreement, random_problem
from benchmarks.svi import Size, prepare_steps
from benchmarks.table import markdown, number
from benchmarks.targets import HMMLEARN, Cell, targets
from benchmarks.timing import Timing, interleaved

SHAPES = (
    Shape(4, 1, 100_000),
    Shape(8, 256, 500),
    Shape(16, 229, 129),
    Shape(32, 64, 500),
    Shape(128, 16, 500),
    Shape(512, 8, 200),
    Shape(2048, 4, 50),
    Shape(8, 64, 200, time_varying=True),
    Shape(32, 16, 200, time_varying=True),
)


class Settings(NamedTuple):
    """How much is measured."""

    shapes: Sequence[Shape] = SHAPES
    rounds: int = 9
    warmups: int = 2
    budget: float = 15.0  # seconds for the rounds of one cell
    longest: float = 5.0  # other libraries are left out where they are expected to take more seconds
    repeats: int = 5  # of new processes
    svi_size: Size = Size()


QUICK = Settings(
    shapes=[SHAPES[index] for index in (1, 4, 7)],
    rounds=3,
    warmups=1,
    budget=1.0,
    longest=0.5,
    repeats=1,
    svi_size=Size(batch=57),
)


class Report(NamedTuple):
    """Everything that one run measured."""

    date: str
    machine: dict[str, str]
    ceilings: Ceilings
    missing: list[str]  # libraries that are not installed
    cells: list[Cell]
    steps: dict[str, Timing | None]
    processes: dict[str, float]

    @property
    def name(self) -> str:
        """Of the files: date, kind, processor."""
        return f"{self.date}-cpu-{re.sub('[^a-z0-9]+', '-', self.machine['CPU'].lower()).strip('-')}"

    def as_json(self) -> dict:
        """Plain numbers and texts."""
        return {
            "date": self.date,
            "machine": self.machine,
            "ceilings": self.ceilings._asdict(),
            "cells": [
                {**cell._asdict(), "shape": cell.shape._asdict(), "timings": _plain(cell.timings)}
                for cell in self.cells
            ],
            "svi_step": _plain(self.steps),
            "processes": self.processes,
            "targets": [
                {"what": t.what, "goal": t.goal, "measured": t.measured, "verdict": t.verdict} for t in self._targets()
            ],
        }

    def as_markdown(self) -> str:
        """The tables."""
        flops, copied, exps = self.ceilings
        parts = [
            f"# CPU, {self.date}",
            ", ".join(f"{key}: {value}" for key, value in self.machine.items()) + ".",
            f"Ceilings in this run: {flops / 1e9:.0f} GFLOP/s matrix product, {copied / 1e9:.1f} GB/s copy (read and "
            f"write counted), {exps / 1e9:.2f} G exp/s; all float32.",
            "Milliseconds, medians; what the operations are, who computes how, and the floors: `benchmarks/README.md`.",
        ]
        for operation, what in OPERATIONS.items():
            parts += [f"## {operation}: {what}", self._operation_table(operation)]
        parts += ["## One SVI step", self._step_table()]
        rows = [[t.what, t.goal, number(t.measured), t.verdict] for t in self._targets()]
        parts += ["## Targets", markdown(["", "goal", "measured", ""], rows)]
        return "\n\n".join(parts) + "\n"

    def _targets(self):
        return targets(self.cells, self.steps, self.processes)

    def _operation_table(self, operation: str) -> str:
        cells = [cell for cell in self.cells if cell.operation == operation]
        columns = [c for c in cells[0].timings if c in self.missing or any(cell.timings[c] for cell in cells)]
        header = ["K, B, T", *columns]
        header += ["dynamax / ours", "hmmlearn / ours", "floor", "ours / floor"]
        rows = [
            [
                str(cell.shape),
                *(self._milliseconds(column, cell.timings[column]) for column in columns),
                number(cell.ratio("dynamax")),
                number(cell.ratio(*HMMLEARN)),
                number(1e3 * cell.floor),
                number(cell.over_floor),
            ]
            for cell in cells
        ]
        return markdown(header, rows)

    def _step_table(self) -> str:
        loop = self.steps["pyrohmm loop"]
        rows = [
            [name, self._milliseconds(name, timing), number(timing and loop and timing.median / loop.median)]
            for name, timing in self.steps.items()
        ]
        return markdown(["", "ms", "/ pyrohmm loop"], rows)

    def _milliseconds(self, name: str, timing: Timing | None) -> str:
        return "not installed" if name in self.missing else number(timing and 1e3 * timing.median)


def run(settings: Settings, impl: str = "auto", libraries: Mapping[str, Prepare | None] | None = None) -> Report:
    """Measure everything.

    Args:
        settings: how much.
        impl: our implementation.
        libraries: other libraries by column; None as a value says that one is not installed. Default: all.

    Raises:
        DisagreementError: a library's answer differs from ours.
    """
    libraries = peers() if libraries is None else libraries
    _say("ceilings")
    ceilings = machine.measure_ceilings()
    cells = []
    for shape in settings.shapes:
        for operation in OPERATIONS:
            _say(f"{operation} ({shape})")
            cells.append(measure_cell(operation, shape, libraries, ceilings, settings, impl))
    _say("SVI step")
    ways = prepare_steps(settings.svi_size)
    steps = measure_steps(ways, settings)
    processes = {}
    for name in fresh.MEASUREMENTS:
        _say(name)
        processes[name] = fresh.measure(name, settings.repeats)
    missing = [name for name, there in {**libraries, **ways}.items() if there is None]
    return Report(date.today().isoformat(), machine.describe(), ceilings, missing, cells, steps, processes)


def measure_cell(
    operation: str,
    shape: Shape,
    libraries: Mapping[str, Prepare | None],
    ceilings: Ceilings,
    settings: Settings,
    impl: str = "auto",
) -> Cell:
    """Times of one operation on one shape, after a check that all agree."""
    problem = random_problem(shape)
    prepares: dict[str, Prepare | None] = {"pyrohmm": partial(ours.prepare, impl=impl), **libraries}
    jobs = {column: prepare and prepare(operation, problem) for column, prepare in prepares.items()}
    timings = _measure(jobs, f"{operation} ({shape})", settings)
    return Cell(operation, shape, timings, machine.floor(operation, shape, ceilings))


def measure_steps(ways: Mapping[str, Job | None], settings: Settings) -> dict[str, Timing | None]:
    """Times of one SVI step in each way, after a check that all give the same loss."""
    with pyro.get_param_store().scope():
        return _measure(ways, "SVI step", settings)


def _measure(jobs: Mapping[str, Job | None], what: str, settings: Settings) -> dict[str, Timing | None]:
    """Check the jobs against the first one, then time them; None for what is not there or would take too long."""
    there = {name: job for name, job in jobs.items() if job and job.seconds <= settings.longest}
    results = {name: job.read(job.run()) for name, job in there.items()}
    first, *others = results
    for name in others:
        check_agreement(results[first], results[name], f"{what}: {name} against {first}")
    del results
    timings = interleaved(
        {name: job.run for name, job in there.items()},
        rounds=settings.rounds,
        warmups=settings.warmups,
        budget=settings.budget,
    )
    return {name: timings.get(name) for name in jobs}


def _plain(timings: Mapping[str, Timing | None]) -> dict[str, dict | None]:
    return {name: timing and timing._asdict() for name, timing in timings.items()}


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
