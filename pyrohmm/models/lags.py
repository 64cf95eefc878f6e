"""The earlier observations that an emission of order > 0 reads, newest first."""

from typing import Any

import torch
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.models.blank import Blank
from pyrohmm.program import previous


def before_start(emission: Any) -> float:
    """What stands for observations before the first one: no symbol, -1, or zero."""
    return -1 if getattr(emission, "family", None) == "categorical" else 0.0


def lags_at(emission: Any, data: Sequences | Blank, t: slice) -> Tensor | None:
    """Those of the steps t of the program's loop, (N, t, order * D); None if the order is 0."""
    if emission.order == 0:
        return None
    shape = (len(data.index), 1, *emission.event_shape)
    before = torch.full(shape, before_start(emission), device=data.index.device)
    lags = range(1, emission.order + 1)
    return _joined(emission, [previous("x", data.x, t, lag=lag, initial=before) for lag in lags])


def lags_of(emission: Any, data: Sequences) -> Tensor | None:
    """Those of all steps, outside of the loop, (N, T, order * D); None if the order is 0.

    >>> from pyrohmm.nn import AutoregressiveEmission
    >>> emission = AutoregressiveEmission(2, torch.nn.Linear(2 + 2, 2), "gaussian", dim=1, order=2)
    >>> lags_of(emission, Sequences.from_list([[[1.0], [2.0], [3.0]]]))
    tensor([[[0., 0.],
             [1., 0.],
             [2., 1.]]])
    """
    if emission.order == 0:
        return None
    start = before_start(emission)
    before = [
        data.x.new_full((len(data), min(lag, data.num_steps), *data.event_shape), start)
        for lag in range(1, emission.order + 1)
    ]
    return _joined(emission, [torch.cat([b, data.x], 1)[:, : data.num_steps] for b in before])


def _joined(emission: Any, lags: list[Tensor]) -> Tensor:
    event_dim = len(emission.event_shape)
    values = torch.broadcast_tensors(*lags)
    return torch.cat([x.flatten(-event_dim) if event_dim else x.unsqueeze(-1) for x in values], -1)
