"""Numbers that sum up sequences, for `posterior_predictive_check`: of their states, or of their observations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrohmm.data import Sequences


def dwell_times(data: Sequences, num_states: int, longest: int = 10) -> Tensor:
    """How long states are stayed in: for each state, the share of its visits that last 1, 2, ... steps.

    A visit that the end of a sequence cuts short counts with the steps it has.

    Args:
        data: N sequences with labels.
        num_states: K.
        longest: L; the last share is that of all visits of L steps or more.

    Returns:
        (K, L), float64; zeros for a state that is never visited.

    Raises:
        ValueError: no labels, or one that is no state.

    Example:
        >>> dwell_times(Sequences(torch.zeros(1, 6), labels=torch.tensor([[0, 1, 1, 1, 0, 0]])), 2, longest=3)
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    labels, known = _labels(data, num_states)
    starts = torch.ones_like(known)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    # Steps of all sequences in a row; each visit begins with a start.
    starts, states = starts[data.valid], labels[data.valid]
    lasted = (starts.cumsum(0) - 1).bincount()
    states = states[starts]
    lasted, states = lasted[states >= 0].clamp(max=longest), states[states >= 0]
    counts = (states * longest + lasted - 1).bincount(minlength=num_states * longest).reshape(num_states, longest)
    return counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)


def transition_counts(data: Sequences, num_states: int) -> Tensor:
    """How often each state is followed by each other one, or itself.

    Args:
        data: N sequences with labels.
        num_states: K.

    Returns:
        (K, K), float64, [from, to].

    Raises:
        ValueError: no labels, or one that is no state.

    Example:
        >>> transition_counts(Sequences(torch.zeros(1, 4), labels=torch.tensor([[0, 1, 1, 1]])), 2)
        tensor([[0., 1.],
                [0., 2.]], dtype=torch.float64)
    """
    labels, known = _labels(data, num_states)
    pairs = labels[:, :-1] * num_states + labels[:, 1:]
    pairs = pairs[known[:, :-1] & known[:, 1:]]
    return pairs.bincount(minlength=num_states**2).reshape(num_states, num_states).double()


def state_occupancy(data: Sequences, num_states: int) -> Tensor:
    """The share of all steps that are spent in each state.

    Args:
        data: N sequences with labels.
        num_states: K.

    Returns:
        (K,), float64.

    Raises:
        ValueError: no labels, or one that is no state.

    Example:
        >>> state_occupancy(Sequences(torch.zeros(1, 4), labels=torch.tensor([[0, 1, 1, 1]])), 2)
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    labels, known = _labels(data, num_states)
    counts = labels[known].bincount(minlength=num_states).double()
    return counts / counts.sum().clamp(min=1)


def autocorrelation(data: Sequences, lags: int = 5) -> Tensor:
    r"""The correlation of observations with those 1, 2, ... steps before, over all pairs of which both are known.

    .. math:: \hat\rho_l = \frac{\mathrm{mean}\,(x_t - \bar x)(x_{t-l} - \bar x)}{\mathrm{mean}\,(x_t - \bar x)^2}

    Args:
        data: N sequences.
        lags: L.

    Returns:
        (L, *event), float64; 0 where no pair is known or nothing varies.

    Example:
        >>> autocorrelation(Sequences(torch.tensor([[1.0, -1.0, 1.0, -1.0]])), lags=2)
        tensor([-1.,  1.], dtype=torch.float64)
    """
    x, known = _known(data)
    mean = (x * known).sum((0, 1)) / known.sum((0, 1)).clamp(min=1)
    x = (x - mean) * known
    variance = x.square().sum((0, 1)) / known.sum((0, 1)).clamp(min=1)
    result = torch.zeros(lags, *data.event_shape, dtype=torch.float64, device=x.device)
    for lag in range(1, min(lags, data.num_steps - 1) + 1):
        pairs = (known[:, lag:] & known[:, :-lag]).sum((0, 1))
        product = (x[:, lag:] * x[:, :-lag]).sum((0, 1)) / pairs.clamp(min=1)
        result[lag - 1] = torch.where(variance > 0, product / variance, 0.0)
    return result


def marginal_quantiles(data: Sequences, probs: Sequence[float] = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)) -> Tensor:
    """Quantiles of all observations of each entry, whatever the time.

    Args:
        data: N sequences.
        probs: Q numbers from 0 to 1.

    Returns:
        (Q, *event), float64, in the units of the data; 0 for an entry that is never observed.

    Example:
        >>> marginal_quantiles(Sequences(torch.arange(5.0).unsqueeze(0)), [0.0, 0.5, 1.0])
        tensor([0., 2., 4.], dtype=torch.float64)
    """
    x, known = _known(data)
    places = torch.tensor(probs, dtype=torch.float64, device=x.device)
    size = data.event_shape.numel()
    columns = zip(x.reshape(-1, size).mT, known.reshape(-1, size).mT, strict=True)
    quantiles = [_quantile(values[some], places) for values, some in columns]
    return torch.stack(quantiles, -1).reshape(len(places), *data.event_shape)


def _quantile(values: Tensor, places: Tensor) -> Tensor:
    """By linear interpolation, like torch.quantile, which takes no more than 16 million numbers."""
    if not len(values):
        return torch.zeros_like(places)
    ordered, position = values.sort().values, places * (len(values) - 1)
    low = position.floor().long()
    return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=len(values) - 1)], position - low)


def _labels(data: Sequences, num_states: int) -> tuple[Tensor, Tensor]:
    if data.labels is None:
        raise ValueError("data: expected sequences with labels, the states, got none")
    if (largest := int(data.labels.max())) >= num_states:
        raise ValueError(f"data: expected labels below {num_states}, the number of states, got {largest}")
    return data.labels, data.labels >= 0


def _known(data: Sequences) -> tuple[Tensor, Tensor]:
    """The observations, float64, and which of them are observed, both (N, T, *event)."""
    mask = data.valid if data.mask is None else data.mask
    known = mask.reshape(mask.shape + (1,) * (data.x.dim() - mask.dim())).expand(data.x.shape)
    return data.x.double(), known
