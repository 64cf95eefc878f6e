"""What a program is given: data to read, or what to simulate."""

from dataclasses import dataclass

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.distributions.padding import waits


@dataclass(frozen=True)
class Blank:
    """What a program needs of `Sequences` that are yet to be simulated: all but the observations."""

    num_total: int
    num_steps: int
    index: Tensor
    lengths: Tensor | None
    inputs: Tensor | None
    x: None = None
    mask: None = None
    entries: None = None
    labels: None = None
    allowed: None = None

    @classmethod
    def of(
        cls,
        num_sequences: int,
        num_steps: int,
        lengths: Tensor | None,
        inputs: Tensor | None,
        device: torch.device,
    ) -> "Blank":
        """For the arguments of `simulate`, checked, on a device.

        Raises:
            ValueError: a size that is no positive int, or a tensor that does not fit.

        >>> Blank.of(2, 5, torch.tensor([5, 3]), None, torch.device("cpu")).index
        tensor([0, 1])
        """
        for name, size in (("num_sequences", num_sequences), ("num_steps", num_steps)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected an int of at least 1, got {size!r}")
        if lengths is not None and lengths.shape != (num_sequences,):
            raise ValueError(f"lengths: expected shape ({num_sequences},), got {tuple(lengths.shape)}")
        if inputs is not None and (inputs.dim() != 3 or inputs.shape[:2] != (num_sequences, num_steps)):
            raise ValueError(f"inputs: expected shape ({num_sequences}, {num_steps}, C), got {tuple(inputs.shape)}")
        lengths = None if lengths is None else lengths.to(device)
        inputs = None if inputs is None else inputs.to(device)
        return cls(num_sequences, num_steps, torch.arange(num_sequences, device=device), lengths, inputs)


def check_data(data: Sequences | Blank, event_shape: tuple[int, ...], part: str = "emission") -> None:
    """An error unless `data` is what a model with observations of `event_shape`, those of a part, reads.

    Raises:
        TypeError: it is neither `Sequences` nor `Blank`.
        ValueError: its observations have another shape.
    """
    if not isinstance(data, Sequences | Blank):
        raise TypeError(f"data: expected pyrohmm.data.Sequences, got {type(data).__name__}; see Sequences.from_list")
    if data.x is not None and data.x.shape[2:] != event_shape:
        raise ValueError(
            f"data: expected x of shape (N, T, *{tuple(event_shape)}), like the {part}, got {tuple(data.x.shape)}"
        )


def check_states(data: Sequences | Blank, num_states: int, *, labels: bool) -> None:
    """An error unless what `data` says of the states fits a model of so many.

    Args:
        data: to be checked.
        num_states: K.
        labels: whether labels are read. On a GPU they are looked at only where Pyro's validation is on: a label that is
            no state leaves none, and the sequence is then impossible.

    Raises:
        ValueError: `allowed` of another shape, or a label that is no state.
    """
    if data.allowed is not None and data.allowed.shape[-1] != num_states:
        raise ValueError(f"data: expected allowed of shape (N, T, {num_states}), got {tuple(data.allowed.shape)}")
    if not labels or data.labels is None or (waits(data.labels) and not is_validation_enabled()):
        return
    if (largest := int(data.labels.max())) >= num_states:
        raise ValueError(f"data: expected labels below {num_states}, the number of states, got {largest}")
