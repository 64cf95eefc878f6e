"""What tests by simulation share: p-values, bands that hold everywhere at once, seeds."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.models import HMM

# Numbers in a block of replicated sequences, above which another block begins.
_BLOCK = 4_000_000


class Band(NamedTuple):
    """Where curves lie under the model: `level` of the replicated ones stay inside everywhere; see `band`."""

    lower: Tensor
    upper: Tensor


def p_value(observed: Tensor, replicated: Tensor, *, two_sided: bool = False) -> Tensor:
    r"""The p-value of a Monte Carlo test: how unusual is a number among those that the model makes?

    .. math:: p = \frac{1 + \#\{r : T_r \ge T\}}{1 + R}

    If the observed number is exchangeable with the replicated ones, P(p <= a) <= a for every a: the rate of false
    alarms is exact. Ties count against the finding, NaN (of numbers that nothing is known about) is no finding.

    Args:
        observed: (...).
        replicated: (R, ...).
        two_sided: whether small numbers are unusual too: twice the smaller of both sides, at most 1.

    Returns:
        (...), float64, 1 where nothing was replicated.

    Reference:
        Davison and Hinkley (1997), "Bootstrap methods and their application", section 4.2.

    Example:
        >>> p_value(torch.tensor([9.5, 0.0]), torch.arange(19.0).unsqueeze(-1).expand(19, 2))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    size = 1 + len(replicated)
    upper = (1 + (~(replicated < observed)).sum(0)).double() / size
    if not two_sided:
        return upper
    lower = (1 + (~(replicated > observed)).sum(0)).double() / size
    return (2 * torch.minimum(upper, lower)).clamp(max=1.0)


def band(replicated: Tensor, level: float) -> Band:
    """The narrowest band between order statistics that holds `level` of the replicated curves as a whole.

    Args:
        replicated: (R, M), R curves at M places.
        level: from 0 to 1. With few curves the band is that of all of them.

    Returns:
        `Band` of two tensors (M,).

    Reference:
        Davison and Hinkley (1997), "Bootstrap methods and their application", section 4.2.4.

    Example:
        >>> curves = torch.arange(100.0).unsqueeze(-1).expand(100, 3)
        >>> band(curves, 0.9)
        Band(lower=tensor([5., 5., 5.]), upper=tensor([94., 94., 94.]))
    """
    size, ordered = len(replicated), replicated.sort(0).values
    sorted_columns, columns = ordered.mT.contiguous(), replicated.mT.contiguous()
    # Between which order statistics a curve lies: its depth at its outermost place. Ties are inside.
    up_to = torch.searchsorted(sorted_columns, columns, right=True)
    from_here = size - torch.searchsorted(sorted_columns, columns, right=False)
    depth = (torch.minimum(up_to, from_here) - 1).amin(0).sort().values
    outside = math.floor((1 - level) * size + 1e-9)
    cut = int(depth[outside])
    return Band(ordered[cut], ordered[size - 1 - cut])


def replicates(model: HMM, data: Sequences, number: int, seed: int) -> Iterator[Sequences]:
    """Sets of sequences drawn from the model, with the lengths, inputs and missing entries of the data.

    Args:
        model: its parameters have values, no priors.
        data: N sequences.
        number: of sets.
        seed: of the draws.

    Returns:
        `number` sets of N sequences, with their states as labels.
    """
    size = len(data) * data.num_steps * max(data.event_shape.numel(), model.num_states)
    block = max(1, _BLOCK // size)
    for start in range(0, number, block):
        count = min(block, number - start)
        inputs = None if data.inputs is None else data.inputs.repeat(count, 1, 1)
        drawn = model.simulate(
            count * len(data),
            data.num_steps,
            lengths=data.lengths.repeat(count),
            inputs=inputs,
            # Not the seeds of neighbours: seed + start would give two calls with nearby seeds the same draws.
            seed=derived_seed(seed, start),
        )
        for i in range(count):
            yield like(data, drawn[i * len(data) : (i + 1) * len(data)])


def like(data: Sequences, drawn: Sequences) -> Sequences:
    """Drawn sequences as they would have been seen: only where the data has something."""
    return Sequences(drawn.x, data.lengths, inputs=data.inputs, labels=drawn.labels, mask=data.mask)


def derived_seed(seed: int, number: int) -> int:
    """A seed of its own for each number."""
    generator = torch.Generator().manual_seed(seed)
    generator.manual_seed(int(torch.randint(2**31, (), generator=generator)) + number)
    return int(torch.randint(2**31, (), generator=generator))


def check_model(model: Any, data: Any) -> None:
    """A TypeError or ValueError unless these are a model and `Sequences` with something observed."""
    if not isinstance(model, HMM):
        raise TypeError(f"model: expected a pyrohmm.models.HMM, got {type(model).__name__}")
    check_data(data)


def check_data(data: Any) -> None:
    """A TypeError or ValueError unless these are `Sequences` with something observed."""
    if not isinstance(data, Sequences):
        raise TypeError(f"data: expected pyrohmm.data.Sequences, got {type(data).__name__}")
    if data.num_observed == 0:
        raise ValueError("data: expected at least one observed step, got none")


def check_number(name: str, value: Any, least: int) -> None:
    """A TypeError or ValueError unless this is an int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_level(value: Any) -> None:
    """A ValueError unless this is a share, between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {value!r}")
