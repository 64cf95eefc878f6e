"""The plot of how long states last."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pyrohmm.checks.plots.common import PLATE, names_of_states, new_axes, panels, runs, size_in_inches, state_colours
from pyrohmm.checks.plots.transitions import Transitions, transition_matrix
from pyrohmm.distributions import MarkovChain

MOST_BARS = 40


def plot_dwell_times(
    states: MarkovChain | Tensor,
    transitions: Transitions | None = None,
    *,
    chosen: Sequence[int] | None = None,
    state_names: Sequence[str] | None = None,
    time_label: str = "dwell time (steps)",
    ax: Any = None,
) -> Any:
    r"""Plot how long states last in decoded paths, beside the geometric law that the transition matrix implies.

    .. math:: p(d \mid k) = A_{kk}^{d - 1} (1 - A_{kk})

    The last run of each path is left out, as its end was not seen, and so are those that end in an unknown state. The
    most probable path is smoother than the truth: even of a right model it has too few short runs. Paths drawn from the
    posterior (`posterior.sample((100,))`) have not.

    Args:
        states: a posterior, of which the most probable paths are taken, or paths (..., T), int64, -1 past the length
            or where unknown.
        transitions: as for `plot_transitions`; those of the posterior if None.
        chosen: the states that get a panel; all if None.
        state_names: K names.
        time_label: label of the axis of dwell times.
        ax: matplotlib axes whose place is split into the panels; a new figure's if None.

    Returns:
        The axes of the first panel. The others follow it in `ax.figure.axes`.

    Raises:
        TypeError, ValueError: as for `plot_transitions`, states outside of -1, ..., K - 1, or no transitions given
            where `states` are paths.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib, torch
        >>> matplotlib.use("Agg")
        >>> path = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])
        >>> ax = plot_dwell_times(path, [[0.5, 0.5], [0.5, 0.5]], chosen=[0])
        >>> [float(bar.get_height()) for bar in ax.patches[:3]]
        [0.5, 0.0, 0.5]
    """
    if transitions is None:
        if not isinstance(states, MarkovChain):
            raise TypeError("transitions: expected some beside paths, got None")
        transitions = states
    matrix = transition_matrix(transitions)
    num_states = len(matrix)
    names, palette = names_of_states(state_names, num_states), state_colours(num_states)
    dwells = dwell_times(states, num_states)
    which = list(range(num_states)) if chosen is None else list(chosen)
    if not which or not all(0 <= state < num_states for state in which):
        raise ValueError(f"chosen: expected some of 0, ..., {num_states - 1}, got {chosen}")

    count = len(which)
    if ax is None:
        columns = min(count, 4 if count > 6 else 3)
        ax = new_axes(ax, max(4.0, min(8.0, 3.0 * columns)), 0.6 + 2.1 * -(-count // columns))
    else:
        # As many as make the panels largest, if they are somewhat wider than high.
        width, height = size_in_inches(ax)
        columns = max(range(1, count + 1), key=lambda n: min(width / n / 1.3, height / -(-count // n)))
    rows = -(-count // columns)
    grid = panels(ax, [1.0] * rows, columns)
    for spare in grid[count:]:
        spare.remove()
    for i, (panel, state) in enumerate(zip(grid, which, strict=False)):
        draw_dwells(panel, dwells[state], matrix[state, state], palette[state])
        panel.set_title(names[state], fontsize="medium")
        if i % columns == 0:
            panel.set_ylabel("share per step")
        if i + columns >= count:
            panel.set_xlabel(time_label)
    return ax


def draw_dwells(ax: Any, dwells: np.ndarray, stay: float, colour: Any) -> None:
    """Bars of observed dwell times (n,), and the geometric law with this probability to stay."""
    from matplotlib.ticker import MaxNLocator

    # As far as the data and nearly all of the law go, but not so far that the data cannot be seen.
    longest = int(dwells.max()) if len(dwells) else 1
    tail = math.log(0.02) / math.log(stay) if 0 < stay < 1 else 1.0
    end = max(longest, math.ceil(min(tail, 3 * longest if len(dwells) else tail)), 3)
    width = -(-end // MOST_BARS)
    edges = np.arange(1, end + width + 1, width)
    counts = np.histogram(dwells, edges)[0]
    ends = edges - 0.5
    heights = counts / (max(len(dwells), 1) * width)
    ax.bar(ends[:-1], heights, width, align="edge", color=colour, alpha=0.55, edgecolor="white", linewidth=0.5)
    highest, mean, expected = heights.max(), "", "never left"
    if len(dwells):
        mean = f", mean {dwells.mean():.3g}"
    if stay < 1:
        # The mean of the law over each bar.
        law = (stay ** (edges[:-1] - 1.0) - stay ** (edges[1:] - 1.0)) / width
        ax.plot((ends[:-1] + ends[1:]) / 2, law, color="0.15", linewidth=1.2, marker="o", markersize=2.5)
        highest, expected = max(highest, law.max()), f"geometric, mean {1 / (1 - stay):.3g}"
    note = f"{len(dwells)} run{'s' * (len(dwells) != 1)}{mean}\n{expected}"
    size = "small" if size_in_inches(ax)[0] > 1.6 else "x-small"
    ax.text(0.97, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=size, bbox=PLATE)
    ax.set(xlim=(0.5, ends[-1]), ylim=(0, 1.4 * highest or 1.0))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    ax.spines[["top", "right"]].set_visible(False)


def dwell_times(states: MarkovChain | Tensor, num_states: int) -> list[np.ndarray]:
    """The lengths of the runs of each state whose end was seen, K arrays.

    >>> import torch
    >>> dwell_times(torch.tensor([[0, 0, 1, 0], [1, 1, 1, -1]]), 2)
    [array([2]), array([1])]
    """
    if isinstance(states, MarkovChain):
        states = states.mode
    if not isinstance(states, Tensor) or states.is_floating_point() or states.dim() == 0:
        raise TypeError("states: expected a MarkovChain or a tensor (..., T) of integers")
    paths = states.detach().cpu().reshape(-1, states.shape[-1]).numpy()
    if paths.size and not -1 <= paths.min() <= paths.max() < num_states:
        raise ValueError(f"states: expected -1, ..., {num_states - 1}, got {paths.min()} to {paths.max()}")
    # One long path, with an unknown state at the end of each.
    starts, ends, values = runs(np.pad(paths, ((0, 0), (0, 1)), constant_values=-1).ravel())
    seen = np.append(values[1:] >= 0, False)
    return [(ends - starts)[seen & (values == state)] for state in range(num_states)]
