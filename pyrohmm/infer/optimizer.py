"""Adam with a schedule of the learning rate and clipping of the whole gradient, which never waits for a GPU."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Schedule = Literal["cosine", "exponential"] | Callable[[Optimizer], LRScheduler]


class Step(NamedTuple):
    """What a step was, without having waited for it.

    Attributes:
        learning_rate: the one of this step.
        names: of the parameters that had a gradient.
        numbers: on the device, the loss and the norm of the gradient of each of these parameters.
    """

    learning_rate: float
    names: list[str]
    numbers: Tensor


class ClippedAdam:
    """One Adam for all parameters, that clips the norm of the whole gradient and keeps its direction.

    Once the loss or a gradient is not finite, nothing changes the parameters any more, in that step or a later one.
    So nobody needs to look at a step before the next one is begun; who looks later finds what they were before it.

    Args:
        parameters: by name, leaves that ask for a gradient.
        learning_rate: the first one.
        schedule: "cosine" (down to 0 at the last step), "exponential" (down to a hundredth), or a function of a
            torch optimiser that returns a torch scheduler, which then makes a step after each step of the fit.
        steps: number of steps of the fit, for the named schedules.
        clip_norm: the largest Euclidean norm of the whole gradient; None for any.

    Attributes:
        updates: number of times that a change of the parameters was begun.

    Raises:
        ValueError: `schedule` is another name.

    Example:
        >>> x = torch.tensor(1.0, requires_grad=True)
        >>> adam = ClippedAdam({"x": x}, 0.1, "exponential", steps=2)
        >>> for _ in range(2):
        ...     loss = x.square()
        ...     loss.backward()
        ...     done = adam.step(loss.detach())
        ...     print(round(done.learning_rate, 4), done.numbers, round(x.item(), 4))
        0.1 tensor([1., 2.]) 0.9
        0.01 tensor([0.8100, 1.8000]) 0.89
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        learning_rate: float,
        schedule: Schedule | None = None,
        *,
        steps: int = 1,
        clip_norm: float | None = None,
    ):
        self.parameters = dict(parameters)
        self.clip_norm = clip_norm
        self.updates = 0
        # Only the fused one heeds what torch.amp.GradScaler tells an optimiser: it divides the gradient by
        # `grad_scale`, and changes nothing where `found_inf` is one.
        self._adam: Any = Adam(self.parameters.values(), lr=learning_rate, fused=True)
        self._scheduler = _scheduler(schedule, steps)(self._adam)
        self._device = next(iter(self.parameters.values())).device
        self._broken = torch.zeros((), dtype=torch.bool, device=self._device)

    def add(self, parameters: Mapping[str, Tensor]) -> None:
        """Train these too, from now on."""
        self.parameters |= parameters
        self._adam.param_groups[0]["params"] += parameters.values()

    @torch.no_grad()
    def step(self, loss: Tensor | float) -> Step:
        """Clip the gradient, change the parameters, and take the gradient away.

        Args:
            loss: whose gradient it is.
        """
        used = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not isinstance(loss, Tensor):
            loss = torch.full((), loss, dtype=torch.float64, device=self._device)
        norms = [torch.linalg.vector_norm(grad) for grad in used.values()]
        numbers = torch.stack([number.to(self._device) for number in (loss, *norms)])
        self._broken |= ~numbers.isfinite().all()
        self._adam.found_inf = self._broken.float()
        if self.clip_norm is not None:
            norm = torch.linalg.vector_norm(numbers[1:])
            self._adam.grad_scale = ((norm + 1e-6) / self.clip_norm).clamp(min=1.0).float()
        learning_rate = self.learning_rate
        self.updates += 1
        self._adam.step()
        self._scheduler.step()
        self._adam.zero_grad()
        return Step(learning_rate, list(used), numbers)

    @property
    def learning_rate(self) -> float:
        """The one of the next step."""
        return float(self._adam.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """All that `load` needs."""
        return {
            "names": list(self.parameters),
            "adam": self._adam.state_dict(),
            "schedule": self._scheduler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to what `state` told.

        Raises:
            ValueError: it is the state of other parameters.
        """
        if state["names"] != list(self.parameters):
            raise ValueError(f"expected the parameters {list(self.parameters)}, got {state['names']}")
        self._adam.load_state_dict(state["adam"])
        self._scheduler.load_state_dict(state["schedule"])


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
