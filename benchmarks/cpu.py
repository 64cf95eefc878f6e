"""The CPU benchmark: ours and the other libraries, in turns, in one process."""

from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import NamedTuple

import pyro

from benchmarks import fresh, machine, ours, report
from benchmarks.machine import Ceilings
from benchmarks.measure import Effort, measure, say
from benchmarks.peers import peers
from benchmarks.problem import OPERATIONS, Job, Prepare, Shape, random_problem
from benchmarks.svi import Size, prepare_steps
from benchmarks.table import markdown, number
from benchmarks.targets import HMMLEARN, Cell, targets
from benchmarks.timing import Timing

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
    effort: Effort = Effort()
    repeats: int = 5  # of new processes
    svi_size: Size = Size()


QUICK = Settings(
    shapes=[SHAPES[index] for index in (1, 4, 7)],
    effort=Effort(rounds=3, warmups=1, budget=1.0, longest=0.5),
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
        return f"{self.date}-cpu-{report.in_file_name(self.machine['CPU'])}"

    @property
    def ok(self) -> bool:
        """A run that fails has no report."""
        return True

    def as_json(self) -> dict:
        """Plain numbers and texts."""
        return {
            "date": self.date,
            "machine": self.machine,
            "ceilings": self.ceilings._asdict(),
            "cells": report.plain_cells(self.cells),
            "svi_step": report.plain_timings(self.steps),
            "processes": self.processes,
            "targets": report.plain_targets(self._targets()),
        }

    def as_markdown(self) -> str:
        """The tables."""
        flops, copied, exps = self.ceilings
        parts = [
            f"# CPU, {self.date}",
            report.listed(self.machine),
            f"Ceilings in this run: {flops / 1e9:.0f} GFLOP/s matrix product, {copied / 1e9:.1f} GB/s copy (read and "
            f"write counted), {exps / 1e9:.2f} G exp/s; all float32.",
            "Milliseconds, medians; what the operations are, who computes how, and the floors: `benchmarks/README.md`.",
        ]
        ratios = {"dynamax / ours": ("dynamax",), "hmmlearn / ours": HMMLEARN}
        parts += report.operation_tables(self.cells, OPERATIONS, self.missing, ratios)
        parts += ["## One SVI step", self._step_table(), "## Targets", report.targets_table(self._targets())]
        return "\n\n".join(parts) + "\n"

    def _targets(self):
        return targets(self.cells, self.steps, self.processes)

    def _step_table(self) -> str:
        loop = self.steps["pyrohmm loop"]
        rows = [
            [
                name,
                report.milliseconds(name, timing, self.missing),
                number(timing and loop and timing.median / loop.median),
            ]
            for name, timing in self.steps.items()
        ]
        return markdown(["", "ms", "/ pyrohmm loop"], rows)


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
    say("ceilings")
    ceilings = machine.measure_ceilings()
    cells = []
    for shape in settings.shapes:
        for operation in OPERATIONS:
            say(f"{operation} ({shape})")
            cells.append(measure_cell(operation, shape, libraries, ceilings, settings, impl))
    say("SVI step")
    ways = prepare_steps(settings.svi_size)
    steps = measure_steps(ways, settings)
    processes = {}
    for name in fresh.MEASUREMENTS:
        say(name)
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
    timings = measure(jobs, f"{operation} ({shape})", settings.effort)
    return Cell(operation, shape, timings, machine.floor(operation, shape, ceilings))


def measure_steps(ways: Mapping[str, Job | None], settings: Settings) -> dict[str, Timing | None]:
    """Times of one SVI step in each way, after a check that all give the same loss."""
    with pyro.get_param_store().scope():
        return measure(ways, "SVI step", settings.effort)
