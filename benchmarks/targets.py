"""What the library aims at, and whether a run reached it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks import device
from benchmarks.machine import product_flops
from benchmarks.problem import Shape
from benchmarks.timing import Timing

HMMLEARN = ("hmmlearn log", "hmmlearn scaled")
EM_OURS = ("pyrohmm float32", "pyrohmm float64")

# What the GPU's targets are about.
MANY = Shape(16, 4096, 1000)
WIDE = Shape(64, 1024, 512)
STREAM = Shape(32, 256, 512, time_varying=True)
LONG = Shape(8, 1, 1_000_000)
HUGE = Shape(4096, 64, 256)
PITCH = Shape(1440, 512, 100)


class Cell(NamedTuple):
    """Times of one operation on one shape by column; None where a library is not installed or leaves it out."""

    operation: str
    shape: Shape
    timings: dict[str, Timing | None]
    floor: float

    def seconds(self, *columns: str) -> float | None:
        """The median of the fastest of these columns."""
        timings = [self.timings.get(column) for column in columns]
        return min((timing.median for timing in timings if timing), default=None)

    def ratio(self, *columns: str) -> float | None:
        """How many times faster ours is than the fastest of these columns."""
        theirs, ours = self.seconds(*columns), self.seconds("pyrohmm")
        return theirs / ours if theirs and ours else None

    @property
    def over_floor(self) -> float | None:
        """Our time as a multiple of the floor."""
        ours = self.seconds("pyrohmm")
        return ours and ours / self.floor


class Fitted(NamedTuple):
    """What was measured of expectation maximisation on one task.

    Attributes:
        task: in words.
        timings: of the whole fit, by column; None where a library is not installed or leaves it out.
        gaps: the largest relative difference of log-likelihoods, of all iterations, to ours in float64, by column.
        peak_bytes: most memory of ours in float32 beyond the data; None where it was not measured.
        pair_bytes: of a number in float32 for each pair of states of each step of each sequence.
    """

    task: str
    timings: dict[str, Timing | None]
    gaps: dict[str, float]
    peak_bytes: float | None
    pair_bytes: float

    def ratio(self, peer: str, ours: str) -> float | None:
        """How many times faster ours is."""
        theirs, mine = self.timings.get(peer), self.timings.get(ours)
        return theirs.median / mine.median if theirs and mine else None

    @property
    def peak_over_pairs(self) -> float | None:
        """Our memory as a multiple of a number for each pair of states at each step."""
        return None if self.peak_bytes is None else self.peak_bytes / self.pair_bytes


class Target(NamedTuple):
    """A figure and its goal; at least or at most."""

    what: str
    measured: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words."""
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"

    @property
    def verdict(self) -> str:
        """Reached or not, where it was measured."""
        if self.measured is None:
            return "not measured"
        reached = (self.at_least is None or self.measured >= self.at_least) and (
            self.at_most is None or self.measured <= self.at_most
        )
        return "reached" if reached else "**not reached**"


def targets(cells: Sequence[Cell], steps: Mapping[str, Timing | None], processes: Mapping[str, float]) -> list[Target]:
    """Every target with what this run measured."""
    found = []
    for operation, goal in (("log_partition", 2), ("gradient", 3), ("smooth", 3)):
        ratios = [cell.ratio("dynamax") for cell in cells if cell.operation == operation]
        found.append(Target(f"{operation}: dynamax / ours, geometric mean", _mean(ratios), at_least=goal))
    found.append(Target("dynamax / ours, smallest", _least(c.ratio("dynamax") for c in cells), at_least=1))
    for least, goal in ((1, 1.5), (128, 20)):
        what = "viterbi: dynamax / ours, smallest" + (f", K >= {least}" if least > 1 else "")
        viterbi = [c for c in cells if c.operation == "viterbi" and c.shape.num_states >= least]
        found.append(Target(what, _least(c.ratio("dynamax") for c in viterbi), at_least=goal))
    many = [c for c in cells if c.shape.batch > 1]
    found.append(Target("hmmlearn / ours, smallest, B > 1", _least(c.ratio(*HMMLEARN) for c in many), at_least=5))
    found.append(Target("hmmlearn / ours, smallest", _least(c.ratio(*HMMLEARN) for c in cells), at_least=1))
    for ours in ("pyrohmm loop", "pyrohmm models.HMM"):
        for peer, goal in (("TraceEnum_ELBO", 30), ("DiscreteHMM", 10)):
            mine, theirs = steps.get(ours), steps.get(peer)
            ratio = theirs.median / mine.median if mine and theirs else None
            found.append(Target(f"SVI step: {peer} / {ours}", ratio, at_least=goal))
    forward = [c for c in cells if c.operation == "log_partition"]
    large = [c.over_floor for c in forward if c.shape.num_states >= 32 and not c.shape.time_varying]
    found.append(Target("log_partition: ours / arithmetic floor, largest, K >= 32", _most(large), at_most=3))
    for operation in ("log_partition", "gradient"):
        streams = [c.over_floor for c in cells if c.operation == operation and c.shape.time_varying]
        what = f"{operation}, matrix per step: ours / bandwidth floor, largest"
        found.append(Target(what, _most(streams), at_most=4))
    megabytes = processes["peak memory"] / 1e6 if "peak memory" in processes else None
    found.append(Target("peak memory over the inputs at (4, 1, 1000000), MB", megabytes, at_most=200))
    found.append(Target("import after pyro, seconds", processes.get("import"), at_most=0.7))
    found.append(Target("first call in a second process, seconds", processes.get("first call"), at_most=0.5))
    return found


def gpu_targets(cells: Sequence[Cell], ceilings: device.Ceilings) -> list[Target]:
    """Every target of the GPU with what this run measured."""
    by_name = {(cell.operation, cell.shape): cell for cell in cells}

    def seconds(operation: str, shape: Shape) -> float | None:
        cell = by_name.get((operation, shape))
        return cell and cell.seconds("pyrohmm")

    def share(work: float, rate: float, operation: str, shape: Shape) -> float | None:
        ours = seconds(operation, shape)
        return ours and work / rate / ours

    def ratio(operation: str, shape: Shape, column: str) -> float | None:
        cell = by_name.get((operation, shape))
        return cell and cell.ratio(column)

    def of_memory(operation: str, shape: Shape) -> float | None:
        return share(device.memory_floor(operation, shape, ceilings), 1.0, operation, shape)

    def inverse(value: float | None) -> float | None:
        return value and 1 / value

    products, ours = product_flops("log_partition", WIDE), seconds("gradient", LONG)
    found = [
        Target(f"gradient ({MANY}): ours / memory floor", inverse(of_memory("gradient", MANY)), at_most=6),
        Target(f"gradient ({MANY}): DiscreteHMM / ours", ratio("gradient", MANY, "DiscreteHMM"), at_least=50),
        Target(
            f"log_partition ({WIDE}): share of the rate of float32 products",
            share(products, ceilings.flops, "log_partition", WIDE),
            at_least=0.3,
        ),
        Target(f"log_partition ({STREAM}): share of the copy", of_memory("log_partition", STREAM), at_least=0.6),
        Target(f"gradient ({STREAM}): share of the copy", of_memory("gradient", STREAM), at_least=0.5),
        Target(f"gradient ({LONG}): ms", ours and 1e3 * ours, at_most=2),
    ]
    for operation in ("log_partition", "gradient"):
        over = inverse(ratio(operation, HUGE, "bare products"))
        found.append(Target(f"{operation} ({HUGE}): ours / bare products", over, at_most=2))
    pitch = share(device.instructions(PITCH), ceilings.instructions, "viterbi", PITCH)
    found.append(Target(f"viterbi ({PITCH}): share of the instructions", pitch, at_least=0.25))
    return found


def em_targets(fits: Sequence[Fitted]) -> list[Target]:
    """Every target of expectation maximisation with what this run measured."""
    found = []
    for fit in fits:
        for peer in ("hmmlearn fit scaling", "dynamax fit_em", "dynamax fit_em, compiled before"):
            for ours in EM_OURS:
                found.append(Target(f"{fit.task}: {peer} / {ours}", fit.ratio(peer, ours), at_least=10))
        gaps = [fit.gaps[name] for name in fit.gaps if name.startswith("hmmlearn")]
        what = f"{fit.task}: log-likelihoods, pyrohmm float64 and hmmlearn, largest relative difference"
        found.append(Target(what, max(gaps, default=None), at_most=1e-6))
        what = f"{fit.task}: peak memory / a number for each pair of states at each step"
        found.append(Target(what, fit.peak_over_pairs, at_most=1))
    return found


def _mean(ratios: Iterable[float | None]) -> float | None:
    logs = [math.log(ratio) for ratio in ratios if ratio]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _least(ratios: Iterable[float | None]) -> float | None:
    return min((ratio for ratio in ratios if ratio), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value), default=None)
