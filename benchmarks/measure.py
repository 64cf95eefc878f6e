"""Jobs that answer the same question: checked against each other, then timed in turns."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.problem import Job, check_agreement
from benchmarks.timing import Seconds, Timing, interleaved, wall_seconds


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int = 9
    warmups: int = 2
    budget: float = 15.0  # seconds for the rounds of one cell
    longest: float = 5.0  # other libraries are left out where they are expected to take more seconds


class Failure(NamedTuple):
    """A job that was left out, and why."""

    what: str
    job: str
    error: str
    text: str

    @classmethod
    def of(cls, what: str, job: str, error: Exception) -> "Failure":
        """Only words: an exception keeps alive what was in the memory of the device."""
        return cls(what, job, type(error).__name__, " ".join(str(error).split())[:300])


def measure(
    jobs: Mapping[str, Job | None],
    what: str,
    effort: Effort,
    *,
    seconds: Seconds = wall_seconds,
    failures: list[Failure] | None = None,
) -> dict[str, Timing | None]:
    """Check the jobs against the first one, then time them; None for what is not there or would take too long.

    Args:
        jobs: by name.
        what: they are about, for messages.
        effort: how much.
        seconds: runs a function and tells how long it took.
        failures: where given, a job that fails or disagrees is left out, and this list tells why.
    """
    first, expected = "", None
    there = {}
    for name, job in jobs.items():
        if job is None or job.seconds > effort.longest:
            continue
        try:
            result = job.run()
            if job.read:
                answer = job.read(result)
                if expected is None:
                    first, expected = name, answer
                else:
                    check_agreement(expected, answer, f"{what}: {name} against {first}")
                del answer
            del result  # what the next job needs memory for
        except Exception as error:
            if failures is None:
                raise
            failures.append(Failure.of(what, name, error))
        else:
            there[name] = job.run
    del expected
    timings = interleaved(there, rounds=effort.rounds, warmups=effort.warmups, budget=effort.budget, seconds=seconds)
    return {name: timings.get(name) for name in jobs}


def say(what: str) -> None:
    """Tell that something begins."""
    print(what, file=sys.stderr, flush=True)
