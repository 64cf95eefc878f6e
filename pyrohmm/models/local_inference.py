"""The best law of codes and states, of those that are independent of each other, for Gaussian evidence of the codes."""

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrohmm.distributions import MarkovChain
from pyrohmm.ops.chain import valid_steps


class LocalInference(NamedTuple):
    """What is inferred of each sequence.

    Attributes:
        states: q(z), batch shape (N,).
        codes: q(h_t), batch shape (N, T), event shape (D,); without meaning where nothing was observed.
    """

    states: MarkovChain
    codes: dist.MultivariateNormal


def local_inference(
    prior: MarkovChain, law: Any, pseudo: Tensor, precision: Tensor, observed: Tensor, num_rounds: int
) -> LocalInference:
    r"""Coordinate ascent in q(z) q(h), for p(z) p(h | z) and observations a_t of h_t, by forward-backward, unrolled.

    .. math:: q(h_t) \propto N(a_t; h_t, \mathrm{diag}(j_t)^{-1}) \prod_k N(h_t; \mu_k, P_k^{-1})^{w_{tk}}, \qquad
        q(z) \propto p(z) \prod_t e^{E_q \log N(h_t; \mu_{z_t}, P_{z_t}^{-1})},

    with the marginals w of q(z), at first those of p(z). Steps that were not observed say nothing of z.

    Args:
        prior: p(z), of batch shape (N,).
        law: p(h_t | z_t), Gaussian, of batch shape (K,) and event shape (D,).
        pseudo: a, (N, T, D).
        precision: j, (N, T, D), not negative.
        observed: bool (N, T); a and j are not read where it is False.
        num_rounds: of the ascent, at least 1.

    Raises:
        ValueError: `law` is not Gaussian.

    Reference:
        Johnson, Duvenaud, Wiltschko, Datta and Adams (2016), "Composing graphical models with neural networks for
        structured representations and fast inference", section 4.

    Example:
        >>> prior = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=1)
        >>> law = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> one = torch.ones(1, 1, 1)
        >>> local_inference(prior, law, 3 * one, one, one[..., 0] > 0, 1).states.marginals.round(decimals=2)
        tensor([[[0.0500, 0.9500]]])
    """
    precisions = _precision_matrix(law)  # (K, D, D)
    natural = (precisions @ law.mean.unsqueeze(-1)).squeeze(-1)
    seen = observed.unsqueeze(-1)
    precision, pseudo = torch.where(seen, precision, 0.0), torch.where(seen, pseudo, 0.0)
    valid = torch.ones_like(observed)
    if prior.lengths is not None:
        valid = valid_steps(prior.lengths, prior.num_steps)
    # Past the length nothing else would be there.
    evidence = torch.diag_embed(precision + ~valid.unsqueeze(-1))

    def codes(weights: Tensor) -> dist.MultivariateNormal:
        total = evidence + (weights @ precisions.flatten(1)).unflatten(-1, precisions.shape[1:])
        zero = total.new_zeros(total.shape[-1])
        scale = dist.MultivariateNormal(zero, precision_matrix=total, validate_args=False).scale_tril
        linear = (precision * pseudo + weights @ natural).unsqueeze(-1)
        mean = (scale @ (scale.mT @ linear)).squeeze(-1)
        return dist.MultivariateNormal(mean, scale_tril=scale, validate_args=False)

    chain, found = prior, codes(prior.marginals)
    for _ in range(num_rounds):
        # E log N(h; loc_k, 1 / P_k) is that at the mean, less half the trace of P_k times the covariance.
        spread = found.covariance_matrix.flatten(-2) @ precisions.flatten(1).mT
        unary = law.log_prob(found.mean.unsqueeze(-2)) - 0.5 * spread
        chain = MarkovChain(
            prior.initial_logits, prior.transition_logits, torch.where(seen, unary, 0.0), lengths=prior.lengths
        )
        found = codes(chain.marginals)
    return LocalInference(chain, found)


def _precision_matrix(law: Any) -> Tensor:
    """The inverse covariance (..., D, D) of a Gaussian.

    Raises:
        ValueError: it is none.
    """
    base = getattr(law, "base_dist", None)
    if isinstance(base, torch.distributions.Normal):
        return torch.diag_embed(base.scale**-2)
    if not hasattr(law, "precision_matrix"):
        raise ValueError(f"emission: expected Gaussian laws, got {type(law).__name__}")
    return law.precision_matrix
