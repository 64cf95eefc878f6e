"""What is timed: operations on chains of given sizes, and the form in which every library answers."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

OPERATIONS = {
    "log_partition": "log Z of each sequence",
    "gradient": "sum of log Z, and its gradient in all three logits",
    "smooth": "log Z, state marginals, transition marginals (summed over time where the matrix is shared)",
    "viterbi": "the most probable path of each sequence",
}


class Shape(NamedTuple):
    """K states, B sequences of T steps each; one transition matrix, or one for each step of each sequence."""

    num_states: int
    batch: int
    num_steps: int
    time_varying: bool = False

    def __str__(self) -> str:
        return f"{self.num_states}, {self.batch}, {self.num_steps}{' per step' if self.time_varying else ''}"

    @property
    def edges(self) -> int:
        """B T K^2: the pairs of states that one pass over all sequences visits."""
        return self.batch * self.num_steps * self.num_states**2


class Problem(NamedTuple):
    """Logits in float32: initial (K), transition (K, K) or (B, T-1, K, K), observation (B, T, K)."""

    shape: Shape
    initial: Tensor
    transition: Tensor
    observation: Tensor


class Job(NamedTuple):
    """One operation of one library on one problem.

    `run` is what is timed: it returns when its result is there, or will be on the device. `read` turns that result into
    named tensors, which are compared between libraries; None where the job is only there to be compared in time.
    `seconds` is what a run is expected to take, where it may be long.
    """

    run: Callable[[], Any]
    read: Callable[[Any], dict[str, Tensor]] | None
    seconds: float = 0.0


# A library's way to set an operation up; None where it does not have the operation, or not in reasonable memory.
Prepare = Callable[[str, Problem], Job | None]


def rotating(jobs: Sequence[Job]) -> Job:
    """The same operation on another problem at each run; what is read must be the result of the first."""
    runs = cycle([job.run for job in jobs])
    return jobs[0]._replace(run=lambda: next(runs)())


class DisagreementError(Exception):
    """Two libraries answer the same question differently."""


def random_problem(shape: Shape, seed: int = 0, device: torch.device | str = "cpu") -> Problem:
    """A chain with normalised initial and transition laws, as some libraries want them.

    A shared chain starts from its stationary law, so that libraries whose chain moves before the first observation
    compute the same number.
    """
    K, B, T, time_varying = shape
    generator = torch.Generator(device).manual_seed(seed)
    observation = torch.randn(B, T, K, generator=generator, device=device)
    size = (B, T - 1, K, K) if time_varying else (K, K)
    transition = torch.randn(size, generator=generator, device=device).log_softmax(-1)
    initial = torch.full((K,), 1 / K, dtype=torch.float64, device=device)
    if not time_varying:
        law = transition.double().softmax(-1)
        for _ in range(200):
            initial = initial @ law
    return Problem(shape, initial.log().float(), transition, observation)


def path_score(problem: Problem, states: Tensor) -> Tensor:
    """The log-weight of each path (B, T), in float64: equally good paths are equally good answers."""
    _, initial, transition, observation = problem
    states = states.to(observation.device).long()
    rows = torch.arange(len(states), device=states.device).unsqueeze(-1)
    before, after = states[:, :-1], states[:, 1:]
    if transition.dim() == 2:
        moves = transition[before, after]
    else:
        moves = transition[rows, torch.arange(before.shape[1], device=states.device), before, after]
    emitted = observation.gather(-1, states.unsqueeze(-1)).squeeze(-1)
    return initial[states[:, 0]].double() + moves.double().sum(-1) + emitted.double().sum(-1)


def check_agreement(expected: dict[str, Tensor], got: dict[str, Tensor], what: str, tolerance: float = 1e-3) -> None:
    """Compare what both results name, relative to the largest entry.

    Raises:
        DisagreementError: they differ by more than the tolerance, or name nothing in common.
    """
    common = expected.keys() & got.keys()
    if not common:
        raise DisagreementError(f"{what}: nothing to compare")
    for name in common:
        left = expected[name].detach().double()
        right = got[name].detach().to(left.device).double()
        if left.shape != right.shape:
            raise DisagreementError(f"{what}: {name} has shape {tuple(right.shape)}, expected {tuple(left.shape)}")
        error = (left - right).abs().max() / left.abs().max()
        if not error <= tolerance:
            raise DisagreementError(f"{what}: {name} differs by {error:.2g}, relative; allowed is {tolerance:g}")
