"""Normal densities of all rows in all states, and the weighted sums that fit them."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.chain import Impl, choose


class Moments(NamedTuple):
    """Weighted sums, in float64.

    Attributes:
        weight: of the weights, (..., K).
        first: of x - centre, (..., K, D).
        second: of its squares, (..., K, D).
    """

    weight: Tensor
    first: Tensor
    second: Tensor


def log_density(x: Tensor, loc: Tensor, scale: Tensor, *, impl: Impl = "auto") -> Tensor:
    r"""The log-density of every row under the normal law of every state, with independent entries, without gradients.

    .. math:: -\tfrac12 \sum_d \left( ((x_{md} - \mu_{kd}) / \sigma_{kd})^2 + \log 2 \pi \sigma_{kd}^2 \right)

    Args:
        x: (M, D).
        loc: (..., K, D).
        scale: (..., K, D), positive.
        impl: which implementation; on a GPU there is the reference only.

    Returns:
        (..., M, K), in the wider of the dtypes.

    Raises:
        ValueError, NotImplementedError: an implementation that does not exist, or does not take these tensors.

    Example:
        >>> log_density(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.ones(2, 2))
        tensor([[ -1.8379, -14.3379]])
    """
    dtype = torch.promote_types(x.dtype, loc.dtype)
    x, loc, scale = (value.detach().to(dtype) for value in (x, *torch.broadcast_tensors(loc, scale)))
    return _implementation(impl, x).log_density(x, loc, scale)


def moments(x: Tensor, weights: Tensor, centre: Tensor, *, impl: Impl = "auto") -> Moments:
    r"""The sums of the weights, and of these times :math:`x - c` and times its squares.

    .. math:: \sum_m w_{mk}, \qquad \sum_m w_{mk} (x_{md} - c_d), \qquad \sum_m w_{mk} (x_{md} - c_d)^2

    Args:
        x: (M, D).
        weights: (..., M, K).
        centre: c, (D,) float64: near the data, so that the squares lose no digits.
        impl: which implementation; on a GPU there is the reference only.

    Returns:
        `Moments`.

    Raises:
        ValueError, NotImplementedError: as `log_density`.

    Example:
        >>> moments(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1), torch.tensor([2.0], dtype=torch.float64)).second
        tensor([[2.]], dtype=torch.float64)
    """
    dtype = torch.promote_types(x.dtype, weights.dtype)
    x, weights = x.detach().to(dtype), weights.detach().to(dtype)
    return Moments(*_implementation(impl, x).moments(x, weights, centre.double()))


def _implementation(impl: Impl, x: Tensor):
    if choose(impl, x, "Gaussian sums have no kernel for it") == "cpu":
        from pyrohmm.ops.gaussian import cpu as kernel
    else:
        from pyrohmm.ops.gaussian import reference as kernel
    return kernel
