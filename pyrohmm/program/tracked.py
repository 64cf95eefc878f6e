"""Tensors handed to the body of a vectorised loop, which notice when they are used in a way that it cannot honour.

The body runs twice, so a value that it keeps from the first run stands for every earlier step in the second. For a
state that is right (it is enumerated); for an observation, and for a state of two steps ago, it is not.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor

_SCALAR_FUNCTIONS = frozenset(
    getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")
)
_SEQUENCES = tuple, list  # a union made at each call is slow


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
            f"the state {self.site!r} of two steps ago is used in loop {self.loop.name!r}, itself or in something "
            "computed from it; a step may depend on the state of the previous step only. Carry older states in the "
            "state itself: one state a pair"
        )


class Tracked(Tensor):
    """A tensor with `Mark`s. Operations on it check them, and hand them on to what they compute."""

    marks: tuple[Mark, ...] = ()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SCALAR_FUNCTIONS:
            for mark in _oldest(_tracked(args)):
                if mark.kind == "state":
                    raise ValueError(
                        f"the state {mark.site!r} has no single value in loop {mark.loop.name!r}: all its values are "
                        "enumerated in one tensor, so Python cannot branch on it or use it as a number. Index a "
                        "tensor with it, or use torch.where; or use vectorized=False"
                    )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        # Most calls are for a shape and the like.
        if isinstance(result, Tensor):
            return _handed_on(result, _oldest(_tracked([args, kwargs])))
        if isinstance(result, _SEQUENCES) and any(isinstance(item, Tensor) for item in result):
            marks = _oldest(_tracked([args, kwargs]))
            return type(result)([_handed_on(item, marks) if isinstance(item, Tensor) else item for item in result])
        return result


def track(tensor: Tensor, *marks: Mark) -> Tensor:
    """A view of a tensor that carries marks."""
    with torch._C.DisableTorchFunctionSubclass():
        result = tensor.as_subclass(Tracked)
    result.marks = marks
    return result


def plain(tensor: Tensor) -> Tensor:
    """A tensor without its marks."""
    if isinstance(tensor, ProvenanceTensor):  # by which Pyro finds a program's dependencies
        return ProvenanceTensor(plain(tensor._t), tensor._provenance)
    if not isinstance(tensor, Tracked):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def keeps_state_of_run(variables: dict[str, Any], loop: Loop, run: int) -> bool:
    """Whether a variable, in a container or as an object's attribute too, holds what came of a state of a given run."""
    pending: list[Any] = [variables, *(vars(value) for value in variables.values() if hasattr(value, "__dict__"))]
    seen: set[int] = set()  # a user's containers may hold each other
    while pending:
        value = pending.pop()
        if isinstance(value, Tracked):
            if any(mark.loop is loop and mark.kind == "state" and mark.run == run for mark in value.marks):
                return True
        elif isinstance(value, tuple | list | dict) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
    return False


def _handed_on(result: Tensor, marks: tuple[Mark, ...]) -> Tensor:
    """The result of an operation, with the marks of its arguments."""
    for mark in marks:
        if mark.stale:
            if torch._C._current_graph_task_id() >= 0:  # a backward pass, which gets back what an operation saved
                return plain(result)
            mark.refuse()
    # A truth about all states at once, by which distributions validate their arguments, is no longer about a state.
    # After its loop, an observation is only data again.
    kept = [mark for mark in marks if (result.dim() > 0 if mark.kind == "state" else mark.loop.run == mark.run)]
    return track(result, *kept) if kept else plain(result)


def _oldest(tensors: list[Tracked]) -> tuple[Mark, ...]:
    """The oldest mark of each loop and kind: what is computed from several steps is as old as the first of them."""
    if len(tensors) == 1:
        return tensors[0].marks
    oldest: dict[tuple[int, str], Mark] = {}
    for tensor in tensors:
        for mark in tensor.marks:
            key = id(mark.loop), mark.kind
            if key not in oldest or mark.run < oldest[key].run:
                oldest[key] = mark
    return tuple(oldest.values())


def _tracked(values: Iterable[Any]) -> list[Tracked]:
    found = []
    for value in values:
        if isinstance(value, Tracked):
            found.append(value)
        elif isinstance(value, _SEQUENCES):
            found += _tracked(value)
        elif isinstance(value, dict):
            found += _tracked(value.values())
    return found
