"""Adam for Pyro, with a schedule of the learning rate and clipping of the whole gradient."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pyro
import torch
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Schedule = Literal["cosine", "exponential"] | Callable[[Optimizer], LRScheduler]


class ClippedAdam(PyroLRScheduler):
    """A Pyro optimiser: one torch Adam and one schedule for each parameter, one norm of the gradient for all.

    Unlike the clipping of Pyro's own optimisers, which treats each parameter apart, the direction of the gradient is
    kept. Parameters that do not ask for a gradient when this is made stay as they are, though Pyro turns
    `requires_grad` on in every parameter that it meets.

    Args:
        learning_rate: the first one.
        schedule: "cosine" (down to 0 at the last step), "exponential" (down to a hundredth), or a function of a
            torch optimiser that returns a torch scheduler, which then makes a step after each step of the fit.
        steps: number of steps of the fit, for the named schedules.
        clip_norm: the largest Euclidean norm of the whole gradient; None for any.
        frozen: parameters that are not to be changed.

    Attributes:
        updates: number of times that a change of the parameters was begun.

    Raises:
        ValueError: `schedule` is another name.
        FloatingPointError: (when called) a gradient is not finite; no parameter was changed.

    Example:
        >>> adam = ClippedAdam(0.1, "exponential", steps=2)
        >>> pyro.clear_param_store()
        >>> x = pyro.param("x", torch.tensor(1.0)).unconstrained()
        >>> for _ in range(2):
        ...     x.grad = torch.tensor(5.0)
        ...     adam([x])
        ...     print(round(adam.learning_rate, 4), round(x.item(), 4))
        ...     adam.step()
        0.1 0.9
        0.01 0.89
    """

    def __init__(
        self,
        learning_rate: float,
        schedule: Schedule | None = None,
        *,
        steps: int = 1,
        clip_norm: float | None = None,
        frozen: Iterable[Tensor] = (),
    ):
        super().__init__(
            _scheduler(schedule, steps), {"optimizer": torch.optim.Adam, "optim_args": {"lr": learning_rate}}
        )
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.frozen = set(frozen)
        self.updates = 0

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Clip the gradient and change the parameters."""
        store = pyro.get_param_store()
        # In the order of names: Pyro's is not the same in each run, and a sum of floats depends on it.
        chosen = [p for p in params if p not in self.frozen and p.grad is not None]
        chosen.sort(key=lambda p: store.param_name(p) or "")
        bad = [store.param_name(p) for p in chosen if p.grad is not None and not p.grad.isfinite().all()]
        if bad:
            raise FloatingPointError(f"the gradient is not finite, in {bad}")
        torch.nn.utils.clip_grad_norm_(chosen, self.clip_norm)
        self.updates += 1
        super().__call__(chosen, *args, **kwargs)

    @property
    def learning_rate(self) -> float:
        """The one of the next step."""
        scheduler: LRScheduler = next(iter(self.optim_objs.values()))
        return float(scheduler.optimizer.param_groups[0]["lr"])


def _scheduler(schedule: Schedule | None, steps: int) -> Callable[[Optimizer], LRScheduler]:
    match schedule:
        case None:
            return lambda optimizer: LambdaLR(optimizer, lambda step: 1.0)
        case "cosine":
            return lambda optimizer: LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
        case "exponential":
            return lambda optimizer: LambdaLR(optimizer, lambda step: 0.01 ** (step / steps))
        case _ if callable(schedule):
            return schedule
    raise ValueError(
        f"schedule: expected 'cosine', 'exponential', a function of an optimiser or None, got {schedule!r}"
    )
