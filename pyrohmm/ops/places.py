"""Where each sequence of a batch begins in a tensor's own memory."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def dense(tensor: Tensor, dims: int) -> Tensor:
    """The tensor, copied if its last `dims` dimensions, but for that of time, do not lie side by side in memory."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor
    extent = 1
    for dim in range(1, max(dims, 2)):
        if tensor.shape[-dim] > 1 and tensor.stride(-dim) != extent:
            return tensor.contiguous()
        extent *= tensor.shape[-dim]
    return tensor


# Training asks for the same places at every step. What is remembered is never written to.
@lru_cache(maxsize=16)
def places(
    shape: torch.Size, strides: tuple[int, ...], batch_shape: torch.Size, dims: int
) -> tuple[np.ndarray, int, int]:
    """Where each sequence begins, (B,), how far it is from one step to the next (zero: one for all), and the extent.

    Args:
        shape: of a tensor (..., *rest), where rest are the last `dims` dimensions.
        strides: of the tensor.
        batch_shape: what the leading dimensions broadcast to.
        dims: 1 for (..., K), 2 for (..., T, K), 3 for (..., T, K, K).

    Example:
        >>> places(torch.Size([5, 2, 3]), (12, 6, 1), torch.Size([2, 5]), 2)
        (array([ 0, 12, 24, 36, 48,  0, 12, 24, 36, 48]), 6, 57)
    """
    index, batch = np.zeros(batch_shape, np.int64), len(shape) - dims
    for dim, (n, stride) in enumerate(zip(shape[:batch], strides, strict=False)):
        if n > 1 and stride:
            index += np.arange(0, n * stride, stride).reshape(-1, *(1,) * (batch - dim - 1))
    step = strides[-dims] if dims > 1 and shape[-dims] > 1 else 0
    extent = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if math.prod(shape) else 0
    return index.reshape(-1), step, extent


@lru_cache(maxsize=16)
def groups(shape: torch.Size, batch_shape: torch.Size) -> np.ndarray:
    """The number, in row-major order, of the entry of a tensor of this shape that each sequence has to do with, (B,).

    Example:
        >>> groups(torch.Size([2, 1]), torch.Size([2, 3]))
        array([0, 0, 0, 1, 1, 1])
    """
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), batch_shape).flatten()


def unexpanded(tensor: Tensor, dims: int) -> Tensor:
    """The tensor, with what was expanded before its last `dims` dimensions (stride zero) there once."""
    for dim in range(tensor.dim() - dims):
        if tensor.stride(dim) == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
