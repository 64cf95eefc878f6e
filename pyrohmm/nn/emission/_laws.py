"""Distributions whose densities keep their digits in float32 where Pyro's lose them, and one that Pyro has not."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrohmm.nn.emission._special import log_peak, log_rising

# Proportions nearer to 0 or 1 count as this far from them, where float32 ends: there a density can be infinite.
LEAST_PROPORTION = 1e-7


class NegativeBinomial(dist.NegativeBinomial):
    """The negative binomial distribution, exact also with a large `total_count`, as it nears a Poisson."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        chosen = self.total_count * logsigmoid(-self.logits) + value * logsigmoid(self.logits)
        return chosen + log_rising(self.total_count, value) - (value + 1).lgamma()


class Gamma(dist.Gamma):
    """The gamma distribution, exact also with a large concentration, of positive numbers only."""

    # At 0, which torch allows, the density is 0 or infinite.
    support = constraints.positive  # pyright: ignore[reportAssignmentType]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of positive numbers; unless it is validated, any other one counts as the least of them."""
        if self._validate_args:
            self._validate_sample(value)
        value = torch.as_tensor(value, dtype=self.rate.dtype, device=self.rate.device)
        tiny = torch.finfo(self.rate.dtype).tiny
        value = value.clamp_min(tiny)
        ratio = (value * (self.rate / self.concentration)).clamp_min(tiny)  # to the mean
        return self.concentration * (ratio.log() - (ratio - 1)) + log_peak(self.concentration) - value.log()


class Beta(dist.Beta):
    """The beta distribution, exact also with large concentrations, and finite at 0 and 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of proportions."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.clamp(LEAST_PROPORTION, 1 - LEAST_PROPORTION)
        ones, zeros = self.concentration1, self.concentration0
        total = ones + zeros
        result = log_peak(ones) + log_peak(zeros) - log_peak(total) - value.log() - (-value).log1p()
        for part, share in ((ones, value), (zeros, 1 - value)):
            ratio = share * (total / part)  # to the mean; the two last terms add up to 0
            result = result + part * (ratio.log() - (ratio - 1))
        return result


class VonMises(dist.VonMises):
    """The von Mises distribution, with a Bessel function that is exact."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of angles in radians."""
        if self._validate_args:
            self._validate_sample(value)
        # Not cos - 1, in which small angles are lost.
        fall = -2 * (0.5 * (value - self.loc)).sin().square()
        return self.concentration * fall - math.log(2 * math.pi) - torch.special.i0e(self.concentration).log()


class Multinomial(TorchDistribution):
    r"""How often each of V symbols was drawn, given how often one was drawn in all, which a value tells itself.

    .. math:: p(x) = \frac{n!}{\prod_v x_v!} \prod_v p_v^{x_v}, \qquad n = \sum_v x_v

    Pyro's own has one number of draws for the whole batch.

    Args:
        logits: (..., V).
        total_count: the number of draws in a sample.
        observed: bool, broadcasts with (..., V), False at counts that are missing: the law is that of the others,
            given their sum.

    Example:
        >>> law = Multinomial(torch.zeros(2), total_count=3)
        >>> law.log_prob(torch.tensor([[1.0, 1.0], [2.0, 0.0]])).exp(), law.sample().sum()
        (tensor([0.5000, 0.2500]), tensor(3.))
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    support = constraints.independent(constraints.nonnegative_integer, 1)  # pyright: ignore[reportAssignmentType]

    def __init__(self, logits: Tensor, total_count: int, observed: Tensor | None = None):
        shape = logits.shape if observed is None else torch.broadcast_shapes(logits.shape, observed.shape)
        self.logits, self.total_count, self.observed = logits.expand(shape), total_count, observed
        # A missing count may be anything.
        super().__init__(shape[:-1], shape[-1:], validate_args=None if observed is None else False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all counts, (*sample_shape, ..., V)."""
        return dist.Multinomial(self.total_count, logits=self.logits).sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts (..., V)."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        if self.observed is not None:
            value = torch.where(self.observed, value, 0.0)
            # Not -inf, which would be NaN where all are missing.
            logits = torch.where(self.observed, logits, torch.finfo(logits.dtype).min / 4)
        orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return orders + (value * logits.log_softmax(-1)).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Multinomial":
        """The same law with a larger batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        return Multinomial(self.logits.expand(shape), self.total_count, self.observed)
