"""What the plots share: colours, names and times of the states' axes, panels, and the sequence that is drawn."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain

# Okabe and Ito (2008), told apart by the colour-blind; the first two differ most, grey stands in for black.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
BAND = 0.3  # opacity of bands behind curves
PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}  # behind numbers


class Decoded(NamedTuple):
    """One sequence with its posterior: states (T,) of the most probable path, marginals (T, K)."""

    states: np.ndarray
    marginals: np.ndarray


class Axis(NamedTuple):
    """Where steps lie in time: centres (T,), and edges (T + 1,) halfway between them."""

    centres: np.ndarray
    edges: np.ndarray
    is_date: bool


def state_colours(num_states: int) -> list[str]:
    """The colours that the states have in all plots here, for pictures of your own.

    Up to eight states have those that the colour-blind tell apart, more of them evenly spaced ones of viridis.

    Args:
        num_states: K.

    Returns:
        K colours as matplotlib takes them, "#rrggbb".

    Raises:
        ValueError: not a number of at least one.
        ImportError: matplotlib is not installed (for more than eight states).

    Reference:
        Okabe and Ito (2008), "Color universal design".

    Example:
        >>> state_colours(3)
        ['#0072B2', '#E69F00', '#009E73']

        Observations in the colours of the states in which they were made:

        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from matplotlib import pyplot
        >>> x, states = torch.randn(10, 2), torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 0, 1])
        >>> points = pyplot.scatter(*x.T, color=[state_colours(3)[state] for state in states])
    """
    if not num_states >= 1:
        raise ValueError(f"num_states: expected at least 1, got {num_states}")
    if num_states <= len(OKABE_ITO):
        return list(OKABE_ITO[:num_states])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, num_states))]


def names_of_states(state_names: Sequence[str] | None, num_states: int) -> list[str]:
    """The names given, or "state 0", "state 1", ...

    >>> names_of_states(None, 2)
    ['state 0', 'state 1']
    """
    if state_names is None:
        return [f"state {state}" for state in range(num_states)]
    if isinstance(state_names, str) or len(state_names) != num_states:
        raise ValueError(f"state_names: expected {num_states} names, one for each state, got {state_names!r}")
    return [str(name) for name in state_names]


def new_axes(ax: Any, width: float = 8.0, height: float = 4.0) -> Any:
    """The axes given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def panels(ax: Any, heights: Sequence[float], columns: int = 1, **kwargs: Any) -> list[Any]:
    """Split the place of `ax` into rows of these relative heights; `ax` stays the first panel.

    Args:
        ax: matplotlib axes.
        heights: of the rows.
        columns: panels in a row.
        kwargs: for `Figure.add_subplot` of the others.

    Returns:
        the axes, row by row.
    """
    if len(heights) * columns == 1:
        return [ax]
    figure, place = ax.figure, ax.get_subplotspec()
    if place is None:
        # Axes that were put somewhere by hand.
        box = ax.get_position()
        edges = {"left": box.x0, "right": box.x1, "bottom": box.y0, "top": box.y1}
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights, **edges)
    else:
        grid = place.subgridspec(len(heights), columns, height_ratios=heights)
    cells = [grid[row, column] for row in range(len(heights)) for column in range(columns)]
    ax.set_subplotspec(cells[0])
    return [ax, *(figure.add_subplot(cell, **kwargs) for cell in cells[1:])]


def time_axis(times: ArrayLike | None, num_steps: int) -> Axis:
    """Centres and edges of steps at these times, by default 0, 1, ...

    Args:
        times: (T',) increasing numbers or dates, T' >= T; those past T are not read.
        num_steps: T.

    >>> time_axis([0.0, 1.0, 3.0], 3).edges
    array([-0.5,  0.5,  2. ,  4. ])
    """
    if isinstance(times, Tensor):
        times = numbers(times)
    centres = np.arange(num_steps) if times is None else np.asarray(times)
    if centres.ndim != 1 or len(centres) < num_steps:
        raise ValueError(f"times: expected shape (T,) with T of at least {num_steps} steps, got {centres.shape}")
    centres = centres[:num_steps]
    is_date = centres.dtype.kind in "MO"
    if is_date:
        from matplotlib.dates import date2num

        centres = date2num(centres)
    centres = centres.astype(float)
    if not (np.isfinite(centres).all() and (np.diff(centres) > 0).all()):
        raise ValueError("times: expected finite, increasing values, got others")
    middles = (centres[1:] + centres[:-1]) / 2
    # The outer steps reach as far out as in.
    first, last = (middles[0], middles[-1]) if num_steps > 1 else (centres[0] + 0.5, centres[0] - 0.5)
    edges = np.concatenate([[2 * centres[0] - first], middles, [2 * centres[-1] - last]])
    return Axis(centres, edges, is_date)


def label_time(ax: Any, axis: Axis, label: str) -> None:
    """Limits, ticks and label of a time axis."""
    ax.set_xlim(axis.edges[0], axis.edges[-1])
    ax.set_xlabel(label)
    if axis.is_date:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    elif (axis.centres == axis.centres.round()).all():
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def decoded(posterior: MarkovChain, sequence: int) -> Decoded:
    """The most probable path and the marginals of one sequence of a posterior of batch shape () or (N,).

    >>> chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
    >>> decoded(chain, 0).states
    array([0, 1])
    """
    if not isinstance(posterior, MarkovChain):
        raise TypeError(f"posterior: expected a MarkovChain, got {type(posterior).__name__}")
    if len(posterior.batch_shape) > 1:
        raise ValueError(f"posterior: expected batch shape () or (N,), got {tuple(posterior.batch_shape)}")
    num_sequences = posterior.batch_shape.numel()
    if not isinstance(sequence, int) or not -num_sequences <= sequence < num_sequences:
        raise ValueError(f"sequence: expected an int that is one of {num_sequences} sequences, got {sequence!r}")
    # Only this one is decoded, cut to its length.
    chain = posterior.expand(torch.Size((num_sequences,)))
    length = chain.num_steps if chain.lengths is None else int(chain.lengths[sequence])
    if not length:
        raise ValueError(f"sequence: expected one with at least one step, got {sequence}, which has none")
    initial, transition, unary = (
        logits.detach().expand(num_sequences, *logits.shape[-dims:])[sequence]
        for logits, dims in zip(chain.potentials, (1, 3, 2), strict=True)
    )
    if len(transition) > 1:
        transition = transition[: length - 1]
    one = MarkovChain.from_potentials(initial, transition, unary[:length])
    states = one.viterbi().states
    if (states < 0).any():
        raise ValueError(f"posterior: expected a possible path, sequence {sequence} has none")
    return Decoded(states.cpu().numpy(), numbers(one.marginals))


def observations(data: Sequences | Tensor, posterior: MarkovChain) -> tuple[Tensor, Tensor]:
    """The observations that a posterior is of, and which of their entries were observed.

    Args:
        data: N sequences, or a tensor (..., T, *event) in which NaN is missing, batch shape that of the posterior.
        posterior: batch shape (...).

    Returns:
        x and a bool tensor, both (..., T, D), the event flattened.
    """
    if not isinstance(posterior, MarkovChain):
        raise TypeError(f"posterior: expected a MarkovChain, got {type(posterior).__name__}")
    batch, num_steps = posterior.batch_shape, posterior.num_steps
    shape = (*batch, num_steps)
    if isinstance(data, Sequences):
        x, seen = data.x, data.observed if data.entries is None else data.entries
        if not batch and len(data) == 1:
            x, seen = x[0], seen[0]
    elif isinstance(data, Tensor):
        x, seen = data, ~data.isnan()
    else:
        raise TypeError(f"data: expected pyrohmm.data.Sequences or a tensor, got {type(data).__name__}")
    if x.shape[: len(shape)] != shape:
        expected = ", ".join(map(str, (*shape, "*event")))
        raise ValueError(f"data: expected x of shape ({expected}), like the posterior, got {tuple(x.shape)}")
    x = x.detach().reshape(*shape, -1)
    seen = seen.reshape(*shape, -1).expand(x.shape).to(x.device)
    if posterior.lengths is not None:
        steps = torch.arange(num_steps, device=x.device)
        seen = seen & (steps < posterior.lengths.to(x.device).unsqueeze(-1)).unsqueeze(-1)
    return x, seen


def bands(
    ax: Any, states: np.ndarray, axis: Axis, palette: Sequence[Any], low: float, high: float, **style: Any
) -> None:
    """Rectangles from `low` to `high`, in parts of the height of the axes, over the runs of each state.

    States outside of 0, ..., K - 1, such as -1 where they are unknown, are left blank. One collection for each state
    that occurs, in the order of the states.
    """
    from matplotlib.collections import PolyCollection

    starts, ends, values = runs(states)
    for state, colour in enumerate(palette):
        here = values == state
        if not here.any():
            continue
        spans = zip(axis.edges[starts[here]], axis.edges[ends[here]], strict=True)
        corners = [[(a, low), (a, high), (b, high), (b, low)] for a, b in spans]
        patches = PolyCollection(
            corners, facecolors=[colour], linewidths=0, transform=ax.get_xaxis_transform(), **style
        )
        ax.add_collection(patches, autolim=False)


def runs(states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First steps, steps after the last ones, and values of the runs of equal values in (T,).

    >>> starts, ends, values = runs(np.array([1, 1, 0]))
    >>> starts.tolist(), ends.tolist(), values.tolist()
    ([0, 2], [2, 3], [1, 0])
    """
    changes = np.flatnonzero(np.diff(states)) + 1
    starts = np.concatenate([[0], changes]).astype(int)
    return starts, np.append(changes, len(states)).astype(int), states[starts]


def size_in_inches(ax: Any) -> tuple[float, float]:
    """Width and height of axes as they are now; a layout that is yet to come changes them somewhat."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def legend_above(ax: Any, handles: Sequence[Any] | None = None, y: float = 1.0) -> None:
    """A legend in rows over the axes, where no data are; a title, now or later, goes above it.

    Args:
        ax: matplotlib axes.
        handles: what has a label; all of them if None.
        y: where the legend begins, in heights of the axes.
    """
    keys: Sequence[Any] = ax.get_legend_handles_labels()[0] if handles is None else handles
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, y), "borderaxespad": 0.2}
    compact = {"handlelength": 1.2, "columnspacing": 1.2, "fontsize": "small"}
    # As many as fit, by about the width of a key and of a letter in inches.
    widths, columns = [0.45 + 0.065 * len(handle.get_label()) for handle in keys], min(len(keys), 6)
    while columns > 1 and sum(max(widths[i::columns]) for i in range(columns)) > size_in_inches(ax)[0]:
        columns -= 1
    # matplotlib fills columns; in this order the rows are read.
    keys = [handle for column in range(columns) for handle in keys[column::columns]]
    ax.legend(handles=keys, ncols=columns, frameon=False, **place, **compact)
    # matplotlib moves titles above the axes within these axes, but not above a legend.
    ax.inset_axes((0, y, 1, 0)).set(axes_locator=partial(place_of_legend, ax), visible=False)


def place_of_legend(ax: Any, _: Any, renderer: Any) -> Any:
    """The rectangle of the legend of `ax`, or of the axes if it was removed, in parts of the figure."""
    legend = ax.get_legend()
    if legend is None:
        return ax.get_position()
    return legend.get_window_extent(renderer).transformed(ax.figure.transSubfigure.inverted())


def numbers(tensor: Tensor) -> np.ndarray:
    """As numpy's, in float64."""
    return tensor.detach().cpu().double().numpy()


def shown(probability: float) -> str:
    """A probability with two digits that never looks like 0 or 1 unless it is.

    >>> [shown(p) for p in (0.0, 0.001, 0.25, 0.999, 1.0)]
    ['0', '<.01', '.25', '>.99', '1']
    """
    if probability in (0.0, 1.0):
        return f"{probability:.0f}"
    digits = f"{probability:.2f}"
    return {"0.00": "<.01", "1.00": ">.99"}.get(digits, digits[1:])
