"""Counts."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._prior import gamma_log_prob, gamma_prior
from pyrohmm.nn.emission.table import EntriesEmission
from pyrohmm.nn.part import Statistics, table


class PoissonEmission(EntriesEmission):
    """D independent counts: p(x_d | z = k) = Poisson(x_d; exp(log_rate_kd)), rates in counts for each step.

    Args:
        num_states: K.
        dim: D.
        rate: the start, a number, (D,) for all states or (K, D); one if None. The mean of the data is a good one.
        noise: size of the normal noise added to the log rates at the start, unless `rate` is (K, D).
        prior: `Gamma` on each rate, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_rate: (K, D) parameter.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `rate` of another shape or not positive and finite,
            a `prior` that does not fit.

    >>> import torch
    >>> emission = PoissonEmission(2, 1, rate=[[1.0], [2.0]])
    >>> emission(torch.tensor([0, 1])).mean.detach()
    tensor([[1.],
            [2.]])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        rate: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        mean = start("rate", 1.0 if rate is None else rate, shape, 0)
        self.log_rate = nn.Parameter(mean.log() + noise * jitter(rate, shape, generator))

        self.register_buffer("prior", gamma_prior(prior, shape))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(select(self.log_rate, state).exp())

    def log_prior(self) -> Tensor:
        """The log-density of the rates under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return gamma_log_prob(table(self.log_rate, 2), self.prior).sum((-2, -1))

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        total = sums["total"]
        if self.prior is not None:
            concentration, rate = self.prior.unbind(-1)
            total, weight = total + (concentration - 1), weight + rate
        return {"log_rate": (total / weight).log().clamp_min(-30)}

    def features(self, x: Tensor) -> Tensor:
        """Square roots of the counts, whose spread does not grow with their mean, (M, D)."""
        return x.sqrt()
