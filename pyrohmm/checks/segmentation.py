"""Where a path changes its state, and how well that agrees with where it should."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrohmm.distributions import MarkovChain


class BoundaryScores(NamedTuple):
    """How well change points that were found agree with the true ones.

    Attributes:
        precision: share of those found that are true; 1 if none was found.
        recall: share of the true ones that were found; 1 if there are none.
        f1: 2 matched / (found + true), the harmonic mean of both; 1 if there are neither.
        num_matched, num_found, num_true: pairs, and how many there are of each kind.
    """

    precision: float
    recall: float
    f1: float
    num_matched: int
    num_found: int
    num_true: int


def change_points(states: MarkovChain | Tensor) -> list[Tensor]:
    """The first step of each segment of a path but the first segment.

    Args:
        states: a posterior, of which the most probable paths are taken, or paths (N, T) or (T,), integers, -1 past the
            length. A -1 before it (unknown) is a segment like others.

    Returns:
        For each of the N sequences an int64 tensor of increasing steps; for a single one a list of one.

    Raises:
        TypeError: neither a posterior nor a tensor of integers.
        ValueError: not of shape (N, T) or (T,).

    Example:
        >>> change_points(torch.tensor([[0, 0, 1, 1, 0], [2, 2, 2, -1, -1]]))
        [tensor([2, 4]), tensor([], dtype=torch.int64)]
    """
    paths = states.mode if isinstance(states, MarkovChain) else states
    if not isinstance(paths, Tensor) or paths.is_floating_point():
        raise TypeError(f"states: expected a MarkovChain or a tensor of integers, got {type(states).__name__}")
    if not 1 <= paths.dim() <= 2:
        raise ValueError(f"states: expected shape (N, T) or (T,), got {tuple(paths.shape)}")
    paths = paths.reshape(-1, paths.shape[-1])
    # The length is what lies before the trailing -1.
    within = (paths >= 0).flip(-1).cummax(-1).values.flip(-1)
    changed = (paths[:, 1:] != paths[:, :-1]) & within[:, 1:]
    return [row.nonzero().squeeze(-1) + 1 for row in changed]


def boundary_scores(found: Iterable[Any] | Tensor, true: Iterable[Any] | Tensor, tolerance: int) -> BoundaryScores:
    """Precision, recall and F1 of the change points of one sequence.

    One that was found and a true one can be a pair if they are at most `tolerance` steps apart. Each belongs to one
    pair at most, and there are as many pairs as possible.

    Args:
        found: steps, in any order.
        true: steps, in any order.
        tolerance: in steps, at least 0.

    Returns:
        `BoundaryScores`.

    Raises:
        ValueError: a negative tolerance, or steps that are no list of numbers.

    Example:
        >>> boundary_scores([10, 31, 50], [12, 30, 70, 90], tolerance=3).f1
        0.5714285714285714
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected at least 0 steps, got {tolerance}")
    ours, theirs = _steps("found", found), _steps("true", true)
    num_matched = i = j = 0
    # In order of time: the earlier of two that are too far apart has no partner left.
    while i < len(ours) and j < len(theirs):
        if abs(ours[i] - theirs[j]) <= tolerance:
            num_matched, i, j = num_matched + 1, i + 1, j + 1
        elif ours[i] < theirs[j]:
            i += 1
        else:
            j += 1
    return BoundaryScores(
        num_matched / len(ours) if ours else 1.0,
        num_matched / len(theirs) if theirs else 1.0,
        2 * num_matched / (len(ours) + len(theirs)) if ours or theirs else 1.0,
        num_matched,
        len(ours),
        len(theirs),
    )


def _steps(name: str, steps: Iterable[Any] | Tensor) -> list[float]:
    """Sorted."""
    values = torch.as_tensor(steps if isinstance(steps, Tensor) else list(steps))
    if values.dim() != 1 or values.is_complex():
        raise ValueError(f"{name}: expected steps of shape (C,), got shape {tuple(values.shape)}")
    return sorted(values.tolist())
