"""Counts of symbols."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor

from pyrohmm.nn._common import count, select
from pyrohmm.nn.emission._laws import Multinomial
from pyrohmm.nn.emission.categorical import CategoricalEmission
from pyrohmm.nn.part import BLOCK, Statistics, add_up, table


class MultinomialEmission(CategoricalEmission):
    r"""How often each of V symbols occurs in a step, such as the words of a text, given how many there are.

    With p_kv = softmax_v(logits_kv),

    .. math:: p(x \mid z = k) = \frac{n!}{\prod_v x_v!} \prod_v p_{kv}^{x_v}, \qquad n = \sum_v x_v .

    The number n tells nothing of the state. Of counts of which some are missing, the law is that of the others given
    their sum; EM then expects of a missing symbol n p_kv / (the sum of p_k over the observed ones).

    Args:
        num_states: K.
        num_symbols: V.
        total_count: n where observations are simulated; those that are given have their own.
        probs: the start, positive weights (V,) for all states or (K, V), e.g. counts; uniform if None.
        noise: size of the normal noise added to the logits at the start, unless `probs` is (K, V).
        prior: `Dirichlet` on each state's probabilities, with concentrations (V,) or (K, V) of at least 1.
        generator: source of the noise; torch's global one if None.

    Attributes:
        logits: (K, V) parameter.
        num_states, event_shape, order: K, (V,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `probs` of another shape or not positive, a `prior` that
            does not fit.

    Reference:
        Bishop (2006), "Pattern recognition and machine learning", section 2.2.

    >>> emission = MultinomialEmission(2, 2, total_count=3, probs=[[0.5, 0.5], [0.1, 0.9]])
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.log_prob(torch.tensor([0.0, 2.0])).exp().detach(), law.sample().sum(-1)
    (tensor([0.2500, 0.8100]), tensor([3., 3.]))
    """

    def __init__(
        self,
        num_states: int,
        num_symbols: int,
        *,
        total_count: int = 1,
        probs: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, num_symbols, probs=probs, noise=noise, prior=prior, generator=generator)
        self.event_shape = torch.Size([num_symbols])
        self.total_count = count("total_count", total_count)

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        return Multinomial(select(self.logits, state), self.total_count, observed)

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
        sums: Statistics = {}
        probs = table(self.logits.detach(), 2).double().softmax(-1)
        steps = max(1, BLOCK // max(x.shape[-1], weights.shape[-1]))
        for start in range(0, max(len(x), 1), steps):
            rows = slice(start, start + steps)
            block, share = x[rows].double(), weights[..., rows, :].double()
            if observed is None:
                add_up(sums, {"counts": share.mT @ block})
                continue
            seen = observed[rows].double()
            block = torch.where(observed[rows], block, 0.0)
            # A step in which nothing was observed has no symbols.
            known = (seen @ probs.mT).clamp_min(torch.finfo(seen.dtype).tiny)
            missing = share * block.sum(-1, keepdim=True) / known
            add_up(sums, {"counts": share.mT @ block + probs * (missing.mT @ (1 - seen))})
        return sums

    def features(self, x: Tensor) -> Tensor:
        """Square roots of the proportions of the symbols, (M, V)."""
        return (x / x.sum(-1, keepdim=True).clamp_min(1)).sqrt()
