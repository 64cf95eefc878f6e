"""Observations that nobody may read: past the length, or missing."""

import torch
from torch import Tensor


def fill_unread(value: Tensor, read: Tensor, fn: torch.distributions.Distribution) -> Tensor:
    """Put a harmless value, taken from elsewhere in the data, where an observation must not be read.

    The unread entries may hold NaN or something outside of the distribution's support. Their log-probability is
    discarded by the caller; this keeps its evaluation, validation and gradient finite.

    Args:
        value: (*batch, *event), observations.
        read: bool, broadcasts with batch; True where the value counts.
        fn: the distribution that will score the value; its event dimensions are the value's.

    Returns:
        `value` with the unread entries replaced, of the broadcast batch shape.

    Example:
        >>> x = torch.tensor([1.0, float("nan"), 3.0])
        >>> fill_unread(x, torch.tensor([False, False, True]), torch.distributions.Normal(0.0, 1.0))
        tensor([3., 3., 3.])
    """
    event_dim = len(fn.event_shape)
    batch = value.shape[: value.dim() - event_dim]
    event = value.shape[value.dim() - event_dim :]
    shape = torch.broadcast_shapes(batch, read.shape)
    read = read.expand(shape)
    if read.all():
        return value.expand(shape + event)
    value = value.expand(shape + event)
    flat = value.reshape(-1, *event)
    # argmax of the mask is its first True; without any, the distribution itself knows a value of its support.
    filler = flat[read.reshape(-1).int().argmax()] if read.any() else fn.sample().reshape(-1, *event)[0].to(value.dtype)
    return torch.where(read[(..., *(None,) * event_dim)], value, filler)
