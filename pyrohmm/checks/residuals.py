"""Pseudo-residuals: each observation on the scale of a standard normal number, by the law that the model gives it."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrohmm import ops
from pyrohmm.checks.cdf import Tails, mixed, tails
from pyrohmm.checks.monte_carlo import band, check_level, check_model, check_number, derived_seed, p_value
from pyrohmm.checks.monte_carlo import replicates as replicated_data
from pyrohmm.checks.plots.common import OKABE_ITO, legend_above, new_axes
from pyrohmm.data import Sequences
from pyrohmm.models import HMM

Kind = Literal["one-step", "ordinary"]

_POINTS = 200  # of a QQ plot, at most
_BLOCK = 4_000_000  # numbers in a tensor for all states, above which steps or sequences are taken in blocks


class ResidualTest(NamedTuple):
    """A number that the residuals of a right model have by chance only.

    Attributes:
        value: one for each entry of an observation, (*event).
        p_value: among those of sequences drawn from the model, (*event); None without simulations.
    """

    value: Tensor
    p_value: Tensor | None


@dataclass(frozen=True, repr=False)
class PseudoResiduals:
    """The result of `pseudo_residuals`.

    Attributes:
        kind: "one-step" or "ordinary".
        uniform: u, (N, T, *event), float64, from 0 to 1; 0.5 where nothing was observed.
        normal: r, (N, T, *event), float64, in standard deviations; 0 where nothing was observed.
        observed: (N, T, *event) bool.
        theoretical: normal quantiles of a QQ plot, (M, *event): as many as there are residuals, at most 200.
        sample: the quantiles of the residuals, (M, *event).
        lower, upper: the band in which, at all places at once, `level` of the curves lie that the model makes,
            (M, *event); None without simulations.
        level: of the band.
        tests: "distribution" (Anderson and Darling's distance from the uniform law), "kurtosis" (mean fourth power of
            the residuals, 3 for normal ones; heavy tails make it large), "autocorrelation" (of neighbouring residuals:
            the sum over 5 lags of n times its square).
    """

    kind: Kind
    uniform: Tensor
    normal: Tensor
    observed: Tensor
    theoretical: Tensor
    sample: Tensor
    lower: Tensor | None
    upper: Tensor | None
    level: float
    tests: dict[str, ResidualTest]

    def plot(self, ax: Any = None, *, entry: int = 0) -> Any:
        """The normal QQ plot of the residuals, with the band.

        Args:
            ax: matplotlib axes to draw on; a new figure's if None.
            entry: which entry of an observation, of those of a vector.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            IndexError: there is no such entry.
        """
        ax = new_axes(ax, 6.0)
        theoretical, sample, lower, upper = (
            None if x is None else x.reshape(len(x), -1)[:, entry].cpu().numpy()
            for x in (self.theoretical, self.sample, self.lower, self.upper)
        )
        assert theoretical is not None and sample is not None
        if lower is not None and upper is not None:
            label = f"{self.level:.0%} of what the model makes"
            ax.fill_between(theoretical, lower, upper, color="0.85", label=label, zorder=0)
        ax.axline((0, 0), slope=1, color="0.5", linewidth=1, zorder=1)
        ax.plot(theoretical, sample, ".", color=OKABE_ITO[0], markersize=4, label=f"{self.kind} residuals", zorder=2)
        ax.set_xlabel("quantiles of the standard normal law")
        ax.set_ylabel("quantiles of the residuals")
        legend_above(ax)
        return ax

    def __repr__(self) -> str:
        lines = [f"{self.kind} pseudo-residuals of {int(self.observed.sum())} observations"]
        for name, test in self.tests.items():
            values = ", ".join(f"{x:.3g}" for x in test.value.flatten().tolist())
            p = (
                ""
                if test.p_value is None
                else ", p = " + ", ".join(f"{x:.3g}" for x in test.p_value.flatten().tolist())
            )
            lines.append(f"{name}: {values}{p}")
        return "\n".join(lines)


def pseudo_residuals(
    model: HMM,
    data: Sequences,
    kind: Kind = "one-step",
    *,
    discrete: Literal["mid", "jitter"] = "jitter",
    num_simulations: int = 199,
    refit: Callable[[HMM, Sequences], Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> PseudoResiduals:
    r"""Where does each observation lie in the law that the model gives it from the others?

    .. math::
        u_t = F(x_t \mid x_{<t}) = \sum_k p(z_t = k \mid x_{<t})\, F_k(x_t) \quad\text{("one-step")}, \qquad
        u_t = F(x_t \mid x_{-t}) \quad\text{("ordinary")}, \qquad r_t = \Phi^{-1}(u_t)

    If the model is right, the one-step residuals r are independent standard normal numbers; the ordinary ones, which
    use what comes later too, are each standard normal, but not independent, and show single outliers best. Where an
    observation can take a value with positive probability, u is drawn uniformly from the interval that belongs to it
    ("jitter", exactly uniform again), or is its middle ("mid", not random, and not uniform).

    Vectors are looked at entry by entry, each by its own marginal law given the other steps: the residuals of one step
    depend on each other. Both tails are computed, so residuals as far as 38 standard deviations out have their size.

    Every test compares with sequences drawn from the model, with the data's lengths, inputs, missing entries and (if
    the model uses labels) known states, but without `allowed` ones; so it is right for both kinds, discrete data and
    vectors. With the parameters of the model fitted to these very data and `refit` None, a test raises fewer false
    alarms than its level says; with `refit` every drawn set is fitted like the data.

    Args:
        model: parameters have values, no priors.
        data: N sequences; ragged, with missing steps or entries.
        kind: "one-step" or "ordinary". The latter needs an emission that sees no earlier observations.
        discrete: what stands for a discrete observation, "jitter" or "mid".
        num_simulations: R; 0 for residuals alone. The least p-value is 1 / (R + 1).
        refit: fits a copy of the model to a drawn set, e.g. `lambda model, data: pyrohmm.fit_em(model, data)`.
        level: of the band, over all places at once.
        seed: of the jitter and the simulations, without any effect on torch's global random numbers.
        progress: whether to show a progress bar.

    Returns:
        `PseudoResiduals`.

    Raises:
        TypeError: no model, no sequences, or a law whose distribution function is not known.
        ValueError: nothing is observed, a sequence that is impossible under the model, an argument out of range, or
            ordinary residuals of an autoregressive emission.

    Reference:
        Zucchini, MacDonald and Langrock (2016), "Hidden Markov models for time series", section 6.2; Dunn and Smyth
        (1996), "Randomized quantile residuals".

    Example:
        >>> from pyrohmm.nn import GaussianEmission
        >>> model = HMM(GaussianEmission(1, 1, loc=[[0.0]]))
        >>> found = pseudo_residuals(model, Sequences(torch.tensor([[[-1.0], [2.0]]])), num_simulations=0)
        >>> found.uniform.flatten(), found.normal.flatten().round().tolist()
        (tensor([0.1587, 0.9772], dtype=torch.float64), [-1.0, 2.0])
    """
    check_model(model, data)
    if kind not in ("one-step", "ordinary"):
        raise ValueError(f"kind: expected 'one-step' or 'ordinary', got {kind!r}")
    if discrete not in ("mid", "jitter"):
        raise ValueError(f"discrete: expected 'mid' or 'jitter', got {discrete!r}")
    check_number("num_simulations", num_simulations, 0)
    check_level(level)
    if kind == "ordinary" and model.emission.order > 0:
        raise ValueError(
            "kind: expected 'one-step' for an emission that sees earlier observations; later ones tell of x_t itself "
            "then, not of its state alone"
        )
    generator = torch.Generator().manual_seed(seed)
    observed = data.valid if data.mask is None else data.mask
    observed = observed.reshape(observed.shape + (1,) * (data.x.dim() - observed.dim())).expand(data.x.shape)

    def residuals(model: HMM, data: Sequences) -> tuple[Tensor, Tensor]:
        found = _tails(model, data, kind)
        if discrete == "jitter":
            share = torch.rand(found.at.shape, dtype=torch.float64, generator=generator).to(found.at.device)
        else:
            share = 0.5
        u, rest = found.below + share * found.at, found.above + (1 - share) * found.at
        tiny = torch.finfo(torch.float64).tiny
        u, rest = u.clamp(tiny, 1.0), rest.clamp(tiny, 1.0)
        r = torch.where(u < rest, torch.special.ndtri(u), -torch.special.ndtri(rest))
        return torch.where(observed, u, 0.5), torch.where(observed, r, 0.0)

    with torch.no_grad():
        uniform, normal = residuals(model, data)
        event = data.event_shape
        entries = [mask.nonzero()[:, 0] for mask in observed.reshape(-1, event.numel()).unbind(-1)]
        places = _places(min(len(some) for some in entries), normal.device)
        points = len(places)

        def summary(r: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            columns = r.reshape(-1, event.numel()).unbind(-1)
            seen = [column[some] for column, some in zip(columns, entries, strict=True)]
            return torch.stack([_quantiles(some, places) for some in seen], -1).reshape(points, *event), {
                "distribution": torch.stack([_anderson_darling(some) for some in seen]).reshape(event),
                "kurtosis": torch.stack([some.pow(4).sum() / max(len(some), 1) for some in seen]).reshape(event),
                "autocorrelation": _autocorrelation(r, observed),
            }

        sample, values = summary(normal)
        curves, drawn = [], {name: [] for name in values}
        sets = replicated_data(model, data, num_simulations, derived_seed(seed, 1)) if num_simulations else ()
        for replicate in tqdm(sets, "simulated residuals", num_simulations, disable=not (progress and num_simulations)):
            if model.use_labels:
                replicate = _as_far_known(data, replicate)
            twin = model
            if refit is not None:
                twin = copy.deepcopy(model)
                with torch.enable_grad():
                    refit(twin, replicate)
            curve, numbers = summary(residuals(twin, replicate)[1])
            curves.append(curve)
            for name, value in numbers.items():
                drawn[name].append(value)
    lower = upper = None
    if curves:
        bands = [band(some, level) for some in torch.stack(curves).reshape(len(curves), points, -1).unbind(-1)]
        lower, upper = (torch.stack(some, -1).reshape(sample.shape) for some in zip(*bands, strict=True))
    # Ordinary residuals are correlated under the model, so that less of it is unusual too.
    both = ("kurtosis", "autocorrelation") if kind == "ordinary" else ("kurtosis",)
    tests = {
        name: ResidualTest(value, p_value(value, torch.stack(drawn[name]), two_sided=name in both) if curves else None)
        for name, value in values.items()
    }
    theoretical = torch.special.ndtri(places).reshape(-1, *[1] * len(event)).expand(sample.shape)
    return PseudoResiduals(kind, uniform, normal, observed, theoretical, sample, lower, upper, level, tests)


def _as_far_known(data: Sequences, drawn: Sequences) -> Sequences:
    """Drawn sequences with their states where those of the data are known."""
    labels = None if data.labels is None else torch.where(data.labels < 0, -1, drawn.labels)  # type: ignore[arg-type]
    return Sequences(drawn.x, drawn.lengths, inputs=drawn.inputs, labels=labels, mask=drawn.mask)


def _tails(model: HMM, data: Sequences, kind: Kind) -> Tails:
    """How much of the law of each observation, given the others, is below it, at it and above; (N, T, *event)."""
    size = data.num_steps * model.num_states * max(model.num_states, data.event_shape.numel())
    step = max(1, _BLOCK // size)
    found = []
    for start in range(0, len(data), step):
        block = data[start : start + step]
        weights = _weights(model, block, kind, start)
        every = tails(model.emission_law(block), block.x)
        found.append(mixed(weights.movedim(-1, 0), every, len(data.event_shape)))
    return Tails(*(torch.cat(some) for some in zip(*found, strict=True)))


def _weights(model: HMM, data: Sequences, kind: Kind, first: int) -> Tensor:
    """log p(z_t | x_<t), or log p(z_t | x_-t), (N, T, K) float64."""
    initial, transition, observation = (logits.double() for logits in model.potentials(data))
    log_weights, impossible = _predicted(initial, transition, observation, data.lengths)
    if impossible.any():
        index = first + int(impossible.nonzero()[0, 0])
        raise ValueError(f"data: expected sequences that are possible under the model, got another at index {index}")
    if kind == "one-step" or data.num_steps == 1:
        return log_weights
    # The chain that runs backward, from whatever last state: what it predicts is the message from the later steps.
    steps = torch.arange(data.num_steps, device=observation.device)
    back = (data.lengths.unsqueeze(-1) - 1 - steps).clamp(min=0)
    reverse = transition.mT
    if transition.dim() > 2:
        reverse = reverse.expand(len(data), *reverse.shape[-3:])
        turns = (data.lengths.unsqueeze(-1) - 2 - steps[:-1]).clamp(min=0)
        reverse = reverse.gather(1, turns[..., None, None].expand(reverse.shape))
    index = back.unsqueeze(-1).expand(observation.shape)
    later, _ = _predicted(torch.zeros_like(initial), reverse, observation.gather(1, index), data.lengths)
    return (log_weights + later.gather(1, index)).log_softmax(-1)


def _predicted(initial: Tensor, transition: Tensor, observation: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised forward messages before each step's own observation, (N, T, K), and which sequences are impossible.

    Past the length the message is that of all states alike.
    """
    result = ops.filter(initial, transition, observation, lengths=lengths)
    num_sequences, num_steps, num_states = observation.shape
    valid = torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)
    rows = [initial.expand(num_sequences, num_states).unsqueeze(1)]
    block = max(1, _BLOCK // (num_sequences * num_states**2))
    for start in range(0, num_steps - 1, block):
        steps = slice(start, min(start + block, num_steps - 1))
        matrix = transition if transition.dim() == 2 else transition[..., steps, :, :]
        rows.append((result.log_probs[:, steps].unsqueeze(-1) + matrix).logsumexp(-2))
    messages = torch.where(valid.unsqueeze(-1), torch.cat(rows, 1), 0.0)
    return messages.log_softmax(-1), (result.log_evidence == -torch.inf).any(-1)


def _places(count: int, device: torch.device) -> Tensor:
    """The shares of a QQ plot: one for each of `count` numbers, or fewer, as far out, evenly spread over the plot."""
    if count <= _POINTS:
        return (torch.arange(max(count, 1), dtype=torch.float64, device=device) + 0.5) / max(count, 1)
    end = torch.special.ndtri(torch.tensor(0.5 / count, dtype=torch.float64)).item()
    return torch.special.ndtr(torch.linspace(end, -end, _POINTS, dtype=torch.float64, device=device))


def _quantiles(values: Tensor, places: Tensor) -> Tensor:
    """Empirical quantiles, by linear interpolation; 0 of nothing."""
    if not len(values):
        return torch.zeros_like(places)
    ordered = values.sort().values
    position = (places * len(values) - 0.5).clamp(0, len(values) - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


def _anderson_darling(residuals: Tensor) -> Tensor:
    """The distance of residuals from the normal law, with weight on the tails; 0 of nothing."""
    count = len(residuals)
    if not count:
        return residuals.new_zeros(())
    ordered = residuals.sort().values
    odd = 2 * torch.arange(count, dtype=residuals.dtype, device=residuals.device) + 1
    terms = torch.special.log_ndtr(ordered) + torch.special.log_ndtr(-ordered.flip(0))
    return -count - (odd * terms).sum() / count


def _autocorrelation(residuals: Tensor, observed: Tensor, lags: int = 5) -> Tensor:
    """Sum over lags of n times the squared correlation of residuals, within sequences, (*event)."""
    square = residuals.square().sum((0, 1)) / observed.sum((0, 1)).clamp(min=1)
    total = torch.zeros_like(square)
    for lag in range(1, min(lags, residuals.shape[1] - 1) + 1):
        count = (observed[:, lag:] & observed[:, :-lag]).sum((0, 1))
        product = (residuals[:, lag:] * residuals[:, :-lag]).sum((0, 1)) / count.clamp(min=1)
        correlation = product / square.clamp(min=math.sqrt(torch.finfo(square.dtype).tiny))
        total = total + count * correlation.square()
    return total
