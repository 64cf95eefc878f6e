"""Forward filtering, backward sampling in plain torch, by inversion of uniform numbers."""

import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain, finite, logsumexp


def sample(chain: Chain, log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Paths drawn from the posterior, one uniform number a step.

    Args:
        chain: the chain.
        log_probs: (*batch, T, K), filtered log-probabilities; -inf past the length.
        uniforms: (*sample_shape, *batch, T), in [0, 1), float64.

    Returns:
        (*sample_shape, *batch, T) int64; -1 past the length and where no path is possible.
    """
    shape, num_states = uniforms.shape[:-1], chain.num_states
    states: list[Tensor] = []
    following = torch.full(shape, -1, device=uniforms.device)
    for t in reversed(range(chain.num_steps)):
        logits = log_probs[..., t, :].expand(*shape, num_states)
        if t + 1 < chain.num_steps:
            matrix = chain.transition_at(t).expand(*shape, num_states, num_states)
            column = following.clamp(min=0)[..., None, None].expand(*shape, num_states, 1)
            # There is no following state at the last valid step.
            logits = torch.where((following >= 0).unsqueeze(-1), logits + matrix.gather(-1, column).squeeze(-1), logits)
        following = _invert(logits, uniforms[..., t])
        states.append(following)
    if not states:
        return torch.full((*shape, 0), -1, device=uniforms.device)
    paths = torch.stack(states[::-1], -1)
    # Where the forward pass died on the way, the steps before it are no part of any path.
    complete = (paths >= 0).sum(-1) == chain.lengths
    return torch.where(complete.unsqueeze(-1), paths, -1)


def _invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """The state at which the cumulative probability passes `uniform`; -1 where all logits are -inf."""
    normalizer = logsumexp(logits, -1).unsqueeze(-1)
    probs = (logits - finite(normalizer)).to(uniform.dtype).exp()
    cumulative = probs.cumsum(-1)
    state = (cumulative <= uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(-1)
    # Rounding must not carry the choice past the last state that has any mass.
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.where(cumulative[..., -1] > 0, torch.minimum(state, last), -1)
