"""Plots of a transition matrix, as a heat map and as a graph."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyrohmm.checks.plots.common import PLATE, names_of_states, new_axes, numbers, shown, size_in_inches, state_colours
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.models import HMM
from pyrohmm.models.isolation import own_parameters

MOST_NUMBERS = 20  # states for which the heat map has numbers
LEAST_FONT = 6.0  # points, below which numbers cannot be read
MOST_LABELS = 14  # arrows between states for which the graph has all numbers
BEND = 0.18  # of the arrows, a part of their length
LETTER = 0.09  # width of a letter, where the states lie on a circle of radius 1

Transitions = HMM | HiddenMarkovModel | MarkovChain | ArrayLike | Tensor


def plot_transitions(transitions: Transitions, *, state_names: Sequence[str] | None = None, ax: Any = None) -> Any:
    """Plot transition probabilities as a heat map, with numbers.

    A colour bar stands in for the numbers of more than 20 states, and of axes too small for them to be read.

    Args:
        transitions: a model or chain whose transitions are the same at all steps, or their probabilities (K, K),
            [from, to].
        state_names: K names.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: transitions that differ between steps or sequences, or rows that are no probabilities.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> ax = plot_transitions([[0.95, 0.05], [0.1, 0.9]], state_names=["fair", "loaded"])
        >>> [text.get_text() for text in ax.texts]
        ['.95', '.05', '.10', '.90']

        Of transitions that depend on inputs, what a posterior expects of them:

        >>> from pyrohmm.nn import CategoricalEmission
        >>> from pyrohmm.data import Sequences
        >>> posterior = HMM(CategoricalEmission(2, 2)).posterior(Sequences.from_list([[0, 1, 1], [1, 0]]))
        >>> moves = posterior.transition_marginals.sum((0, 1))
        >>> ax = plot_transitions(moves / moves.sum(-1, keepdim=True))
    """
    matrix = transition_matrix(transitions)
    num_states = len(matrix)
    size = min(max(3.2, 1.5 + 0.45 * num_states), 8.0)
    ax = new_axes(ax, size, size)
    image = ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    # In points, from the size of a cell as the figure is now.
    size = min(11.0, 0.36 * 72 * min(size_in_inches(ax)) / num_states)
    if num_states <= MOST_NUMBERS and size >= LEAST_FONT:
        for (row, column), value in np.ndenumerate(matrix):
            colour = "white" if value > 0.55 else "black"
            ax.text(column, row, shown(value), color=colour, ha="center", va="center", fontsize=size)
    else:
        ax.figure.colorbar(image, ax=ax, label="probability")
    step = -(-num_states // 25)
    labels = [str(state) for state in range(num_states)]
    if state_names is not None:
        labels = names_of_states(state_names, num_states)
    ticks, labels = range(0, num_states, step), labels[::step]
    wide = max(map(len, labels)) > max(4, 20 / num_states)
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if wide else {}
    ax.set_xticks(ticks, labels, **turned)
    ax.set_yticks(ticks, labels)
    ax.set(xlabel="to state", ylabel="from state")
    return ax


def plot_state_graph(
    transitions: Transitions,
    *,
    occupancy: ArrayLike | Tensor | None = None,
    least: float = 0.02,
    state_names: Sequence[str] | None = None,
    ax: Any = None,
) -> Any:
    """Plot states as a graph: discs with areas by occupancy, arrows with widths by transition probability.

    Args:
        transitions: as for `plot_transitions`.
        occupancy: (K,), shares of the time in each state, e.g. the mean marginals of a posterior; the stationary
            distribution if None.
        least: transitions of smaller probability have no arrow.
        state_names: K names; else their numbers.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes. `ax.patches` are the K discs and then the arrows, row by row of the matrix.

    Raises:
        TypeError, ValueError: as for `plot_transitions`, an occupancy that is none, or none given where the chain has
            no unique stationary distribution.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> ax = plot_state_graph([[0.95, 0.05], [0.1, 0.9]], state_names=["fair", "loaded"])
        >>> [text.get_text() for text in ax.texts]
        ['fair', 'loaded', '.95', '.05', '.10', '.90']
    """
    matrix = transition_matrix(transitions)
    num_states = len(matrix)
    names = [str(i) for i in range(num_states)] if state_names is None else names_of_states(state_names, num_states)
    if not 0 <= least <= 1:
        raise ValueError(f"least: expected a probability, got {least}")
    if occupancy is None:
        with np.errstate(divide="ignore"):
            chain = MarkovChain(torch.zeros(num_states).double(), torch.from_numpy(np.log(matrix)))
        try:
            shares = numbers(chain.stationary_distribution())
        except ValueError as error:
            raise ValueError(f"occupancy: expected one, as there is no stationary distribution: {error}") from error
    else:
        shares = numbers(occupancy) if isinstance(occupancy, Tensor) else np.asarray(occupancy, dtype=float)
        if shares.shape != (num_states,) or not (shares >= 0).all() or not shares.sum() > 0:
            raise ValueError(f"occupancy: expected {num_states} shares, none negative, got {occupancy}")
        shares = shares / shares.sum()

    from matplotlib.colors import to_rgb
    from matplotlib.patches import Circle, FancyArrowPatch
    from matplotlib.path import Path

    ax = new_axes(ax, 6.0, 2.6 if num_states < 3 else 5.0)
    # Clockwise from the top, two of them side by side.
    angles = math.pi * (1 if num_states == 2 else 0.5) - 2 * math.pi * np.arange(num_states) / num_states
    outward = np.stack([np.cos(angles), np.sin(angles)], 1)
    places = outward * (num_states > 1)
    # The largest that do not touch their neighbours; the least can still be seen.
    widest = 0.3 if num_states < 3 else min(0.3, 0.75 * math.sin(math.pi / num_states))
    radii = np.maximum(widest * np.sqrt(shares / shares.max()), 0.25 * widest)
    discs = [
        ax.add_patch(Circle(tuple(place), radius, facecolor=colour, edgecolor="0.2", zorder=3))
        for place, radius, colour in zip(places, radii, state_colours(num_states), strict=True)
    ]
    # In the discs where all fit, at some width of a letter; else beside them, past the loops.
    inside = all(radius > LETTER * len(name) / 2 for radius, name in zip(radii, names, strict=True))
    for i, name in enumerate(names):
        style = {"ha": "center", "va": "center", "zorder": 4, "fontsize": 10 if num_states <= 12 else 8}
        light = np.dot(to_rgb(discs[i].get_facecolor()[:3]), (0.299, 0.587, 0.114)) > 0.5
        where = places[i]
        if not inside:
            where = where + outward[i] * (radii[i] + 2 * loop_size(radii[i]) + 0.12)
            style["ha"] = "center" if abs(outward[i, 0]) < 0.3 else "left" if outward[i, 0] > 0 else "right"
        ax.text(*where, name, color="black" if light or not inside else "white", **style)

    reach = (num_states > 1) + radii.max() + 2 * loop_size(radii.max()) + 0.1
    wide, high = reach, 0.45 if num_states == 2 else reach
    if not inside:
        wide, high = wide + LETTER * max(map(len, names)), high + 0.1
    ax.set(xlim=(-wide, wide), ylim=(-high, high), aspect="equal")
    ax.axis("off")

    # Lines are as wide as the discs allow, which is known in inches only.
    width, height = size_in_inches(ax)
    scale = min(1.0, max(0.5, min(width / wide, height / high) / 2))
    edges = [(i, j) for i in range(num_states) for j in range(num_states) if matrix[i, j] > 0 and matrix[i, j] >= least]
    crowded = sum(start != end for start, end in edges) > MOST_LABELS
    for start, end in edges:
        probability = matrix[start, end]
        width = scale * (0.5 + 3 * probability)
        head = f"-|>,head_length={3 * scale + 0.8 * width},head_width={1.5 * scale + 0.6 * width}"
        style = {"linewidth": width, "color": "0.45", "arrowstyle": head, "zorder": 2, "shrinkA": 0, "shrinkB": 0}
        style |= {"joinstyle": "miter", "capstyle": "butt"}
        if start == end:
            curve, middle = loop(places[start], radii[start], angles[start])
            arrow = FancyArrowPatch(path=Path(curve), **style)
        else:
            bend = {"connectionstyle": f"arc3,rad={BEND}", "patchA": discs[start], "patchB": discs[end]}
            arrow = FancyArrowPatch(places[start], places[end], **bend, **style)
            middle = on_bend(places[start], places[end], 0.4)
        ax.add_patch(arrow)
        if start == end or not crowded or probability >= 0.1:
            ax.text(*middle, shown(probability), fontsize=8, ha="center", va="center", zorder=5, bbox=PLATE)
    return ax


def loop_size(radius: float) -> float:
    """The radius of the arrow from a disc of this radius to itself."""
    return 0.7 * max(radius, 0.12)


def loop(place: np.ndarray, radius: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The points of an arrow from a disc to itself on the side of this angle, and the one farthest out."""
    size = loop_size(radius)
    far = radius + 0.6 * size  # between the centres of the two circles
    direction = np.array([math.cos(angle), math.sin(angle)])
    # From where the circles meet to where they meet again, seen from the centre of the loop.
    inner = math.acos((far**2 + size**2 - radius**2) / (2 * far * size))
    turns = angle + np.linspace(inner - math.pi, math.pi - inner, 40)
    points = place + far * direction + size * np.stack([np.cos(turns), np.sin(turns)], 1)
    return points, place + (far + size) * direction


def on_bend(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """The point at a share of the way of the curve that matplotlib's arc3 draws, a quadratic Bezier one."""
    dx, dy = end - start
    control = (start + end) / 2 + BEND * np.array([dy, -dx])
    return (1 - share) ** 2 * start + 2 * share * (1 - share) * control + share**2 * end


def transition_matrix(transitions: Transitions) -> np.ndarray:
    """The probabilities (K, K), [from, to], float64."""
    if isinstance(transitions, HMM):
        part = transitions.transition
        if transitions._names_of_priors():
            raise ValueError("transitions: expected parameters without priors; give a matrix, such as their mean")
        with torch.no_grad(), own_parameters(transitions):
            logits = part(transitions._states().flatten(), None)
        matrix = numbers(logits.log_softmax(-1).exp())
    elif isinstance(transitions, HiddenMarkovModel | MarkovChain):
        chain = transitions.prior if isinstance(transitions, HiddenMarkovModel) else transitions
        matrix = numbers(chain.transition_logits.exp())
        if math.prod(matrix.shape[:-2]) == 1:
            matrix = matrix.reshape(matrix.shape[-2:])
    else:
        try:
            matrix = numbers(transitions) if isinstance(transitions, Tensor) else np.asarray(transitions, dtype=float)
        except (TypeError, ValueError) as error:
            got = type(transitions).__name__
            raise TypeError(f"transitions: expected a model, a chain or a matrix (K, K), got {got}") from error
    if matrix.ndim != 2 or len(matrix) != len(matrix.T) or not matrix.size:
        raise ValueError(
            f"transitions: expected one matrix (K, K) for all steps and sequences, got shape {matrix.shape}; "
            "of others, give a matrix of what a posterior expects"
        )
    sums = matrix.sum(1)
    if not ((matrix >= 0).all() and np.allclose(sums, 1, atol=1e-4)):
        raise ValueError(f"transitions: expected rows of probabilities that add up to 1, got sums {sums}")
    return matrix
