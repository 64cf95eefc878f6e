"""Bits."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._conjugate import BetaEntries
from pyrohmm.nn._prior import beta_log_prob, beta_mode, beta_prior
from pyrohmm.nn.emission.table import EntriesEmission
from pyrohmm.nn.part import Statistics, table


class BernoulliEmission(EntriesEmission):
    """D independent bits: p(x_d = 1 | z = k) = sigmoid(logits_kd).

    Args:
        num_states: K.
        dim: D.
        probs: the start, a number, (D,) for all states or (K, D); a half if None.
        noise: size of the normal noise added to the logits at the start, unless `probs` is (K, D).
        prior: `Beta` on each probability, with concentrations that broadcast to (K, D), of at least 1.
        generator: source of the noise; torch's global one if None.

    Attributes:
        logits: (K, D) parameter.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `probs` of another shape or not in (0, 1), a `prior` that
            does not fit.

    >>> import torch
    >>> emission = BernoulliEmission(2, 3, probs=[[0.5, 0.5, 0.5], [0.1, 0.1, 0.5]])
    >>> emission(torch.tensor([0, 1])).log_prob(torch.ones(3)).exp().detach()
    tensor([0.1250, 0.0050])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        probs: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        mean = start("probs", 0.5 if probs is None else probs, shape, 0, 1)
        self.logits = nn.Parameter(mean.logit() + noise * jitter(probs, shape, generator))

        self.register_buffer("prior", beta_prior(prior, shape))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=select(self.logits, state))

    def log_prior(self) -> Tensor:
        """The log-density of the probabilities under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return beta_log_prob(table(self.logits, 2), self.prior).sum((-2, -1))

    def conjugate_prior(self) -> BetaEntries:
        """The Beta prior of each entry, flat ones by default; see `Part`."""
        if self.prior is None:
            # Not by the attribute, which would make it a parameter of a Pyro program that runs.
            flat = torch.ones_like(next(self.parameters()), requires_grad=False)
            return BetaEntries(flat, flat)
        return BetaEntries(*self.prior.unbind(-1))

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        return {"logits": beta_mode(sums["total"], weight - sums["total"], self.prior)}
