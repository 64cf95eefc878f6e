"""Independent draws in increasing order."""

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class Sorted(TorchDistribution):
    r"""K independent draws of one law in increasing order: their order statistics.

    .. math:: p(x_1, \ldots, x_K) = K! \prod_k p(x_k), \qquad x_1 < \ldots < x_K

    As a prior it gives states names, without any other change: parameters that are independent and alike for all states
    and their orderings have the same law.

    Args:
        base: a distribution of numbers, the same K times in the last dim of its batch shape (..., K).

    Batch shape: (...). Event shape: (K,).

    Reference:
        Richardson and Green (1997), "On Bayesian analysis of mixtures with an unknown number of components".

    Example:
        >>> import pyro.distributions as dist
        >>> law = Sorted(dist.Normal(torch.zeros(3), 1.0))
        >>> law.log_prob(torch.tensor([-1.0, 0.0, 1.0])), law.log_prob(torch.tensor([1.0, 0.0, -1.0]))
        (tensor(-1.9651), tensor(-inf))
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    support = constraints.ordered_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, base: Any):
        if not base.batch_shape or base.event_shape:
            raise ValueError(f"base: expected numbers of batch shape (..., K), got {base.shape()}")
        self.base = base
        super().__init__(base.batch_shape[:-1], base.batch_shape[-1:], validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""
        return self.base.has_rsample

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, (*sample_shape, ..., K)."""
        return self.base.sample(torch.Size(sample_shape)).sort(-1).values

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradients, (*sample_shape, ..., K)."""
        return self.base.rsample(torch.Size(sample_shape)).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, (...); -inf of values that are in another order."""
        total = self.base.log_prob(value).sum(-1) + math.lgamma(self.event_shape[0] + 1)
        return torch.where((value.diff(dim=-1) >= 0).all(-1), total, -torch.inf)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Sorted":
        """The same law with a larger batch shape."""
        return Sorted(self.base.expand(torch.Size(batch_shape) + self.event_shape))
