"""What a fit did, step by step."""

from dataclasses import dataclass, field
from typing import Literal

StopReason = Literal["finished", "converged", "patience", "interrupted"]


@dataclass(repr=False)
class History:
    """The record of a fit.

    Attributes:
        loss: one number for each step, nats per observed time step; the estimate from that step's minibatch.
        learning_rate: the one of each step.
        gradient_norm: the Euclidean norm of the whole gradient of the loss at each step, before it is clipped; NaN for
            steps of a checkpoint that does not tell. None for EM.
        kl_weight: the weight of the KL term in each step's loss, 1 without annealing. None for EM.
        evaluated: the steps after which the held-out data were evaluated.
        validation: the loss of the held-out data there, nats per observed time step.
        stop_reason: "finished" (all steps done), "converged" (no step made the loss smaller by the tolerance),
            "patience" (no better evaluation for too long) or "interrupted".
        seconds: time spent, over all runs if the fit was resumed.
        restarts: the last loss of each restart, the best of which is the one told of here.
        notes: what happened on the way that one should know, such as states that no data belong to.

    Example:
        >>> History(loss=[2.0, 1.0, 0.5], evaluated=[1, 2, 3], validation=[2.5, 1.5, 1.75])
        History(3 steps, loss 0.5, best validation 1.5 after step 2, finished)
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    kl_weight: list[float] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    stop_reason: StopReason = "finished"
    seconds: float = 0.0
    restarts: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Number of steps done.

        >>> History(loss=[2.0, 1.0]).num_steps
        2
        """
        return len(self.loss)

    @property
    def step(self) -> list[int]:
        """The numbers of the steps, from 1: the other axis of a plot of `loss`.

        >>> History(loss=[2.0, 1.0]).step
        [1, 2]
        """
        return list(range(1, self.num_steps + 1))

    @property
    def best_step(self) -> int | None:
        """The step of the least validation loss, the earlier of equals; None without a finite one.

        >>> History(loss=[2.0, 1.0, 0.5], evaluated=[1, 3], validation=[2.5, 1.5]).best_step
        3
        """
        value = self.best_validation
        return None if value is None else self.evaluated[self.validation.index(value)]

    @property
    def best_validation(self) -> float | None:
        """The least validation loss; None without a finite one.

        >>> History(validation=[2.5, 1.5, float("nan")]).best_validation
        1.5
        """
        return min((value for value in self.validation if value < float("inf")), default=None)

    @property
    def evaluations_since_best(self) -> int:
        """Number of evaluations that were not better than the best one before them.

        >>> History(evaluated=[10, 20, 30], validation=[2.5, 1.5, 1.75]).evaluations_since_best
        1
        """
        best = self.best_step
        return sum(best is None or step > best for step in self.evaluated)

    def __repr__(self) -> str:
        parts = [f"{self.num_steps} steps"]
        if self.loss:
            parts.append(f"loss {self.loss[-1]:.4g}")
        if self.best_step is not None:
            parts.append(f"best validation {self.best_validation:.4g} after step {self.best_step}")
        return f"History({', '.join([*parts, self.stop_reason])})"
