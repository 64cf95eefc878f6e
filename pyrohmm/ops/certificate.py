"""When is scaled space as good as log space: a bound on what underflow can spoil."""

import math
from functools import cache

import torch
from torch import Tensor

# A result is called exact if underflow changes no probability by more than this factor.
_SPARE_BITS = {torch.float32: 30, torch.float64: 60}


@cache
def smallest_log_ratio(dtype: torch.dtype, num_states: int) -> float:
    r"""How far below the largest transition potential the smallest may lie for scaled space to be exact.

    Let :math:`\rho = \min_{ij} e^{A_{ij}} / \max_{ij} e^{A_{ij}}` and let numbers below :math:`\tau` underflow. In a
    normalised step, every state is predicted with at least :math:`\rho`, whatever came before, and so the step's mass,
    with likelihoods relative to the largest, is at least :math:`\rho` too. At most :math:`K \tau` of mass underflows in
    a step; relative to its mass, that is carried to a state which is predicted with at least :math:`\rho`. So no
    predicted probability is off by a factor of more than :math:`1 + K \tau / \rho^2`, and the same holds for messages
    backward. Scaled space is called exact if :math:`K \tau / \rho^2 \leq 2^{-30}` (:math:`2^{-60}` in float64), hence

    .. math:: \log \rho \geq \tfrac12 (\log K + \log \tau) + 15 \log 2

    Args:
        dtype: float32 or float64.
        num_states: K.

    Returns:
        the bound on :math:`\log \rho`, negative, in nats.

    Example:
        >>> print(f"{smallest_log_ratio(torch.float32, 16):.1f}, {smallest_log_ratio(torch.float64, 16):.1f}")
        -31.9, -332.0
    """
    return 0.5 * (math.log(num_states * torch.finfo(dtype).tiny) + _SPARE_BITS[dtype] * math.log(2.0))


def log_ratio(transition: Tensor) -> Tensor:
    r"""log(rho) of each matrix (..., K, K): -inf where an entry is impossible, NaN where one is NaN.

    Example:
        >>> log_ratio(torch.tensor([[0.0, -1.0], [-3.0, -0.5]]))
        tensor(-3.)
    """
    smallest, largest = torch.aminmax(transition.detach().flatten(-2), dim=-1)
    return smallest - largest
