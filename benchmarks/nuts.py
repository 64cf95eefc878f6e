"""The benchmark of NUTS: effective samples a second of one model, collapsed, and enumerated by Pyro."""

import time
from collections.abc import Callable
from datetime import date
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import biject_to

import pyrohmm
from benchmarks import machine, report
from benchmarks.measure import say
from benchmarks.problem import DisagreementError
from benchmarks.table import markdown, number

OURS = "pyrohmm loop"
_PLATES = 2
_SAMPLES = ("least ESS", "median ESS", "ESS / s", "ours / this")


class Task(NamedTuple):
    """K states, B sequences of T steps."""

    num_states: int
    batch: int
    num_steps: int

    def __str__(self) -> str:
        return str(tuple(self))


class Settings(NamedTuple):
    """How much is measured."""

    tasks: tuple[Task, ...] = (Task(2, 5, 20), Task(3, 5, 50))
    draws: int = 200
    warmup: int = 100


QUICK = Settings(tasks=(Task(2, 3, 10),), draws=20, warmup=20)


class Program:
    """States with normal observations, all parameters with priors; the means' differ, so that states have names.

    Args:
        task: its size.
        seed: of the data, which are drawn near the middle of the prior.
    """

    def __init__(self, task: Task, seed: int = 0):
        self.num_states = task.num_states
        K, generator = task.num_states, torch.Generator().manual_seed(seed)
        self.middle = 3.0 * torch.arange(K, dtype=torch.float64)
        rows = torch.full((K, K), 0.1 / max(K - 1, 1), dtype=torch.float64).fill_diagonal_(0.9 if K > 1 else 1.0)
        states = [torch.randint(K, (task.batch,), generator=generator)]
        for _ in range(task.num_steps - 1):
            states.append(torch.multinomial(rows[states[-1]], 1, generator=generator).squeeze(-1))
        z = torch.stack(states, -1)
        self.x = self.middle[z] + torch.randn(z.shape, generator=generator, dtype=torch.float64)
        self.ones = torch.ones(K, K, dtype=torch.float64)
        # Where all begin.
        self.start = {
            "initial": self.ones[0] / K,
            "transition": 0.5 * rows + 0.5 / K,
            "loc": self.middle.clone(),
            "scale": self.ones[0].clone(),
        }

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sites that are sampled."""
        initial = pyro.sample("initial", dist.Dirichlet(self.ones[0]))
        transition = pyro.sample("transition", dist.Dirichlet(self.ones).to_event(1))
        loc = pyro.sample("loc", dist.Normal(self.middle, 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0 * self.ones[0], 0.5).to_event(1))
        return initial, transition, loc, scale

    def loop(self, x: Tensor) -> None:
        """The states summed out by one recursion."""
        initial, transition, loc, scale = self.parameters()
        with pyro.plate("sequences", x.shape[0], dim=-2):
            z = None
            for t in pyrohmm.markov("time", x.shape[1], dim=-1):
                z = pyro.sample("z", dist.Categorical(initial if z is None else transition[z]))
                pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x[:, t])

    def enumerated(self, x: Tensor) -> None:
        """The same in Pyro alone: a site for each step, enumerated."""
        initial, transition, loc, scale = self.parameters()
        with pyro.plate("sequences", x.shape[0], dim=-2):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                law = dist.Categorical(initial if z is None else transition[z])
                z = pyro.sample(f"z_{t}", law, infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(loc[z], scale[z]), obs=x[:, t, None])


class Run(NamedTuple):
    """One chain."""

    seconds: float  # of the draws
    processor_seconds: float  # of all threads meanwhile; less where others had the processor
    warmup_seconds: float
    gradients: int | None  # of the draws; not counted in a compiled program
    least: float  # effective samples, of the parameter that has the fewest
    median: float

    @property
    def rate(self) -> float:
        """Effective samples a second, of the parameter that has the fewest."""
        return self.least / self.seconds


class Row(NamedTuple):
    """All ways to run one task."""

    task: str
    runs: dict[str, Run]


class Report(NamedTuple):
    """Everything that one run measured."""

    date: str
    machine: dict[str, str]
    settings: Settings
    rows: list[Row]

    @property
    def name(self) -> str:
        """Of the files: date, kind, processor."""
        return f"{self.date}-nuts-{report.in_file_name(self.machine['CPU'])}"

    @property
    def ok(self) -> bool:
        """A run that fails has no report."""
        return True

    def as_json(self) -> dict:
        """Plain numbers and texts."""
        return {
            "date": self.date,
            "machine": self.machine,
            "draws": self.settings.draws,
            "warmup": self.settings.warmup,
            "rows": [{"task": r.task, "runs": {k: run._asdict() for k, run in r.runs.items()}} for r in self.rows],
        }

    def as_markdown(self) -> str:
        """The tables."""
        table = markdown(
            ["K, B, T", "", *("s", "processor s", "gradients", "ms a gradient"), *_SAMPLES],
            [self._line(row, name, run) for row in self.rows for name, run in row.runs.items()],
            left=2,
        )
        parts = [
            f"# NUTS, {self.date}",
            report.listed(self.machine),
            f"One chain, {self.settings.warmup} steps of warm-up and {self.settings.draws} draws, which are timed, "
            "float64. ESS: effective samples; their rate is that of the parameter with the fewest. Who computes how: "
            "`benchmarks/README.md`.",
            "## Effective samples a second",
            table,
        ]
        return "\n\n".join(parts) + "\n"

    def _line(self, row: Row, name: str, run: Run) -> list[str]:
        each = run.gradients and 1e3 * run.seconds / run.gradients
        count = "-" if run.gradients is None else str(run.gradients)
        ratio = number(row.runs[OURS].rate / run.rate)
        return [
            row.task,
            name,
            *(number(run.seconds), number(run.processor_seconds), count, number(each)),
            *(number(run.least), number(run.median), number(run.rate), ratio),
        ]


def run(settings: Settings) -> Report:
    """Measure everything.

    Raises:
        DisagreementError: the programs have different densities.
    """
    rows = []
    for task in settings.tasks:
        program = Program(task)
        with torch.random.fork_rng():
            check_densities(program)
        runs = {}
        for name, function, compiled in (
            (OURS, program.loop, False),
            ("enumerated by Pyro", program.enumerated, False),
            ("enumerated by Pyro, jit_compile", program.enumerated, True),
        ):
            say(f"{task} {name}")
            runs[name] = sample(program, function, settings.draws, settings.warmup, compiled=compiled)
        rows.append(Row(str(task), runs))
    return Report(date.today().isoformat(), machine.describe(), settings, rows)


def check_densities(program: Program, points: int = 3) -> None:
    """The programs are the same model: their potential energies are equal, up to one constant.

    Raises:
        DisagreementError: they are not.
    """
    energies = []
    for function in (program.loop, program.enumerated):
        start, energy, *_ = initialize_model(
            function, (program.x,), max_plate_nesting=_PLATES, initial_params=_unconstrained(program)
        )
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(points):
            noise = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in sorted(start.items())}
            found.append(energy({k: v + 0.3 * noise[k] for k, v in start.items()}).item())
        energies.append(torch.tensor(found))
    ours, other = energies
    if not torch.allclose(ours, other, rtol=1e-5):
        raise DisagreementError(f"the programs' energies differ: {ours.tolist()}, {other.tolist()}")


def sample(
    program: Program, function: Callable[[Tensor], None], draws: int, warmup: int, *, compiled: bool = False
) -> Run:
    """One chain from the middle of the prior, always with the same random numbers."""
    marks: list[tuple[float, float]] = []
    gradients = [0, 0]

    def hook(kernel: Any, params: Any, stage: str, i: int) -> None:
        if stage == "Warmup" and i == warmup - 1:
            marks.append(_clocks())
            gradients[0] = gradients[1]

    def counted(x: Tensor) -> None:
        gradients[1] += 1
        function(x)

    kernel = NUTS(counted, max_plate_nesting=_PLATES, jit_compile=compiled, ignore_jit_warnings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mcmc = MCMC(kernel, draws, warmup, initial_params=_unconstrained(program), hook_fn=hook, disable_progbar=True)
        marks.append(_clocks())
        mcmc.run(program.x)
        marks.append(_clocks())
    (began, _), (warm, warm_processor), (ended, ended_processor) = marks
    sizes = torch.cat([effective_sample_size(value.unsqueeze(0)).flatten() for value in mcmc.get_samples().values()])
    return Run(
        seconds=ended - warm,
        processor_seconds=ended_processor - warm_processor,
        warmup_seconds=warm - began,
        gradients=None if compiled else gradients[1] - gradients[0],
        least=sizes.min().item(),
        median=sizes.median().item(),
    )


def _clocks() -> tuple[float, float]:
    """Seconds on the wall, and of the processor."""
    return time.perf_counter(), time.process_time()


def _unconstrained(program: Program) -> dict[str, Tensor]:
    """The start as NUTS takes it."""
    simplex, positive = dist.constraints.simplex, dist.constraints.positive
    kinds = {"initial": simplex, "transition": simplex, "loc": dist.constraints.real, "scale": positive}
    return {name: biject_to(kinds[name]).inv(value) for name, value in program.start.items()}
