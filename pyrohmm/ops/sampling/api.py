"""Exact posterior sampling of state paths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrohmm.ops.chain import Impl, choose, clear_padding, fit_chain
from pyrohmm.ops.forward_backward.api import filter as forward_filter


def sample(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    sample_shape: Sequence[int] = (),
    generator: torch.Generator | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Draw whole state paths from the posterior (forward filtering, backward sampling).

    .. math:: z_T \sim \alpha_T, \qquad z_t \mid z_{t+1} \;\propto\; \alpha_t(z_t)\, e^{A_{t, z_t z_{t+1}}}

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        lengths: (...), int64; all T when None.
        sample_shape: shape of independent draws.
        generator: source of the random numbers; torch's global one when None.
        impl: which implementation.

    Returns:
        (*sample_shape, ..., T) int64; -1 past the length, and everywhere when no path is possible. A path depends
        on the random numbers only through one uniform a step, so that seeds mean the same for every implementation.

    Raises:
        TypeError, ValueError, NotImplementedError: as `pyrohmm.ops.log_partition`.

    Reference:
        Scott (2002), "Bayesian methods for hidden Markov models", section 2.1.

    Example:
        >>> stay = torch.eye(2).log()
        >>> paths = sample(torch.zeros(2), stay, torch.zeros(3, 2), sample_shape=(100,))
        >>> paths.shape, (paths == paths[:, :1]).all()
        (torch.Size([100, 3]), tensor(True))
    """
    chain = fit_chain(initial_logits, transition_logits, observation_logits, lengths)
    match choose(impl, chain.observation):
        case "cpu":
            from pyrohmm.ops.sampling import cpu as kernel
        case "gpu":
            from pyrohmm.ops.sampling import gpu as kernel
        case "reference":
            from pyrohmm.ops.sampling import reference as kernel

            chain = clear_padding(chain)
    with torch.no_grad():
        log_probs, _ = forward_filter(initial_logits, transition_logits, observation_logits, lengths=lengths, impl=impl)
        shape = (*sample_shape, *chain.batch_shape, chain.num_steps)
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64, device=log_probs.device)
        return kernel.sample(chain, log_probs, uniforms)
