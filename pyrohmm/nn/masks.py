"""Which transitions are allowed: masks for `mask=` of the transition parts."""

import torch
from torch import Tensor

from pyrohmm.nn._common import count


def left_to_right(num_states: int, *, skip: int | None = 0, stay: bool = True, cyclic: bool = False) -> Tensor:
    """The edges of a left-to-right (Bakis) chain: from i to i (if it may stay), i + 1, ..., i + 1 + skip.

    A state without an edge, such as the last one if it may not stay, stays for good. For a chain that starts in the
    first state, give `Initial` the mask `torch.arange(K) == 0`.

    Args:
        num_states: K.
        skip: how many states may be skipped in one step; None for any number.
        stay: whether a state may follow itself.
        cyclic: whether the first state comes after the last one.

    Returns:
        (K, K) bool, [from, to], True where an edge is allowed.

    Raises:
        TypeError, ValueError: `num_states` is no positive int, or `skip` no int of at least 0.

    Reference:
        Bakis (1976), "Continuous speech recognition via centisecond acoustic states".

    >>> left_to_right(4, skip=1).int()
    tensor([[1, 1, 1, 0],
            [0, 1, 1, 1],
            [0, 0, 1, 1],
            [0, 0, 0, 1]], dtype=torch.int32)
    >>> from pyrohmm.nn import Initial, Transition
    >>> initial = Initial(4, mask=torch.arange(4) == 0)
    >>> transition = Transition(4, mask=left_to_right(4))
    """
    states = torch.arange(count("num_states", num_states))
    step = states - states.unsqueeze(-1)
    if cyclic:
        step = step % num_states
    mask = step >= (0 if stay else 1)
    if skip is not None:
        mask &= step <= 1 + count("skip", skip, least=0)
    return mask | (~mask.any(-1)).diag_embed()


def banded(num_states: int, width: int, *, cyclic: bool = False) -> Tensor:
    """The edges between states at most `width` apart, for states in an order, such as levels or places.

    Args:
        num_states: K.
        width: the largest |i - j|; 0 for none but to the state itself.
        cyclic: whether the first state is next to the last one.

    Returns:
        (K, K) bool, [from, to], True where an edge is allowed.

    Raises:
        TypeError, ValueError: `num_states` is no positive int, or `width` no int of at least 0.

    >>> banded(4, 1).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 1, 0],
            [0, 1, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    >>> banded(4, 1, cyclic=True)[0]
    tensor([ True,  True, False,  True])
    """
    states = torch.arange(count("num_states", num_states))
    distance = (states - states.unsqueeze(-1)).abs()
    if cyclic:
        distance = torch.minimum(distance, num_states - distance)
    return distance <= count("width", width, least=0)
