"""Symbols."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, jitter, select, start
from pyrohmm.nn._conjugate import DirichletRows
from pyrohmm.nn._free import num_free
from pyrohmm.nn._prior import dirichlet, dirichlet_law, dirichlet_log_prob, dirichlet_mode, has_mode
from pyrohmm.nn.emission.table import TableEmission
from pyrohmm.nn.part import EMPTY, Events, Statistics, assign, table


class CategoricalEmission(TableEmission):
    """One of V symbols: p(x = v | z = k) = softmax_v(logits_kv).

    Args:
        num_states: K.
        num_symbols: V.
        probs: the start, positive weights (V,) for all states or (K, V), e.g. counts; uniform if None.
        noise: size of the normal noise added to the logits at the start, unless `probs` is (K, V).
        prior: `Dirichlet` on each state's probabilities, with concentrations (V,) or (K, V), of at least 1 for
            the most probable parameters (`fit_em`, `fit_svi`).
        generator: source of the noise; torch's global one if None.

    Attributes:
        logits: (K, V) parameter.
        num_states, event_shape, order: K, (), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `probs` of another shape or not positive, a `prior` that
            does not fit.

    >>> emission = CategoricalEmission(2, 3, probs=[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    >>> emission(torch.tensor([0, 1])).log_prob(torch.tensor(2)).exp().detach()
    tensor([0.5000, 0.1000])
    """

    def __init__(
        self,
        num_states: int,
        num_symbols: int,
        *,
        probs: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, ())
        shape = num_states, count("num_symbols", num_symbols)
        weights = start("probs", 1.0 if probs is None else probs, shape, 0)
        self.logits = nn.Parameter(
            (weights / weights.sum(-1, keepdim=True)).log() + noise * jitter(probs, shape, generator)
        )
        self.register_buffer("prior", dirichlet(prior, shape, sparse=True))

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        law = dist.Categorical(logits=select(self.logits, state))
        return law if observed is None else law.mask(observed)

    def log_prior(self) -> Tensor:
        """The log-density of the probabilities under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return dirichlet_log_prob(table(self.logits, 2), self.prior).sum(-1)

    @property
    def prior_has_mode(self) -> bool:
        """Whether no concentration of the prior is below 1."""
        return has_mode(self.prior)

    def conjugate_prior(self) -> DirichletRows:
        """The Dirichlet prior of each state, flat ones by default; see `Part`."""
        # Subclasses have other laws.
        if type(self) is not CategoricalEmission:
            super().conjugate_prior()
        return dirichlet_law(self)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """How often each symbol is expected in each state; see `TableEmission`.

        Returns:
            "counts" (*lead, K, V).
        """
        # Not int64 if the symbols stand beside numbers, as a stream of a `CompositeEmission`.
        x = x.long()
        if observed is not None:
            weights = weights * observed.unsqueeze(-1)
        lead, num_symbols = weights.shape[:-2], self.logits.shape[-1]
        # A row for each symbol, in which those of its steps are added up.
        rows = weights.movedim(-2, 0).reshape(len(x), -1).double()
        counts = rows.new_zeros(num_symbols, rows.shape[1]).index_add_(0, x, rows)
        return {"counts": counts.reshape(num_symbols, *lead, -1).movedim(0, -1)}

    def maximize(self, statistics: Statistics) -> Events:
        """Set each state's probabilities to the most probable ones: (counts_kv + concentration_kv - 1) / sum_v.

        >>> emission = CategoricalEmission(2, 2)
        >>> x, weights = torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
        >>> _ = emission.maximize(emission.expected_statistics(x, weights))
        >>> emission.logits.exp().detach()
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
        """
        logits = table(self.logits, 2).detach()
        least = math.log(torch.finfo(logits.dtype).tiny)
        log_probs, empty = dirichlet_mode(statistics["counts"], self.prior, logits, least)
        assign(self.logits, log_probs)
        return {EMPTY: empty}

    def features(self, x: Tensor) -> Tensor:
        """Symbols (M,) as unit vectors (M, V)."""
        return nn.functional.one_hot(x.long(), self.logits.shape[-1]).to(self.logits.dtype)

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, V - 1 for each state."""
        return num_free(self)
