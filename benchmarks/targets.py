"""What the library aims at, and whether a run reached it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.problem import Shape
from benchmarks.timing import Timing

HMMLEARN = ("hmmlearn log", "hmmlearn scaled")


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
    def over_floor(self) -> float:
        """Our time as a multiple of the floor."""
        return (self.seconds("pyrohmm") or math.nan) / self.floor


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


def _mean(ratios: Iterable[float | None]) -> float | None:
    logs = [math.log(ratio) for ratio in ratios if ratio]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _least(ratios: Iterable[float | None]) -> float | None:
    return min((ratio for ratio in ratios if ratio), default=None)


def _most(values: Iterable[float]) -> float | None:
    return max(values, default=None)
