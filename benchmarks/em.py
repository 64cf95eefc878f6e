"""The benchmark of expectation maximisation: ours and the other libraries, in turns, in one process."""

import sys
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import fit, fresh, machine, report
from benchmarks.fit import PrepareFit, Task, random_start
from benchmarks.measure import Effort, measure, say
from benchmarks.peers import EM, peers
from benchmarks.problem import Job
from benchmarks.table import markdown, number
from benchmarks.targets import EM_OURS, Fitted, em_targets
from benchmarks.timing import Timing

REFERENCE = "pyrohmm float64"
RESTARTS, TRIAL_STEPS = 20, 2
# Peaks of memory are read from /proc.
_CAN_MEASURE = sys.platform == "linux"


class Settings(NamedTuple):
    """How much is measured."""

    tasks: Sequence[Task] = (
        Task("diag", 8, 4, 100, 1000, 20),
        Task("full", 32, 16, 50, 500, 5),
        Task("categorical", 64, 1000, 50, 500, 5),
    )
    # What is fitted from many starts.
    restarted: Sequence[Task] = (Task("diag", 4, 2, 10, 100, 20), Task("diag", 8, 4, 100, 1000, 20))
    effort: Effort = Effort(rounds=5, warmups=1, budget=60.0, longest=20.0)
    repeats: int = 1  # of new processes


QUICK = Settings(
    tasks=(Task("diag", 8, 4, 20, 200, 20), Task("full", 8, 4, 20, 200, 10), Task("categorical", 16, 100, 20, 200, 10)),
    restarted=(Task("diag", 4, 2, 10, 100, 20),),
    effort=Effort(rounds=3, warmups=1, budget=3.0, longest=5.0),
)


class Restarts(NamedTuple):
    """Seconds of one fit, of one from many starts, and of one whose starts but the best end after a trial."""

    task: str
    one: Timing
    many: Timing
    tried: Timing

    def in_fits(self, timing: Timing) -> float:
        """How many fits it takes as long as."""
        return timing.median / self.one.median


class Report(NamedTuple):
    """Everything that one run measured."""

    date: str
    machine: dict[str, str]
    missing: list[str]  # libraries that are not installed
    fits: list[Fitted]
    restarts: list[Restarts]

    @property
    def name(self) -> str:
        """Of the files: date, kind, processor."""
        return f"{self.date}-em-{report.in_file_name(self.machine['CPU'])}"

    @property
    def ok(self) -> bool:
        """A run that fails has no report."""
        return True

    def as_json(self) -> dict:
        """Plain numbers and texts."""
        return {
            "date": self.date,
            "machine": self.machine,
            "fits": [{**fit._asdict(), "timings": report.plain_timings(fit.timings)} for fit in self.fits],
            "restarts": [
                {"task": row.task, **{name: getattr(row, name)._asdict() for name in ("one", "many", "tried")}}
                for row in self.restarts
            ],
            "targets": report.plain_targets(em_targets(self.fits)),
        }

    def as_markdown(self) -> str:
        """The tables."""
        parts = [
            f"# Expectation maximisation, {self.date}",
            report.listed(self.machine),
            "In brackets K, then D or the number of symbols, B, T. Who computes how: `benchmarks/README.md`.",
            "## Milliseconds of a fit, medians",
            self._time_table(),
            f"## Log-likelihoods of all iterations, largest relative difference to {REFERENCE}",
            self._gap_table(),
            "## Memory beyond the data, MB, float32",
            self._memory_table(),
            f"## {RESTARTS} restarts, milliseconds, float32",
            self._restart_table(),
            "## Targets",
            report.targets_table(em_targets(self.fits)),
        ]
        return "\n\n".join(parts) + "\n"

    def _time_table(self) -> str:
        columns = list(self.fits[0].timings)
        rows = [
            [f.task, *(report.milliseconds(column, f.timings[column], self.missing) for column in columns)]
            for f in self.fits
        ]
        return markdown(["", *columns], rows)

    def _gap_table(self) -> str:
        columns = [column for column in self.fits[0].timings if column != REFERENCE]
        rows = [[f.task, *(_small(f.gaps.get(column)) for column in columns)] for f in self.fits]
        return markdown(["", *columns], rows)

    def _memory_table(self) -> str:
        rows = []
        for f in self.fits:
            peak = f.peak_bytes and f.peak_bytes / 1e6
            rows.append([f.task, number(peak), number(f.pair_bytes / 1e6), number(f.peak_over_pairs)])
        return markdown(["", "pyrohmm, peak", "a number for each pair of states at each step", "ratio"], rows)

    def _restart_table(self) -> str:
        rows = [
            [
                row.task,
                *(number(1e3 * timing.median) for timing in (row.one, row.many, row.tried)),
                *(number(row.in_fits(timing)) for timing in (row.many, row.tried)),
            ]
            for row in self.restarts
        ]
        trial = f"trial_steps={TRIAL_STEPS}"
        return markdown(["", "one fit", "all to the end", trial, "all / one", f"{trial} / one"], rows)


def run(settings: Settings, libraries: Mapping[str, PrepareFit | None] | None = None) -> Report:
    """Measure everything.

    Args:
        settings: how much.
        libraries: other libraries by column; None as a value says that one is not installed. Default: all.

    Raises:
        DisagreementError: a library's log-likelihoods differ from ours.
    """
    libraries = peers(EM) if libraries is None else libraries
    fits = []
    for task in settings.tasks:
        say(str(task))
        fits.append(measure_fit(task, libraries, settings))
    restarts = []
    for task in settings.restarted:
        say(f"restarts, {task}")
        restarts.append(measure_restarts(task, settings.effort))
    missing = [name for name, there in libraries.items() if there is None]
    return Report(date.today().isoformat(), machine.describe(), missing, fits, restarts)


def measure_fit(task: Task, libraries: Mapping[str, PrepareFit | None], settings: Settings) -> Fitted:
    """Times of one fit, after a check that all have the same log-likelihood at every iteration."""
    start = random_start(task)
    ours = {f"pyrohmm {name}": partial(fit.prepare, dtype=getattr(torch, name)) for name in ("float32", "float64")}
    answers: dict[str, Tensor] = {}
    jobs = {
        column: prepare and _noting(column, prepare(start), answers)
        for column, prepare in {REFERENCE: ours[REFERENCE], **ours, **libraries}.items()
    }
    found = measure(jobs, str(task), settings.effort)
    expected = answers[REFERENCE]
    gaps = {
        column: ((value.double() - expected) / expected).abs().max().item()
        for column, value in answers.items()
        if column != REFERENCE
    }
    peak = fresh.measure(fresh.EM_PEAK, settings.repeats, task) if settings.repeats and _CAN_MEASURE else None
    pairs = 4.0 * task.batch * task.num_steps * task.num_states**2
    return Fitted(str(task), {column: found[column] for column in (*EM_OURS, *libraries)}, gaps, peak, pairs)


def measure_restarts(task: Task, effort: Effort) -> Restarts:
    """Times of our fit from one start, and from many, the choice of the starts included."""
    start = random_start(task)
    options = {"one": {}, "many": {"restarts": RESTARTS}, "tried": {"restarts": RESTARTS, "trial_steps": TRIAL_STEPS}}
    jobs = {name: fit.prepare(start, **some)._replace(read=None) for name, some in options.items()}
    return Restarts(str(task), **measure(jobs, f"restarts, {task}", effort))


def _noting(column: str, job: Job | None, answers: dict[str, Tensor]) -> Job | None:
    """The job, whose answer is kept."""
    if job is None:
        return None

    def read(result: object) -> dict[str, Tensor]:
        answer = job.read(result)
        answers[column] = answer["log_likelihood"]
        return answer

    return job._replace(read=read)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
