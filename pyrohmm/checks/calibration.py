"""Calibration: are probabilities what they say, those of a whole inference and those of states?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm.checks.monte_carlo import band, check_level, check_model, check_number, derived_seed, p_value
from pyrohmm.checks.parameter_draws import latent_values
from pyrohmm.checks.plots.common import OKABE_ITO, legend_above, new_axes
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.models.blank import Blank
from pyrohmm.models.isolation import own_parameters, seeded

Simulate = Callable[[int], tuple[Mapping[str, Tensor], Sequences]]
Fit = Callable[[Sequences, int], Mapping[str, Tensor]]
Quantities = Callable[[Mapping[str, Tensor], Sequences], Mapping[str, Tensor]]

_NULL = 999  # simulated sets of uniform ranks, or of paths from the posterior


@dataclass(frozen=True, repr=False)
class SimulationBasedCalibration:
    """The result of `simulation_based_calibration`.

    Attributes:
        ranks: how many of the posterior draws are below the truth, from 0 to `num_draws`, {name: (S, *shape)}, int64.
        num_draws: L.
        p_value: {name: (*shape)}, float64, of uniform ranks: by the largest distance of their distribution function
            from the uniform one.
    """

    ranks: dict[str, Tensor]
    num_draws: int
    p_value: dict[str, Tensor]

    def __repr__(self) -> str:
        num_simulations = len(next(iter(self.ranks.values()), ()))
        lines = [f"calibration of {num_simulations} simulations, ranks among {self.num_draws} draws"]
        for name, p in self.p_value.items():
            some = f"{p.min():.2g}" if p.numel() == 1 else f"{p.min():.2g} to {p.max():.2g} ({p.numel()} entries)"
            lines.append(f"{name}: p = {some}")
        return "\n".join(lines)

    def plot(self, ax: Any = None, *, name: str | None = None, entry: int = 0, level: float = 0.95) -> Any:
        """The distribution function of the ranks less the uniform one, with the band that holds right ones.

        A curve above the band on the left, below on the right: the posterior is too narrow; the other way round: too
        wide. One that is above, or below, throughout: it is off to the right, or to the left.

        Args:
            ax: matplotlib axes to draw on; a new figure's if None.
            name: which quantity; the first if None.
            entry: which entry of it.
            level: of the band, at all ranks at once.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            KeyError, IndexError: there is no such quantity or entry.
        """
        check_level(level)
        name = next(iter(self.ranks)) if name is None else name
        ranks = self.ranks[name].reshape(len(self.ranks[name]), -1)[:, entry].cpu()
        curve = _excess(ranks.unsqueeze(-1), self.num_draws)[:, 0]
        limits = band(_null(len(ranks), self.num_draws), level)
        ax = new_axes(ax, 6.0)
        places = torch.arange(self.num_draws + 1).numpy() / self.num_draws
        ax.fill_between(
            places, limits.lower.numpy(), limits.upper.numpy(), color="0.85", label=f"{level:.0%} of uniform ranks"
        )
        ax.axhline(0.0, color="0.5", linewidth=1)
        ax.plot(places, curve.numpy(), color=OKABE_ITO[0], label=name)
        ax.set_xlabel("rank of the truth among the draws, as a share")
        ax.set_ylabel("distribution less the uniform one")
        legend_above(ax)
        return ax


def prior_simulator(
    model: HMM,
    num_sequences: int,
    num_steps: int,
    *,
    lengths: Tensor | None = None,
    inputs: Tensor | None = None,
) -> Simulate:
    """Draws of a model's parameters from their priors, and of sequences with them, for a seed.

    Args:
        model: with `PyroSample` priors.
        num_sequences: N.
        num_steps: T.
        lengths: (N,), int64; all T if None.
        inputs: (N, T, C), for parts that read inputs.

    Returns:
        A function of a seed that returns {site: value} and the sequences with their states as labels.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.nn import PyroSample
        >>> from pyrohmm.nn import GaussianEmission
        >>> model = HMM(GaussianEmission(2, 1))
        >>> model.emission.loc = PyroSample(dist.Normal(0.0, 3.0).expand([2, 1]).to_event(2))
        >>> parameters, data = prior_simulator(model, 3, 10)(0)
        >>> list(parameters), data.x.shape
        (['emission.loc'], torch.Size([3, 10, 1]))
    """
    if not isinstance(model, HMM):
        raise TypeError(f"model: expected a pyrohmm.models.HMM, got {type(model).__name__}")
    check_number("num_sequences", num_sequences, 1)
    check_number("num_steps", num_steps, 1)
    device = next(model.parameters(), torch.empty(())).device
    index = torch.arange(num_sequences, device=device)
    blank = Blank(num_sequences, num_steps, index, lengths, inputs)

    def simulate(seed: int) -> tuple[dict[str, Tensor], Sequences]:
        with torch.no_grad(), seeded(seed, device), own_parameters(model):
            trace = poutine.trace(model.model).get_trace(blank)
        sites: Any = trace.nodes
        states, x = (sites[name]["value"] for name in ("z", "x"))
        return latent_values(trace), Sequences(x, lengths, inputs=inputs, labels=states)

    return simulate


def simulation_based_calibration(
    simulate: Simulate,
    fit: Fit,
    *,
    num_simulations: int = 100,
    quantities: Quantities | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SimulationBasedCalibration:
    r"""Is an inference right as a whole: the model, the program, the sampler or the guide?

    .. math:: \tilde\theta \sim p(\theta),\; x \sim p(x \mid \tilde\theta),\; \theta_{1:L} \sim q(\theta \mid x), \qquad
        r = \#\{l : \theta_l < \tilde\theta\}

    If q is the posterior and the draws are independent, the rank r of the truth is uniform on 0, ..., L. Autocorrelated
    draws of a sampler have to be thinned. Ranks of ties are drawn at random among those that are possible.

    The states of a hidden Markov model have no names: with exchangeable priors, ask for quantities that do not depend
    on them (sorted means, the log-likelihood of the data), or use ordered priors.

    Args:
        simulate: draws parameters from their prior and data with them, for a seed: {name: (*shape)} and `Sequences`;
            see `prior_simulator`.
        fit: draws from the posterior given the data, for a seed: {name: (L, *shape)}.
        num_simulations: S.
        quantities: a function of parameters {name: (*shape)} and data, to what is ranked, {name: (*shape)}. Default:
            the parameters themselves.
        seed: of everything; `simulate` and `fit` get seeds of their own.
        progress: whether to show a progress bar.

    Returns:
        `SimulationBasedCalibration`.

    Raises:
        ValueError: draws that do not fit the parameters.

    Reference:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), "Validating Bayesian inference algorithms with
        simulation-based calibration"; Modrak et al. (2023) for quantities of parameters and data.

    Example:
        >>> def simulate(seed):
        ...     generator = torch.Generator().manual_seed(seed)
        ...     loc = torch.randn((), generator=generator)
        ...     return {"loc": loc}, Sequences(loc + torch.randn(1, 3, generator=generator))
        >>> def fit(data, seed):
        ...     noise = torch.randn(19, generator=torch.Generator().manual_seed(seed))
        ...     return {"loc": data.x.sum() / 4 + noise / 2}
        >>> found = simulation_based_calibration(simulate, fit, progress=False)
        >>> found.ranks["loc"].shape, found.p_value["loc"] > 0.05
        (torch.Size([100]), tensor(True))
        >>> found
        calibration of 100 simulations, ranks among 19 draws
        loc: p = ...
    """
    check_number("num_simulations", num_simulations, 2)
    generator = torch.Generator().manual_seed(derived_seed(seed, 0))
    ranks: dict[str, list[Tensor]] = {}
    num_draws = 0
    for number in tqdm(range(num_simulations), "calibration", disable=not progress):
        truth, data = simulate(derived_seed(seed, 1 + 2 * number))
        draws = dict(fit(data, derived_seed(seed, 2 + 2 * number)))
        count = _num_draws(truth, draws, complete=quantities is None)
        if number and count != num_draws:
            raise ValueError(f"fit: expected {num_draws} draws, as at first, got {count}")
        num_draws = count
        if quantities is not None:
            each = [quantities({name: x[i] for name, x in draws.items()}, data) for i in range(count)]
            truth = quantities(truth, data)
            draws = {name: torch.stack([torch.as_tensor(some[name]) for some in each]) for name in truth}
        for name, value in truth.items():
            value, drawn = torch.as_tensor(value).detach().cpu(), draws[name].detach().cpu()
            below, ties = (drawn < value).sum(0), (drawn == value).sum(0)
            chosen = torch.rand(ties.shape, generator=generator, dtype=torch.float64) * (ties + 1)
            ranks.setdefault(name, []).append(below + chosen.long())
    stacked = {name: torch.stack(some) for name, some in ranks.items()}
    null = _null(num_simulations, num_draws).abs().amax(-1)
    p_values = {}
    for name, some in stacked.items():
        distance = _excess(some.reshape(len(some), -1), num_draws).abs().amax(0)
        p_values[name] = p_value(distance, null.unsqueeze(-1)).reshape(some.shape[1:])
    return SimulationBasedCalibration(stacked, num_draws, p_values)


def _num_draws(truth: Mapping[str, Tensor], draws: Mapping[str, Tensor], *, complete: bool) -> int:
    for name, value in truth.items():
        if name not in draws:
            if complete:
                raise ValueError(f"fit: expected draws of {name!r}, got those of {', '.join(draws) or 'nothing'}")
        elif draws[name].dim() < 1 or draws[name].shape[1:] != torch.as_tensor(value).shape:
            raise ValueError(
                f"fit: expected draws (L, *{tuple(torch.as_tensor(value).shape)}) of {name!r}, "
                f"got {tuple(draws[name].shape)}"
            )
    counts = {len(value) for value in draws.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"fit: expected as many draws of each parameter, at least one, got {sorted(counts)}")
    return counts.pop()


def _excess(ranks: Tensor, num_draws: int) -> Tensor:
    """The distribution function of ranks (S, M) less that of the uniform law on 0, ..., L; (L + 1, M)."""
    counts = torch.zeros(num_draws + 1, ranks.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, ranks, torch.ones(ranks.shape, dtype=torch.float64))
    uniform = torch.arange(1, num_draws + 2, dtype=torch.float64) / (num_draws + 1)
    return counts.cumsum(0) / len(ranks) - uniform.unsqueeze(-1)


def _null(num_simulations: int, num_draws: int) -> Tensor:
    """`_excess` of sets of uniform ranks, (R, L + 1)."""
    generator = torch.Generator().manual_seed(0)
    return _excess(torch.randint(num_draws + 1, (num_simulations, _NULL), generator=generator), num_draws).mT


@dataclass(frozen=True, repr=False)
class StateCalibration:
    """The result of `state_calibration`; B bins of probabilities, from 0 to 1.

    Attributes:
        predicted: mean posterior probability of those in the bin, (B,), float64; its middle where it is empty.
        frequency: how many of these were the true state, as a share, (B,); 0 where it is empty.
        count: probabilities in the bin, (B,), int64.
        lower, upper: the band in which, in all bins at once, `level` of the frequencies lie that the posterior itself
            makes, (B,).
        level: of the band.
        error: expected calibration error, the mean of |frequency - predicted| over all probabilities.
        p_value: of the differences in all bins together, by their squares over the variances of independent steps,
            among those of paths drawn from the posterior.
        coverage: how often the truth is in the smallest set of states of probability 0.5, 0.8, 0.9, 0.95: {level:
            share}; a right posterior covers at least as often as that.
    """

    predicted: Tensor
    frequency: Tensor
    count: Tensor
    lower: Tensor
    upper: Tensor
    level: float
    error: float
    p_value: float
    coverage: dict[float, float]

    def __repr__(self) -> str:
        covered = ", ".join(f"{share:.1%} by {level:.0%} sets" for level, share in self.coverage.items())
        what = f"calibration of {int(self.count.sum())} state probabilities"
        return f"{what}: error {self.error:.3f}, p = {self.p_value:.2g}\ntrue states covered: {covered}"

    def plot(self, ax: Any = None) -> Any:
        """The reliability diagram: how often a state is the true one, by its probability.

        Args:
            ax: matplotlib axes to draw on; a new figure's if None.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        ax = new_axes(ax, 6.0)
        filled = self.count.cpu() > 0
        predicted, frequency, lower, upper = (
            x.cpu()[filled].numpy() for x in (self.predicted, self.frequency, self.lower, self.upper)
        )
        ax.fill_between(
            predicted, lower, upper, color="0.85", label=f"{self.level:.0%} of what the posterior makes", zorder=0
        )
        ax.axline((0, 0), (1, 1), color="0.5", linewidth=1, zorder=1)
        ax.plot(predicted, frequency, "o-", color=OKABE_ITO[0], markersize=4, label="true states", zorder=2)
        ax.set_xlabel("posterior probability of a state")
        ax.set_ylabel("how often it is the true one")
        legend_above(ax)
        return ax


def state_calibration(
    model: HMM,
    data: Sequences,
    *,
    labels: Tensor | None = None,
    guide: Callable[..., Any] | None = None,
    num_bins: int = 10,
    level: float = 0.95,
    num_simulations: int = 199,
    seed: int = 0,
) -> StateCalibration:
    r"""Are the posterior probabilities of states right, where the states are known?

    .. math:: P(z_t = k \mid p(z_t = k \mid x) = p) = p

    All probabilities, of every step and state, are put into bins; in each, the share of true states should be their
    mean. States of neighbouring steps depend on each other: the test and the band compare with whole paths drawn from
    the posterior, so their rate of false alarms is exact, however sticky the chain.

    Args:
        model: the model whose posterior is looked at; its states in the order of the labels (see `HMM.align`). One with
            `use_labels` is told what it is asked: use it without.
        data: N sequences.
        labels: (N, T), int64, the true states, -1 where unknown. Default: those of the data, e.g. of `simulate`.
        guide: draws the latent sites, if there are any, once.
        num_bins: B, of equal width.
        level: of the band, in all bins at once.
        num_simulations: paths drawn. The least p-value is 1 / (1 + this).
        seed: of the paths, without any effect on torch's global random numbers.

    Returns:
        `StateCalibration`.

    Raises:
        TypeError, ValueError: no model, no sequences, no labels, one that is no state, or an argument out of range.

    Reference:
        Broecker and Smith (2007), "Increasing the reliability of reliability diagrams".

    Example:
        >>> from pyrohmm.nn import PoissonEmission
        >>> model = HMM(PoissonEmission(2, 1, rate=[[2.0], [9.0]]))
        >>> found = state_calibration(model, model.simulate(20, 30, seed=1))
        >>> found.count.sum(), found.error < 0.05, found.p_value > 0.05
        (tensor(1200), True, True)
        >>> found
        calibration of 1200 state probabilities: error 0.0..., p = 0...
        true states covered: ... by 50% sets, ... by 80% sets, ... by 90% sets, ... by 95% sets
    """
    check_model(model, data)
    check_number("num_bins", num_bins, 1)
    check_number("num_simulations", num_simulations, 1)
    check_level(level)
    labels = data.labels if labels is None else labels
    if labels is None:
        raise ValueError("labels: expected the true states, of the data or as an argument, got none")
    if labels.shape != data.x.shape[:2]:
        raise ValueError(f"labels: expected shape {tuple(data.x.shape[:2])}, got {tuple(labels.shape)}")
    if model.use_labels and data.labels is not None:
        raise ValueError("model: expected one that does not use the labels which it is compared with (use_labels)")
    known = data.valid & (labels >= 0)
    if not known.any() or int(labels[known].max()) >= model.num_states:
        raise ValueError(f"labels: expected some states from 0 to {model.num_states - 1}, got none or others")
    with torch.no_grad(), seeded(seed, data.x.device):
        posterior = model.posterior(data, guide=guide)
        probs = posterior.marginals[known].double()  # (M, K)
        paths = posterior.sample(torch.Size([num_simulations]))[:, known]
    bins = (probs * num_bins).long().clamp(max=num_bins - 1)
    count = bins.flatten().bincount(minlength=num_bins)
    filled = count.clamp(min=1)
    middle = (torch.arange(num_bins, dtype=torch.float64, device=probs.device) + 0.5) / num_bins
    sums = torch.zeros_like(middle).scatter_add_(0, bins.flatten(), probs.flatten())
    predicted = torch.where(count > 0, sums / filled, middle)

    def frequency(states: Tensor) -> Tensor:
        hit = bins.gather(-1, states.unsqueeze(-1)).squeeze(-1)
        return hit.bincount(minlength=num_bins) / filled

    # Of the number of hits in each bin, if steps were independent. That they are not, the drawn paths know.
    variance = torch.zeros_like(middle).scatter_add_(0, bins.flatten(), (probs * (1 - probs)).flatten())

    def distance(frequencies: Tensor) -> Tensor:
        off = (count * (frequencies - predicted)).square()
        return torch.where(off > 0, off / variance, 0.0).sum(-1)

    found = frequency(labels[known])
    drawn = torch.stack([frequency(path) for path in paths])
    limits = band(drawn, level)
    ordered, order = probs.sort(-1, descending=True)
    # The mass of the more probable states: a state is in the set if they alone do not reach the level.
    before = torch.empty_like(ordered).scatter_(-1, order, ordered.cumsum(-1) - ordered)
    before = before.gather(-1, labels[known].unsqueeze(-1)).squeeze(-1)
    return StateCalibration(
        predicted,
        found,
        count,
        limits.lower,
        limits.upper,
        level,
        error=float((count * torch.where(count > 0, found - predicted, 0.0).abs()).sum() / count.sum()),
        p_value=float(p_value(distance(found), distance(drawn))),
        coverage={share: float((before < share).double().mean()) for share in (0.5, 0.8, 0.9, 0.95)},
    )
