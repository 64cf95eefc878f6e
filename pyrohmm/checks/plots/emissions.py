"""The plot of what each state emits."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrohmm.checks.plots.common import legend_above, names_of_states, new_axes, numbers, observations, state_colours
from pyrohmm.data import Sequences
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.models import HMM
from pyrohmm.models.isolation import own_parameters
from pyrohmm.models.lags import lags_of
from pyrohmm.nn.emission.composite import Streams
from pyrohmm.nn.emission.mixture import Mixture

NUM_POINTS = 240  # of a density; half as many more where the data lie
MOST_BINS = 80
MOST_SYMBOLS = 60  # values of discrete data that are drawn one by one


class Entry(NamedTuple):
    """The law of one entry of an observation: log-density of a number in batches, and where it is not 0."""

    log_prob: Callable[[Tensor], Tensor]
    support: Any


def plot_emissions(
    model: HMM | HiddenMarkovModel,
    data: Sequences | Tensor,
    posterior: MarkovChain | None = None,
    *,
    dim: int = 0,
    state_names: Sequence[str] | None = None,
    value_names: Sequence[str] | None = None,
    label: str | None = None,
    ax: Any = None,
) -> Any:
    r"""Plot the density (or probability) of what each state emits, over the histogram of the data.

    .. math:: \frac1n \sum_t p(z_t = k \mid x)\; p(x_t = \cdot \mid z_t = k)

    Each state is weighted by its share of the n observed values, so that the states add up to what the model says of
    all data (black). Where emissions depend on inputs or earlier observations they are averaged over the steps.
    What is more than 2.5 times as high as the histogram is cut off.

    Args:
        model: gives the emissions.
        data: `Sequences` for an `HMM`, a tensor for a `HiddenMarkovModel`.
        posterior: the law of the paths; the model's own if None.
        dim: which entry of an observation, if it is a vector.
        state_names: K names.
        value_names: of the values 0, 1, ... of symbols.
        label: of the values, with their unit.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes. Its first lines are those of the states, the last one is the sum.

    Raises:
        TypeError: an emission of which the law of one entry is not known, such as `MultinomialEmission`.
        ValueError: no such entry, nothing observed of it, data that do not fit, or parameters with priors.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from pyrohmm.nn import CategoricalEmission
        >>> model = HMM(CategoricalEmission(2, 3, probs=[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
        >>> ax = plot_emissions(model, Sequences.from_list([[0, 0, 2, 2], [2, 0]]))
        >>> [float(bar.get_height()) for bar in ax.patches]
        [0.5, 0.0, 0.5]
    """
    with torch.no_grad():
        law, states_first = emission_law(model, data)
        if posterior is None:
            if isinstance(model, HiddenMarkovModel) and not isinstance(data, Tensor):
                raise TypeError(f"data: expected a tensor for a HiddenMarkovModel, got {type(data).__name__}")
            posterior = model.posterior(data)  # pyright: ignore[reportArgumentType]
        x, seen = observations(data, posterior)
        if not 0 <= dim < x.shape[-1]:
            raise ValueError(f"dim: expected one of 0, ..., {x.shape[-1] - 1}, got {dim!r}")
        x, seen = x[..., dim], seen[..., dim]
        count = int(seen.sum())
        if not count:
            raise ValueError(f"data: expected an observed value of entry {dim}, got none")
        values = x[seen]
        weights = torch.where(seen.unsqueeze(-1), posterior.marginals, 0.0).movedim(-1, 0).double() / count
        entry = marginal(law, dim)
        discrete = bool(entry.support.is_discrete)
        points = support_points(values, entry.support) if discrete else grid(values)
        heights = np.stack([numbers(averaged(entry, states_first, point, weights)) for point in points], 1)

    names, palette = names_of_states(state_names, len(heights)), state_colours(len(heights))
    observed, places = numbers(values), numbers(points)
    if value_names is not None:
        if not discrete:
            raise ValueError("value_names: expected None, as the values are no symbols")
        if isinstance(value_names, str) or len(value_names) <= places[-1] or places[0] < 0:
            raise ValueError(f"value_names: expected names of 0, ..., {int(places[-1])}, got {value_names!r}")
    ax = new_axes(ax)
    if discrete:
        width = -(-len(points) // MOST_SYMBOLS)
        edges = np.arange(places[0], places[-1] + width + 1, width) - 0.5
        shares = np.histogram(observed, edges)[0] / (count * width)
        style = {"marker": "o", "markersize": 3.5} if len(points) <= MOST_SYMBOLS else {}
    else:
        # More than is usual for one peak, as there are several.
        edges = np.histogram_bin_edges(observed, min(math.ceil(math.sqrt(count)), MOST_BINS))
        shares = np.histogram(observed, edges)[0] / (count * np.diff(edges))
        style = {}
    handles = [ax.bar(edges[:-1], shares, np.diff(edges), align="edge", color="0.85", edgecolor="white", label="data")]
    for state, (curve, colour, name) in enumerate(zip(heights, palette, names, strict=True)):
        name = f"{name} ({float(weights[state].sum()):.0%})"
        handles += ax.plot(places, curve, color=colour, linewidth=2, label=name, **style)
    if len(heights) > 1:
        handles += ax.plot(places, heights.sum(0), color="0.1", linewidth=1, linestyle="--", label="all states")
    if discrete:
        label_values(ax, places, value_names)
    vector = bool(law.event_shape)
    ax.set_xlabel(label if label is not None else f"x[{dim}]" if vector else "x")
    ax.set_ylabel("probability" if discrete else "density")
    # A narrow peak would hide all else.
    highest = max(shares.max(), min(heights.sum(0).max(), 2.5 * shares.max()))
    ax.set_ylim(0, 1.05 * highest)
    legend_above(ax, handles)
    return ax


def emission_law(model: HMM | HiddenMarkovModel, data: Sequences | Tensor) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """The law of an observation in each state, at each step of the data if the steps differ.

    Returns:
        the law, and a function that puts a tensor of its batch shape as (K, ..., T).
    """
    if isinstance(model, HMM):
        if not isinstance(data, Sequences):
            raise TypeError(f"data: expected pyrohmm.data.Sequences for an HMM, got {type(data).__name__}")
        if priors := model._names_of_priors():
            raise ValueError(f"model: expected parameters without priors, got PyroSample for {', '.join(priors)}")
        model._check(data)
        with own_parameters(model):
            law = model._emission(model._states(), data.inputs, lags_of(model.emission, data), None)
        return law, lambda tensor: tensor
    if not isinstance(model, HiddenMarkovModel):
        raise TypeError(f"model: expected an HMM or a HiddenMarkovModel, got {type(model).__name__}")
    varying = model._time_varying
    return model.emission, lambda t: t.movedim(-1, 0) if varying else t.movedim(-1, 0).unsqueeze(-1)


def marginal(law: Any, dim: int) -> Entry:
    """The law of one entry of a vector, of a batch shape that broadcasts to that of the whole."""
    if len(law.event_shape) > 1:
        raise ValueError(f"model: expected observations of shape () or (D,), got {tuple(law.event_shape)}")
    if not law.event_shape:
        return Entry(law.log_prob, law.support)
    if isinstance(law, Streams):
        for part, size in zip(law.laws, law.sizes, strict=True):
            if dim < size:
                return marginal(part, dim)
            dim -= size
    if isinstance(law, Mixture):
        parts = [marginal(part, dim) for part in law.laws]

        def log_prob(value: Tensor) -> Tensor:
            logs = torch.stack([part.log_prob(value).expand(law.batch_shape) for part in parts], -1)
            return (law.logits + logs).logsumexp(-1)

        return Entry(log_prob, parts[0].support)
    if isinstance(law, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        entry = dist.Normal(law.mean[..., dim], law.variance[..., dim].sqrt())
        return Entry(entry.log_prob, entry.support)
    base = getattr(law, "base_dist", None)
    if isinstance(law, torch.distributions.Independent) and base is not None and not base.event_shape:
        return Entry(lambda value: base.log_prob(value.expand(base.batch_shape))[..., dim], base.support)
    raise TypeError(f"model: expected an emission of which the law of one entry is known, got {type(law).__name__}")


def averaged(entry: Entry, states_first: Callable[[Tensor], Tensor], point: Tensor, weights: Tensor) -> Tensor:
    """The density at a point (), averaged with the weights (K, ..., T) of states and steps, (K,)."""
    if not entry.support.check(point).all():
        return weights.new_zeros(len(weights))
    density = states_first(entry.log_prob(point)).double().exp()
    lead = weights.dim() - density.dim()
    density = density.reshape(len(weights), *[1] * lead, *density.shape[1:])
    return (weights.sum_to_size(density.shape) * density).flatten(1).sum(1)


def support_points(values: Tensor, support: Any) -> Tensor:
    """The integers at which a discrete law is drawn: those of the data and, if they are few, of the support."""
    low, high = int(values.min()), int(values.max())
    bounds = (0, 1) if support is dist.constraints.boolean else None
    if hasattr(support, "upper_bound"):
        ends = [torch.as_tensor(bound).unique() for bound in (support.lower_bound, support.upper_bound)]
        bounds = (int(ends[0].min()), int(ends[1].max()))
    if bounds is not None and bounds[1] - bounds[0] < MOST_SYMBOLS:
        low, high = min(low, bounds[0]), max(high, bounds[1])
    return torch.arange(low, high + 1, device=values.device).to(values.dtype)


def grid(values: Tensor) -> Tensor:
    """Points at which a density is drawn: evenly spaced, and where the data lie, or narrow states would be missed."""
    values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
    low, high = values.min(), values.max()
    margin = 0.05 * (high - low) if high > low else torch.ones_like(low)
    even = low - margin + (high - low + 2 * margin) * torch.linspace(0, 1, NUM_POINTS).to(values)
    ranks = torch.linspace(0, len(values) - 1, NUM_POINTS // 2, device=values.device).long()
    return torch.cat([even, values.sort().values[ranks]]).unique()


def label_values(ax: Any, places: np.ndarray, value_names: Sequence[str] | None) -> None:
    """Ticks at integers, with their names if they have any."""
    if value_names is None:
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
        return
    ticks = places[:: -(-len(places) // 30)]
    ax.set_xticks(ticks, [value_names[int(place)] for place in ticks])
