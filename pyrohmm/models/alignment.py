"""Which state of one model is which of another: states have no names of their own."""

import scipy
import torch
from torch import Tensor

from pyrohmm.distributions import MarkovChain

States = MarkovChain | Tensor


def overlap(
    states: States, reference: States, num_states: int | None = None, num_reference: int | None = None
) -> Tensor:
    r"""The confusion matrix of two accounts of the same steps: in how many steps are they in states i and j?

    .. math:: C_{ij} = \sum_{n,t} p(z_{nt} = i)\; q(z_{nt} = j)

    Args:
        states: a posterior (its marginals), or labels (..., T) int64, -1 where unknown, e.g. decoded states.
        reference: the other account of the same sequences, likewise.
        num_states: K, with labels; their largest and one if None.
        num_reference: K', likewise.

    Returns:
        (K, K'), float64, steps; one that is unknown or past the length in either counts for nothing.

    Raises:
        TypeError: neither a `MarkovChain` nor an int64 tensor.
        ValueError: they have not the same sequences and steps, or a label is outside -1, ..., K - 1.

    Example:
        >>> overlap(torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 1, -1]))
        tensor([[0., 2.],
                [0., 1.],
                [0., 0.]], dtype=torch.float64)
    """
    p = _marginals("states", states, num_states)
    q = _marginals("reference", reference, num_reference)
    if p.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            f"reference: expected the sequences and steps of states, {tuple(p.shape[:-1])}, got {tuple(q.shape[:-1])}"
        )
    return p.flatten(0, -2).mT @ q.flatten(0, -2).to(p.device)


def match_states(overlap: Tensor) -> Tensor:
    r"""The order of states that agrees best with a reference: the permutation of the largest total overlap.

    .. math:: \max_\pi \sum_j C_{\pi(j), j}

    Args:
        overlap: (K, K'), of K states with K' <= K of the reference, e.g. from `overlap`.

    Returns:
        (K,) int64: state permutation[j] is the one that matches state j of the reference. With K' < K the states that
        match none follow behind, in their own order.

    Raises:
        ValueError: another shape, more states in the reference, or entries that are not finite.

    Reference:
        Kuhn (1955), "The Hungarian method for the assignment problem".

    Example:
        >>> match_states(torch.tensor([[0.0, 5.0], [1.0, 1.0], [4.0, 2.0]]))
        tensor([2, 0, 1])
    """
    if overlap.dim() != 2 or overlap.shape[0] < overlap.shape[1]:
        raise ValueError(
            "overlap: expected shape (K, K') with K' <= K, at least as many states as in the reference, "
            f"got {tuple(overlap.shape)}"
        )
    if not overlap.isfinite().all():
        raise ValueError("overlap: expected finite entries, got others")
    num_states = len(overlap)
    matched = scipy.optimize.linear_sum_assignment(overlap.mT.cpu().numpy(), maximize=True)[1].tolist()
    return torch.tensor([*matched, *(state for state in range(num_states) if state not in matched)])


def _marginals(name: str, states: States, num_states: int | None) -> Tensor:
    """p(z_t = k), (..., T, K) float64; zero where nothing is known."""
    if isinstance(states, MarkovChain):
        return states.marginals.detach().double()
    if not isinstance(states, Tensor) or states.dtype != torch.int64:
        got = states.dtype if isinstance(states, Tensor) else type(states).__name__
        raise TypeError(f"{name}: expected a MarkovChain or int64 labels, got {got}")
    largest = int(states.max())
    num_states = largest + 1 if num_states is None else num_states
    if largest >= num_states or int(states.min()) < -1:
        raise ValueError(f"{name}: expected labels in -1, ..., {num_states - 1}, got {states.min()} to {largest}")
    return (states.unsqueeze(-1) == torch.arange(num_states, device=states.device)).double()
