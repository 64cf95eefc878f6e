"""Plots over time: a series with its decoded states, and decoded states against the true ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from pyrohmm.checks.plots.common import (
    BAND,
    bands,
    decoded,
    label_time,
    legend_above,
    names_of_states,
    new_axes,
    numbers,
    observations,
    panels,
    state_colours,
    time_axis,
)
from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain

MOST_LINES = 6  # dimensions with a panel each; more are an image
MOST_NAMES = 18  # states in a legend; more are a colour bar
LONG = 1000  # steps from which lines are thin
TOP, STRIP = 1.2, (1.08, 1.18)  # of plot_decoding: the y axis ends here, and the path lies there


def plot_series(
    data: Sequences | Tensor,
    posterior: MarkovChain,
    sequence: int = 0,
    *,
    dims: Sequence[int] | None = None,
    dim_names: Sequence[str] | None = None,
    state_names: Sequence[str] | None = None,
    times: ArrayLike | None = None,
    time_label: str = "step",
    change_points: ArrayLike | Tensor | None = None,
    ax: Any = None,
) -> Any:
    """Plot a series with its decoded states as coloured bands, and their posterior probabilities beneath.

    A panel for each dimension, an image if there are more than six. Steps or entries that are missing are gaps.
    Integers are points: symbols have nothing between them.

    Args:
        data: N sequences, or a tensor (T, *event) or (N, T, *event) in which NaN is missing.
        posterior: the law of their paths, of batch shape (N,) or ().
        sequence: which one is drawn.
        dims: which entries of an observation, of the flattened event; all if None.
        dim_names: labels of these, with their units.
        state_names: K names.
        times: (T,), increasing numbers or dates of the steps; 0, 1, ... if None.
        time_label: label of the time axis, with its unit.
        change_points: steps at which something else begins, such as true segments; dashed lines before them.
        ax: matplotlib axes whose place is split into the panels; a new figure's if None.

    Returns:
        The axes of the first panel. The others, the posterior the last of them, follow it in `ax.figure.axes`.

    Raises:
        TypeError, ValueError: data and posterior that do not fit, no such sequence or dimension, or one that is
            impossible under the model.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib, torch
        >>> matplotlib.use("Agg")
        >>> import pyro.distributions as dist
        >>> from pyrohmm.distributions import HiddenMarkovModel
        >>> chain = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        >>> x = torch.tensor([-1.1, -0.9, 1.0, 1.2])
        >>> posterior = HiddenMarkovModel(chain, dist.Normal(torch.tensor([-1.0, 1.0]), 0.5)).posterior(x)
        >>> ax = plot_series(x, posterior, state_names=["low", "high"], dim_names=["level (m)"])
        >>> ax.get_ylabel(), [panel.get_ylabel() for panel in ax.figure.axes[1:]]
        ('level (m)', ['posterior'])
    """
    x, seen = observations(data, posterior)
    found = decoded(posterior, sequence)
    num_steps, num_states = found.marginals.shape
    names, palette = names_of_states(state_names, num_states), state_colours(num_states)
    axis = time_axis(times, num_steps)
    if posterior.batch_shape:
        x, seen = x[sequence], seen[sequence]
    values = np.where(seen[:num_steps].cpu().numpy(), numbers(x[:num_steps]), np.nan)
    chosen = list(range(values.shape[1])) if dims is None else list(dims)
    if not chosen or not all(0 <= dim < values.shape[1] for dim in chosen):
        raise ValueError(f"dims: expected some of 0, ..., {values.shape[1] - 1}, got {dims}")
    values = values[:, chosen]
    labels = ["x"] if values.shape[1] == 1 and dims is None else [f"x[{dim}]" for dim in chosen]
    if dim_names is not None:
        if isinstance(dim_names, str) or len(dim_names) != len(chosen):
            raise ValueError(f"dim_names: expected {len(chosen)} names, one for each dimension, got {dim_names!r}")
        labels = list(dim_names)
    points = None
    if change_points is not None:
        points = np.asarray(numbers(change_points) if isinstance(change_points, Tensor) else change_points)
        if points.ndim != 1 or not np.isin(points, np.arange(num_steps)).all():
            raise ValueError(f"change_points: expected steps among 0, ..., {num_steps - 1}, got {points}")

    as_image = len(chosen) > MOST_LINES
    num_panels = 1 if as_image else len(chosen)
    ax = new_axes(ax, height=2.2 + 1.3 * num_panels + as_image)
    rows = panels(ax, [*[1.0 + as_image] * num_panels, 0.7 if num_panels < 3 else 1.0], sharex=ax)
    if as_image:
        image = ax.pcolormesh(axis.edges, np.arange(len(chosen) + 1) - 0.5, values.T, cmap="Greys", rasterized=True)
        bands(ax, found.states, axis, palette, 1.01, 1.07, clip_on=False)
        step = -(-len(chosen) // 12)
        ax.set_yticks(range(0, len(chosen), step), labels[::step])
        ax.figure.colorbar(image, ax=rows, label="x", pad=0.01)
    else:
        for panel, series, label in zip(rows, values.T, labels, strict=False):
            bands(panel, found.states, axis, palette, 0, 1, alpha=BAND, zorder=0)
            draw_series(panel, axis.centres, series, points=not x.is_floating_point())
            panel.set_ylabel(label)
    draw_stack(rows[-1], axis.edges, found.marginals, palette)
    marks = []
    if points is not None:
        from matplotlib.lines import Line2D

        style = {"color": "black", "linestyle": "--", "linewidth": 0.8}
        for row in rows:
            row.vlines(axis.edges[points.astype(int)], 0, 1, transform=row.get_xaxis_transform(), **style)
        marks = [Line2D([], [], label="change points", **style)]
    for row in rows[:-1]:
        row.tick_params(labelbottom=False)
    label_time(rows[-1], axis, time_label)
    ax.figure.align_ylabels(rows)
    draw_key(rows, names, palette, 1.08 if as_image else 1.0, marks)
    return ax


def draw_series(ax: Any, centres: np.ndarray, series: np.ndarray, points: bool) -> None:
    """A line with gaps at NaN, or points; what stands alone between gaps is a point too."""
    if points:
        from matplotlib.ticker import MaxNLocator

        ax.plot(centres, series, linestyle="none", marker=".", color="0.15", markersize=4)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    else:
        seen = np.pad(np.isfinite(series), 1)
        alone = seen[1:-1] & ~seen[:-2] & ~seen[2:]
        ax.plot(centres, series, color="0.15", linewidth=1.0 if len(series) < LONG else 0.5)
        if alone.any():
            ax.plot(centres[alone], series[alone], linestyle="none", marker=".", color="0.15", markersize=4)


def draw_stack(ax: Any, edges: np.ndarray, marginals: np.ndarray, palette: Sequence[Any]) -> None:
    """The posterior probabilities (T, K) of each step on top of each other."""
    tops = np.cumsum(marginals, 1)
    for top, share, colour in zip(tops.T, marginals.T, palette, strict=True):
        # A value for each edge: that of the last step holds up to the last edge.
        low, high = (np.append(value, value[-1]) for value in (top - share, top))
        ax.fill_between(edges, low, high, step="post", facecolor=colour, linewidth=0)
    ax.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="posterior")


def draw_key(
    rows: Sequence[Any], names: Sequence[str], palette: Sequence[Any], y: float, marks: Sequence[Any] = ()
) -> None:
    """Which colour is which state: a legend above, or a colour bar of many; and what else is marked."""
    few = len(names) <= MOST_NAMES
    handles = list(marks)
    if few:
        from matplotlib.patches import Patch

        handles = [*(Patch(color=c, label=name) for c, name in zip(palette, names, strict=True)), *marks]
    if handles:
        legend_above(rows[0], handles, y)
    if few:
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = np.arange(len(names) + 1) - 0.5
    bar = rows[0].figure.colorbar(ScalarMappable(BoundaryNorm(edges, len(names)), ListedColormap(palette)), ax=rows)
    ticks = range(0, len(names), -(-len(names) // 12))
    bar.set_ticks(list(ticks), labels=[names[i] for i in ticks])


def plot_decoding(
    posterior: MarkovChain,
    true_states: Tensor | None = None,
    sequence: int = 0,
    *,
    states: Sequence[int] | None = None,
    state_names: Sequence[str] | None = None,
    times: ArrayLike | None = None,
    time_label: str = "step",
    ax: Any = None,
) -> Any:
    """Plot posterior probabilities of states as curves, over the true segments, with the most probable path above.

    Args:
        posterior: the law of the paths, of batch shape (N,) or ().
        true_states: (N, T) or (T,), int64, -1 where unknown; shaded where they are among `states`.
        sequence: which one is drawn.
        states: whose curves are drawn. Default: of two states the second one, as the other is what is left; else all.
        state_names: K names.
        times: (T,), increasing numbers or dates of the steps; 0, 1, ... if None.
        time_label: label of the time axis, with its unit.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: true states that do not fit, no such sequence or state, or a sequence that is impossible
            under the model.
        ImportError: matplotlib is not installed.

    Reference:
        Durbin, Eddy, Krogh and Mitchison (1998), "Biological sequence analysis", figures 3.5 and 3.9.

    Example:
        >>> import matplotlib, torch
        >>> matplotlib.use("Agg")
        >>> chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]]))
        >>> ax = plot_decoding(chain, torch.tensor([0, 0, 1]), state_names=["fair", "loaded"])
        >>> ax.get_lines()[0].get_ydata().round(2)
        array([0.27, 0.5 , 0.95])
    """
    found = decoded(posterior, sequence)
    num_steps, num_states = found.marginals.shape
    names, palette = names_of_states(state_names, num_states), state_colours(num_states)
    axis = time_axis(times, num_steps)
    if states is None:
        states = [1] if num_states == 2 else range(num_states)
    states = list(states)
    if not states or not all(0 <= state < num_states for state in states):
        raise ValueError(f"states: expected some of 0, ..., {num_states - 1}, got {states}")

    ax = new_axes(ax, height=3.2)
    if true_states is not None:
        shape = (*posterior.batch_shape, posterior.num_steps)
        if not isinstance(true_states, Tensor) or true_states.is_floating_point():
            raise TypeError("true_states: expected a tensor of integers")
        if true_states.shape != shape:
            raise ValueError(f"true_states: expected shape {shape}, like the posterior, got {tuple(true_states.shape)}")
        truth = true_states.detach().reshape(-1, posterior.num_steps)[sequence, :num_steps].cpu().numpy()
        if truth.max() >= num_states or truth.min() < -1:
            raise ValueError(f"true_states: expected -1, ..., {num_states - 1}, got {truth.min()} to {truth.max()}")
        shaded = np.where(np.isin(truth, states), truth, -1)
        bands(ax, shaded, axis, palette, 0.0, 1 / TOP, alpha=BAND, zorder=0)
    bands(ax, found.states, axis, palette, STRIP[0] / TOP, STRIP[1] / TOP)
    width, marker = 1.5 if num_steps < LONG else 0.7, "." if num_steps == 1 else ""
    for state in states:
        ax.plot(axis.centres, found.marginals[:, state], color=palette[state], linewidth=width, marker=marker)
    ax.set(ylim=(0, TOP), yticks=[0, 0.5, 1, sum(STRIP) / 2], yticklabels=["0", "0.5", "1", "Viterbi"])
    ax.set_ylabel(f"P({names[states[0]]} | all data)" if len(states) == 1 else "posterior")
    ax.spines[["top", "right"]].set_visible(False)
    label_time(ax, axis, time_label)
    draw_decoding_key(ax, states, names, palette, true_states is not None)
    return ax


def draw_decoding_key(ax: Any, states: list[int], names: list[str], palette: list[Any], with_truth: bool) -> None:
    """What the curves, shades and the strip are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if len(names) > MOST_NAMES:
        draw_key([ax], names, palette, 1.0)
        return
    handles: list[Any] = [Patch(color=colour, label=name) for colour, name in zip(palette, names, strict=True)]
    curve = palette[states[0]] if len(states) == 1 else "0.3"
    handles.append(Line2D([], [], color=curve, label="posterior"))
    if with_truth:
        handles.append(Patch(color=curve, alpha=BAND, linewidth=0, label="truth"))
    legend_above(ax, handles)
