"""Max-product decoding in plain torch: the best path and the k best paths."""

import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain, finite


def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """Best path (*batch, T) and its total potential (*batch). Ties go to the lowest state."""
    states, log_prob = k_best(chain, 1)
    return states.squeeze(-2), log_prob.squeeze(-1)


def k_best(chain: Chain, k: int) -> tuple[Tensor, Tensor]:
    """The k best paths (*batch, k, T) and their total potentials (*batch, k), best first.

    Each state keeps its k best partial paths; a step ranks the K * k continuations into each state (list Viterbi).
    """
    batch, num_states, num_steps = chain.batch_shape, chain.num_states, chain.num_steps
    if num_steps == 0:
        best = chain.observation.new_full((*batch, k), -torch.inf)
        best[..., 0] = 0.0
        return torch.full((*batch, k, 0), -1, device=best.device), best
    # Rank r of state s is entry s * k + r of the flattened scores.
    score = (chain.initial + chain.observation[..., 0, :]).expand(*batch, num_states).unsqueeze(-1)
    nothing = score.new_full((*batch, num_states, k - 1), -torch.inf)
    score = torch.cat([score, nothing], -1)
    # Scores are kept relative to the best one, whose sum runs in float64: float32 stays accurate at any T.
    total = score.new_zeros(batch, dtype=torch.float64)
    pointers = []
    stay = torch.arange(num_states * k, device=score.device).view(num_states, k).expand(*batch, -1, -1)
    for t in range(1, num_steps):
        shift = finite(score.detach().flatten(-2).amax(-1))
        score, total = score - shift[..., None, None], total + shift
        onward = (score.unsqueeze(-2) + chain.transition_at(t - 1).unsqueeze(-1)).transpose(-3, -2)
        best, pointer = _top(onward.flatten(-2), k)
        best = best + chain.observation[..., t, :].unsqueeze(-1)
        inside = (t < chain.lengths)[..., None, None]
        score = torch.where(inside, best, score)
        pointers.append(torch.where(inside, pointer, stay))
    best, entry = _top(score.flatten(-2), k)
    log_prob = (total.unsqueeze(-1) + best).to(score.dtype)
    valid, possible = chain.valid, best > -torch.inf
    states = []
    for t in reversed(range(num_steps)):
        states.append(torch.where(valid[..., t, None] & possible, entry // k, -1))
        if t > 0:
            entry = pointers[t - 1].flatten(-2).gather(-1, entry)
    # An empty sequence has one path, of total potential zero.
    empty = (chain.lengths == 0).unsqueeze(-1)
    nothing = torch.where(torch.arange(k, device=best.device) == 0, 0.0, -torch.inf).to(score.dtype)
    return torch.stack(states[::-1], -1), torch.where(empty, nothing, log_prob)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, padded with -inf; ties go to the lowest index."""
    if k == 1:  # torch.max is several times faster than a sort, and returns the first of equal entries
        best, index = scores.max(-1, keepdim=True)
        return best, index
    best, index = torch.sort(scores, dim=-1, descending=True, stable=True)
    best, index = best[..., :k], index[..., :k]
    missing = k - best.shape[-1]
    if missing > 0:
        best = torch.nn.functional.pad(best, (0, missing), value=-torch.inf)
        index = torch.nn.functional.pad(index, (0, missing))
    return best, index
