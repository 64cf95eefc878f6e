"""Memory for large results."""

import math

import numpy as np
import torch
from torch import Tensor

# Bytes from which memory is new pages and not what was given back before, and those of a line of the cache, where
# vectors should begin.
_LARGE, _LINE = 2**24, 64


def empty(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor that is yet to be written.

    On the CPU numpy asks the system for large pages where torch does not: being given small ones, one by one as they
    are first touched, takes longer than most kernels run.

    Example:
        >>> empty(2, 3, dtype=torch.float32).shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)
