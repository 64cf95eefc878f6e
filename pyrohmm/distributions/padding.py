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
        fn: the distribution that will score the value; its event dimensions are the value's, and its batch shape
            broadcasts with the value's.

    Returns:
        `value` with the unread entries replaced, of the broadcast batch shape. Where the support differs between
        entries and the replacement is outside of it, the entry stays as it is.

    Example:
        >>> x = torch.tensor([1.0, float("nan"), 3.0])
        >>> fill_unread(x, torch.tensor([False, False, True]), torch.distributions.Normal(0.0, 1.0))
        tensor([3., 3., 3.])
    """
    event_dim = len(fn.event_shape)
    batch, event = value.shape[: value.dim() - event_dim], value.shape[value.dim() - event_dim :]
    batch = torch.broadcast_shapes(batch, read.shape)
    value, read = value.expand(batch + event), read.expand(batch)
    # Elsewhere than on the CPU, to ask is to wait for the device.
    ask = value.device.type == "cpu"
    if value.numel() == 0 or (ask and read.all()):
        return value
    # argmax of the mask is its first True.
    filler = value.reshape(-1, *event)[read.reshape(-1).int().argmax()]
    if not (ask and read.any()):
        # If there is no data at all, the distribution itself knows a value of its support.
        filler = torch.where(read.any(), filler, fn.sample().reshape(-1, *event)[0].to(value.dtype))
    filled = torch.where(read[(..., *(None,) * event_dim)], value, filler)
    support = fn.support if fn._validate_args else None  # what validation would refuse
    if support is None:
        return filled
    refused = ~support.check(filled) & ~read
    # An entry stands for all that the distribution scores it against, such as the values of an enumerated state.
    refused = refused.int().sum_to_size(batch) > 0
    return torch.where(refused[(..., *(None,) * event_dim)], value, filled)
