"""The E-step: how often each start, transition and state is expected, by the posterior over paths."""

from typing import Literal

import torch
from torch import Tensor

from pyrohmm import ops
from pyrohmm.models.hmm import Potentials
from pyrohmm.ops.forward_backward.api import value_and_gradient

Assignment = Literal["soft", "hard", "labels"]


def expect(
    potentials: Potentials, lengths: Tensor, assignment: Assignment = "soft", labels: Tensor | None = None
) -> tuple[Tensor, Potentials]:
    r"""What EM maximises, and the weight that it gives to each log-potential in the M-step.

    The weights are those of the posterior over paths ("soft"), the most probable path ("hard", Viterbi training) or
    the given path ("labels"). They are the gradient of the value in the potentials: the gradient of log Z is the
    vector of posterior marginals. So each weight has its potential's shape, and where a potential is shared by steps
    or sequences its weight is the sum over them.

    Args:
        potentials: of chains of batch shape (..., N).
        lengths: (N,).
        assignment: which paths.
        labels: (N, T) int64, with "labels".

    Returns:
        log Z, or the potential of the path, (..., N); and the weights, with the shapes of the potentials.

    Example:
        >>> flat = Potentials(torch.zeros(2), torch.zeros(2, 2), torch.zeros(1, 3, 2))
        >>> value, weights = expect(flat, torch.tensor([3]))
        >>> round(value.exp().item(), 4), weights.transition
        (8.0, tensor([[0.5000, 0.5000], [0.5000, 0.5000]]))
    """
    if assignment == "soft":
        value, weights = value_and_gradient(*potentials, lengths=lengths)
        return value, Potentials(*weights)
    detached = [logits.detach() for logits in potentials]
    states, possible = labels, None
    if assignment == "hard":
        states, best = ops.viterbi(*detached, lengths=lengths)
        # Where there is no path, there is none to be told.
        possible = best > -torch.inf
    assert states is not None  # labels, as the caller has seen to
    leaves = Potentials(*(logits.requires_grad_() for logits in detached))
    with torch.enable_grad():
        value = path_potential(leaves, states)
        weights = Potentials(*torch.autograd.grad(value.sum(), leaves))
    value = value.detach()
    return value if possible is None else torch.where(possible, value, -torch.inf), weights


def path_potential(potentials: Potentials, states: Tensor) -> Tensor:
    """The total potential of given paths, (..., N).

    Args:
        potentials: of chains of batch shape (..., N).
        states: (..., N, T) int64, -1 past the length.

    Example:
        >>> chain = Potentials(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 5.0], [0.0, 0.0]]), torch.zeros(1, 3, 2))
        >>> path_potential(chain, torch.tensor([[0, 1, -1]]))
        tensor([6.])
    """
    initial, transition, observation = potentials
    shape = torch.broadcast_shapes(states.shape[:-1], observation.shape[:-2])
    states = states.expand(*shape, -1)
    valid, index = states >= 0, states.clamp(min=0)
    # Indices into what is there, not into what it would be expanded to: the gradient has the same size.
    first = initial[(*_places(initial, 1, shape), index[..., 0])]
    pairs = index[..., :-1], index[..., 1:]
    moves = transition[(*_places(transition, 2, pairs[0].shape), *pairs)]
    seen = observation.expand(*shape, *observation.shape[-2:]).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    total = torch.where(valid, seen, 0.0).sum(-1) + torch.where(valid[..., 1:], moves, 0.0).sum(-1)
    return total + torch.where(valid[..., 0], first, 0.0)


def _places(logits: Tensor, own: int, shape: torch.Size) -> tuple[Tensor, ...]:
    """Indices of the dims before the last `own` of a tensor that broadcasts to `shape`."""
    sizes = logits.shape[:-own]
    offset = len(shape) - len(sizes)
    return tuple(
        torch.arange(size, device=logits.device).reshape(-1, *[1] * (len(shape) - offset - i - 1))
        for i, size in enumerate(sizes)
    )
