"""Observations that nobody may read: past the length, or missing."""

import torch
from torch import Tensor


def waits(tensor: Tensor) -> bool:
    """Whether to ask for a number of a tensor is to wait for its device: everywhere but on the CPU."""
    return tensor.device.type != "cpu"


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
    ask = not waits(value)
    if value.numel() == 0 or (ask and read.all()):
        return value
    # argmax of the mask is its first True. Not as an index, which would be read.
    first = read.reshape(-1).int().argmax()
    filler = value.reshape(-1, *event).index_select(0, first.unsqueeze(0)).squeeze(0)
    if not (ask and read.any()):
        # If there is no data at all, the distribution itself knows a value of its support.
        own = fn.sample() if ask else _typical(fn)
        filler = torch.where(read.any(), filler, own.reshape(-1, *event)[0].to(value.dtype))
    filled = torch.where(read[(..., *(None,) * event_dim)], value, filler)
    support = fn.support if fn._validate_args else None  # what validation would refuse
    if support is None:
        return filled
    refused = ~support.check(filled) & ~read
    # An entry stands for all that the distribution scores it against, such as the values of an enumerated state.
    refused = refused.int().sum_to_size(batch) > 0
    return torch.where(refused[(..., *(None,) * event_dim)], value, filled)


def _typical(fn: torch.distributions.Distribution) -> Tensor:
    """Values in the support, not drawn: to draw a normal number, torch looks at the parameters and so waits."""
    with torch.no_grad():
        try:
            # A distribution of symbols has no mean, nor have some on the real line: zero is as good as any.
            mean = fn.mean.nan_to_num(0.0)
            return mean.floor() if getattr(fn.support, "is_discrete", False) else mean
        except NotImplementedError:
            return fn.sample()
