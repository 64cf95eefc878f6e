"""Tensors handed to the body of a vectorised loop, which notice when they are used in a way that it cannot honour.

The body runs twice, so a value that it keeps from the first run stands for every earlier step in the second. For a
state that is right (it is enumerated); for an observation, and for a state of two steps ago, it is not.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

_SCALAR_FUNCTIONS = frozenset(
    getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")
)


class Loop(Protocol):
    """What a mark needs of the loop that made it: its name and the number of the present run of the body."""

    name: str
    run: float


class Mark(NamedTuple):
    """Where a tracked tensor comes from."""

    loop: Loop
    site: str
    kind: Literal["state", "observed"]
    run: int

    @property
    def stale(self) -> bool:
        """Whether the tensor is too old to stand for the step that the body now asks about."""
        age = self.loop.run - self.run
        # After the loop an observation is only data again.
        return age > 1 if self.kind == "state" else 1 <= age < torch.inf

    def refuse(self) -> None:
        """Raise the error for a stale tensor."""
        if self.kind == "observed":
            raise ValueError(
                f"the value of observed site {self.site!r} from an earlier step is used in loop {self.loop.name!r}; "
                f"write pyrohmm.previous({self.site!r}, data, t) for the value one step ago"
            )
        if self.loop.run == torch.inf:
            raise ValueError(
                f"the state {self.site!r} is used after loop {self.loop.name!r}, which sums it out; "
                "use pyrohmm.posterior(model) to learn about it"
            )
        raise ValueError(
            f"the state {self.site!r} of two steps ago is used in loop {self.loop.name!r}; a step may depend on the "
            "state of the previous step only. Carry older states in the state itself (one state a pair), or use "
            "vectorized=False"
        )


class Tracked(Tensor):
    """A tensor with a `Mark`. Operations on it check the mark; what must stay tracked does."""

    mark: Mark

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        marks = [tensor.mark for tensor in _tracked((args, kwargs)) if hasattr(tensor, "mark")]
        states = [mark for mark in marks if mark.kind == "state"]
        if func in _SCALAR_FUNCTIONS and states:
            mark = states[0]
            raise ValueError(
                f"the state {mark.site!r} has no single value in loop {mark.loop.name!r}: all its values are "
                "enumerated in one tensor, so Python cannot branch on it or use it as a number. Index a tensor with "
                "it, or use torch.where; or use vectorized=False"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        for mark in marks:
            if mark.stale:
                mark.refuse()
        observed = [mark for mark in marks if mark.kind == "observed" and mark.loop.run == mark.run]
        if observed:
            return track(result, observed[0])
        # What is computed from a state as an index or a condition stays one. Numbers are plain tensors again, and so is
        # a truth about all states at once, by which distributions validate their arguments.
        if states and not result.is_floating_point() and result.dim() > 0:
            return track(result, states[0])
        return plain(result)


def track(tensor: Tensor, mark: Mark) -> Tensor:
    """A view of a tensor that carries a mark."""
    with torch._C.DisableTorchFunctionSubclass():
        result = tensor.as_subclass(Tracked)
    result.mark = mark
    return result


def plain(tensor: Tensor) -> Tensor:
    """A tensor without its mark."""
    if not isinstance(tensor, Tracked):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _tracked(value: Any) -> Iterator[Tracked]:
    if isinstance(value, Tracked):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tracked(item)
    elif isinstance(value, dict):
        yield from _tracked(list(value.values()))


def keeps_state_of_run(variables: dict[str, Any], loop: Loop, run: int) -> bool:
    """Whether a variable (or a container in one) still holds a state that a given run of the body made."""
    return any(
        tensor.mark.loop is loop and tensor.mark.kind == "state" and tensor.mark.run == run
        for tensor in _tracked(variables)
        if hasattr(tensor, "mark")
    )
