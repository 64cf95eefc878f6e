"""Posterior predictive checks: do sequences that the model makes look like the data?"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm.checks.monte_carlo import check_model, check_number, derived_seed, like, p_value, replicates
from pyrohmm.checks.parameter_draws import Draws, given, one, parameter_draws
from pyrohmm.checks.plots.common import OKABE_ITO, legend_above, new_axes
from pyrohmm.checks.statistics import (
    autocorrelation,
    dwell_times,
    marginal_quantiles,
    state_occupancy,
    transition_counts,
)
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.models.isolation import seeded

Statistic = Callable[[Sequences], Tensor]


@dataclass(frozen=True, repr=False)
class PredictiveCheck:
    """One statistic of the data, and of sequences that the model makes; see `posterior_predictive_check`.

    Attributes:
        name: of the statistic.
        observed: of the data, with the states of each draw, (S, *shape), float64.
        replicated: of a set of sequences made with each draw, (S, *shape), float64.
        p_value: the share of draws in which the replicated number is the larger, ties by half, (*shape): near 0 the
            data's is larger than the model's, near 1 smaller.
        overall: the p-value of all numbers together, by their mean square distance from the replicated ones, in
            standard deviations: small if they do not agree.
    """

    name: str
    observed: Tensor
    replicated: Tensor
    p_value: Tensor
    overall: float

    def __repr__(self) -> str:
        entries = f"{self.p_value.numel()} entries: p = {self.p_value.min():.2g} to {self.p_value.max():.2g}"
        return f"PredictiveCheck({self.name!r}, overall p = {self.overall:.2g}; {entries})"

    def plot(self, ax: Any = None, *, level: float = 0.9) -> Any:
        """The data's numbers over the range of the replicated ones; a histogram for a single number.

        Args:
            ax: matplotlib axes to draw on; a new figure's if None.
            level: how many of the replicated numbers the bars hold, at each place.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        ax = new_axes(ax, 6.0)
        observed, replicated = (x.reshape(len(x), -1).cpu() for x in (self.observed, self.replicated))
        shown = f"{self.name} (p = {self.overall:.2g})"
        if observed.shape[1] == 1:
            ax.hist(replicated[:, 0].numpy(), bins=30, color="0.75", label="replicated")
            ax.axvline(float(observed.mean()), color=OKABE_ITO[5], label="data")
            ax.set_xlabel(shown)
            ax.set_ylabel("draws")
        else:
            tail = (1 - level) / 2
            low, middle, high = (replicated.quantile(q, 0).numpy() for q in (tail, 0.5, 1 - tail))
            places = range(observed.shape[1])
            ax.vlines(places, low, high, color="0.75", linewidth=5, label=f"{level:.0%} of replicated")
            ax.plot(places, middle, "_", color="0.4", markersize=8)
            ax.plot(places, observed.mean(0).numpy(), ".", color=OKABE_ITO[5], markersize=7, label="data")
            # As many indices as there is room for.
            shape, step = self.p_value.shape, -(-len(places) // 12)
            names = [", ".join(map(str, index)) for index in itertools.product(*map(range, shape))]
            ax.set_xticks(places[::step], names[::step])
            ax.set_xlabel(f"entry of {shown}")
            ax.set_ylabel(self.name)
        legend_above(ax)
        return ax


def default_statistics(num_states: int) -> dict[str, Statistic]:
    """The statistics that `posterior_predictive_check` looks at if no others are asked for.

    Args:
        num_states: K.

    Example:
        >>> list(default_statistics(2))
        ['dwell times', 'transition counts', 'state occupancy', 'autocorrelation', 'marginal quantiles']
    """
    return {
        "dwell times": lambda data: dwell_times(data, num_states),
        "transition counts": lambda data: transition_counts(data, num_states),
        "state occupancy": lambda data: state_occupancy(data, num_states),
        "autocorrelation": autocorrelation,
        "marginal quantiles": marginal_quantiles,
    }


def posterior_predictive_check(
    model: HMM,
    data: Sequences,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    draws: Mapping[str, Tensor] | None = None,
    guide: Callable[..., Any] | None = None,
    num_draws: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, PredictiveCheck]:
    r"""Compare statistics of the data with those of sequences that the model makes.

    .. math:: p = P\big(T(x^{rep}, z^{rep}) > T(x, z) \mid x\big), \qquad
        \theta \sim p(\theta \mid x),\; z \sim p(z \mid x, \theta),\; (x^{rep}, z^{rep}) \sim p(x, z \mid \theta)

    A statistic is a function of `Sequences` whose labels are states: those of the data are drawn from their posterior,
    those of a replicated set are the ones it was made with. A right model makes both alike. Replicated sets have the
    lengths, inputs and missing entries of the data.

    The parameters are those of the model, if it is fitted, or draws of them. Since they know the data, too few checks
    raise an alarm by chance, rather than too many; a statistic that is fitted exactly, such as a mean, tells nothing.

    Args:
        model: with parameters that have values, or `PyroSample` priors and then draws or a guide.
        data: N sequences.
        statistics: function by name, each of `Sequences`, to a tensor of one shape. Default: `default_statistics`.
        draws: {site: (chains, draws, *shape)}, as `mcmc.get_samples(group_by_chain=True)` returns them.
        guide: draws the latent sites, if there are no draws. Default: the model's own.
        num_draws: S. Of more draws, as many are taken in equal steps.
        seed: of the draws, without any effect on torch's global random numbers.
        progress: whether to show a progress bar.

    Returns:
        `PredictiveCheck` by name.

    Raises:
        TypeError, ValueError: no model, no sequences, nothing observed, or a statistic that is not of one shape.

    Reference:
        Gelman, Meng and Stern (1996), "Posterior predictive assessment of model fitness via realized discrepancies".

    Example:
        >>> from pyrohmm.nn import PoissonEmission
        >>> model = HMM(PoissonEmission(2, 1, rate=[[2.0], [9.0]]))
        >>> data = model.simulate(5, 20, seed=0)
        >>> largest = {"largest": lambda data: data.x.max()}
        >>> found = posterior_predictive_check(model, data, largest, num_draws=50, progress=False)["largest"]
        >>> found.replicated.shape, 0 <= found.p_value <= 1
        (torch.Size([50]), tensor(True))
    """
    check_model(model, data)
    check_number("num_draws", num_draws, 2)
    statistics = default_statistics(model.num_states) if statistics is None else statistics
    if not statistics:
        raise ValueError("statistics: expected at least one, got none")
    guide = model.given_guide if guide is None else guide
    parameters = parameter_draws((data,), draws, guide, num_draws, derived_seed(seed, 0))
    with torch.no_grad():
        sets = _posterior_sets(model, data, parameters, num_draws, seed)
        pairs = list(_values(statistics, sets, num_draws if progress else None))
    for name in statistics:
        if len(shapes := {tuple(side[name].shape) for pair in pairs for side in pair}) > 1:
            raise ValueError(f"statistics: expected one shape from {name!r}, got {sorted(shapes)}")
    observed, replicated = (
        {name: torch.stack([values[name] for values in side]) for name in statistics}
        for side in zip(*pairs, strict=True)
    )
    return {name: _compare(name, observed[name], replicated[name]) for name in statistics}


def _posterior_sets(model: HMM, data: Sequences, parameters: Draws, num_draws: int, seed: int) -> Any:
    """Pairs of the data with drawn states, and a replicated set."""
    device = data.x.device
    paths, sets = derived_seed(seed, 1), derived_seed(seed, 2)
    if not parameters:
        with seeded(paths, device):
            states = model.posterior(data).sample(torch.Size([num_draws]))
        for path, replicate in zip(states, replicates(model, data, num_draws, sets), strict=True):
            yield _with_states(data, path), replicate
        return
    chains, each = next(iter(parameters.values())).shape[:2]
    number = min(num_draws, chains * each)
    for place in torch.linspace(0, chains * each - 1, number).round().long().tolist():
        fixed = given(one(parameters, *divmod(place, each)))
        with seeded(derived_seed(paths, place), device):
            path = model.posterior(data, guide=fixed).sample()
        drawn = model.simulate(
            len(data),
            data.num_steps,
            lengths=data.lengths,
            inputs=data.inputs,
            seed=derived_seed(sets, place),
            guide=fixed,
        )
        yield _with_states(data, path), like(data, drawn)


def _with_states(data: Sequences, path: Tensor) -> Sequences:
    return Sequences(data.x, data.lengths, inputs=data.inputs, labels=path, mask=data.mask, allowed=data.allowed)


def _values(statistics: Mapping[str, Statistic], sets: Any, total: int | None) -> Any:
    for pair in tqdm(sets, "predictive check", total, disable=total is None):
        yield tuple({name: _value(name, function, some) for name, function in statistics.items()} for some in pair)


def _value(name: str, function: Statistic, data: Sequences) -> Tensor:
    value = torch.as_tensor(function(data)).double()
    if value.isnan().any():
        raise ValueError(f"statistics: expected numbers, got NaN from {name!r}")
    return value


def _compare(name: str, observed: Tensor, replicated: Tensor) -> PredictiveCheck:
    larger = (replicated > observed).double() + 0.5 * (replicated == observed).double()
    # A number that never varies is at no distance from itself, and far from any other.
    fixed = (replicated == replicated[0]).all(0)
    mean, deviation = torch.where(fixed, replicated[0], replicated.mean(0)), replicated.std(0)

    def distance(values: Tensor) -> Tensor:
        off = values - mean
        squares = torch.where(fixed, torch.where(off == 0, 0.0, torch.inf), off / deviation).square()
        return squares.reshape(len(squares), -1).mean(-1)

    # Each draw's data against its own replicated set.
    overall = float(p_value(torch.zeros(()), distance(replicated) - distance(observed)))
    return PredictiveCheck(name, observed, replicated, larger.mean(0), overall)
