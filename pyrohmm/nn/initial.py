"""The law of the first state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import allowed, context_inputs, count, forbid, network, unforbid
from pyrohmm.nn._conjugate import DirichletRows
from pyrohmm.nn._free import num_free, num_trainable
from pyrohmm.nn._prior import (
    LEAST_LOG_PROB,
    dirichlet,
    dirichlet_law,
    dirichlet_log_prob,
    dirichlet_mode,
    has_mode,
    normal_log_prob_of,
    normal_prior,
)
from pyrohmm.nn._relabel import Ordered, as_permutation, permute
from pyrohmm.nn.part import Events, Part, Statistics, assign, table


class Initial(Ordered, Part):
    """The logits of the first state: a table, or with `context` a network of the inputs added to the table.

    p(z_1 = k | c) = softmax_k(logits_k + net(c)_k), the second term only with `context`.

    Args:
        num_states: K.
        context: C, the size of the inputs; 0 for none.
        hidden: units of the built-in network (one tanh layer).
        mask: (K,) bool, True where the chain may start; the other logits are always -inf.
        net: any module from (..., C) to (..., K), in place of the built-in network. Needs `context`.
        prior: `Dirichlet` on the probabilities, with concentrations (K,), of at least 1 for the most
            probable parameters (`fit_em`, `fit_svi`); with `context` a `Normal` of numbers, on every parameter (weight
            decay).
        generator: source of the random start; torch's global one if None.

    Attributes:
        logits: (K,) parameter, small noise at the start.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `mask` of another shape or dtype or that allows
            nothing, a `net` or `prior` that does not fit.

    >>> initial = Initial(3, mask=torch.tensor([True, True, False]))
    >>> initial().shape, initial.log_probs().exp()[2].item()
    (torch.Size([3]), 0.0)
    >>> Initial(3, context=2)(torch.zeros(5, 1, 2)).shape
    torch.Size([5, 1, 3])
    """

    side_by_side = True
    mask: Tensor | None
    prior: Tensor | None

    def __init__(
        self,
        num_states: int,
        context: int = 0,
        hidden: int = 64,
        mask: Tensor | None = None,
        *,
        net: nn.Module | None = None,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.num_states = count("num_states", num_states)
        self.context = count("context", context, least=0)
        self.register_buffer("mask", allowed(mask, (num_states,)))
        self.logits = nn.Parameter(0.1 * torch.randn(num_states, generator=generator))
        if net is not None and not context:
            raise ValueError("net: expected None since context=0, got a module")
        table_prior = normal_prior(prior, ()) if context else dirichlet(prior, (num_states,), sparse=True)
        self.register_buffer("prior", table_prior)
        self.net = network(net, context, hidden, num_states, generator) if context else None

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """The logits of the first state, not normalised.

        Args:
            inputs: (..., C); read only if the part was built with `context`.

        Returns:
            (..., K), or (K,) without `context`.

        Raises:
            ValueError: `inputs` missing or of another size than `context`.
        """
        logits = self.logits
        net = self.net
        if net is not None:
            change = net(context_inputs(inputs, self.context).to(logits.dtype))
            if self.state_order is not None:
                change = change.index_select(-1, self.state_order)
            logits = logits + change
        return forbid(logits, self.mask)

    def log_probs(self, inputs: Tensor | None = None) -> Tensor:
        """The normalised logits, log p(z_1 = k | inputs), of the same shape and with the same errors as `forward`.

        >>> round(Initial(3).log_probs().exp().sum().item(), 4)
        1.0
        """
        return self(inputs).log_softmax(-1)

    def log_prior(self) -> Tensor:
        """The log-density of the probabilities under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        if self.net is not None:
            return normal_log_prob_of(self, self.prior)
        return dirichlet_log_prob(table(forbid(self.logits, self.mask), 1), self.prior)

    @property
    def prior_has_mode(self) -> bool:
        """Whether no concentration of the prior is below 1."""
        return self.net is not None or has_mode(self.prior)

    def conjugate_prior(self) -> DirichletRows:
        """The Dirichlet prior, a flat one by default; see `Part`."""
        if self.net is not None:
            super().conjugate_prior()
        return dirichlet_law(self, self.mask)

    def expected_statistics(self, weights: Tensor, inputs: Tensor | None = None) -> Statistics:
        """The expected number of sequences that start in each state.

        Args:
            weights: (*lead, K), posterior probabilities of the first state, summed over sequences.
            inputs: not read.

        Returns:
            "counts" (*lead, K).
        """
        return {"counts": weights.double()}

    def maximize(self, statistics: Statistics) -> Events:
        """Set the probabilities to the most probable ones: (counts_k + concentration_k - 1) / sum.

        >>> initial = Initial(2)
        >>> _ = initial.maximize(initial.expected_statistics(torch.tensor([3.0, 1.0])))
        >>> initial.log_probs().exp().detach()
        tensor([0.7500, 0.2500])
        """
        logits = table(forbid(self.logits, self.mask), 1).detach()
        log_probs, _ = dirichlet_mode(statistics["counts"], self.prior, logits, LEAST_LOG_PROB)
        assign(self.logits, unforbid(log_probs, self.mask))
        return {}

    @property
    def closed_form(self) -> bool:
        """Whether `maximize` is the M-step: not with `context`, since networks have none in closed form."""
        return self.net is None

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation, or the logits have a `PyroSample` prior.

        >>> initial = Initial(3, mask=torch.tensor([True, True, False]))
        >>> initial.relabel([2, 0, 1])
        >>> initial().isfinite()
        tensor([False,  True,  True])
        """
        order = as_permutation(permutation, self.num_states)
        permute(self, order, ["logits", "mask"])
        if self.net is None:
            permute(self, order, ["prior"])
        else:
            self._reorder(order)

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers; of a table one less than the states where a chain may start.

        >>> Initial(3).num_free_parameters, Initial(3, mask=torch.tensor([True, True, False])).num_free_parameters
        (2, 1)
        """
        return num_trainable(self) if self.context else num_free(self, mask=self.mask)
