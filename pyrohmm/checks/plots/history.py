"""Plots of fits."""

import math
from typing import Any

import numpy as np

from pyrohmm.checks.plots.common import OKABE_ITO, legend_above, new_axes

SMOOTHED = 200  # steps from which the loss of minibatches gets a moving mean
LEAST_SPREAD = 1e-3  # nats per observed step, half the height of the plot of restarts at least


def plot_history(history: Any, *, ax: Any = None) -> Any:
    """Plot the loss of each step, the validation loss, and the learning rate if it changed.

    Beside the losses of 200 or more steps stands their moving mean over a fiftieth of them.

    Args:
        history: a `pyrohmm.History`, of `fit_em` or `fit_svi`.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes. The learning rate is on axes of its own, the last of the figure.

    Raises:
        ValueError: a history without steps.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from pyrohmm.infer import History
        >>> ax = plot_history(History(loss=[2.0, 1.0, 0.5], evaluated=[1, 3], validation=[2.5, 1.5]))
        >>> [line.get_label() for line in ax.get_lines()]
        ['loss', 'validation', 'best validation, step 3']
    """
    if not history.loss:
        raise ValueError("history: expected at least one step, got none")
    ax = new_axes(ax, height=3.5)
    steps, loss = np.array(history.step), np.array(history.loss, dtype=float)
    blue, orange = OKABE_ITO[:2]
    mark = {"marker": "o", "markersize": 3} if len(loss) <= 30 else {}
    if len(loss) < SMOOTHED:
        ax.plot(steps, loss, color=blue, label="loss", **mark)
    else:
        width = len(loss) // 50
        ax.plot(steps, loss, color=blue, alpha=0.3, linewidth=0.8, label="loss")
        mean = np.convolve(loss, np.full(width, 1 / width), "valid")
        ax.plot(steps[width - 1 :], mean, color=blue, label=f"mean of {width} steps")
    if history.validation:
        few = len(history.validation) <= 60
        ax.plot(
            history.evaluated,
            history.validation,
            color=orange,
            marker="s" if few else "",
            markersize=4,
            label="validation",
        )
        if history.best_step is not None:
            best = f"best validation, step {history.best_step}"
            style = {"marker": "*", "markersize": 12, "color": orange, "markeredgecolor": "0.15"}
            ax.plot([history.best_step], [history.best_validation], linestyle="none", label=best, **style)
    handles = ax.get_lines()
    if len(set(history.learning_rate)) > 1:
        twin = ax.twinx()
        rates = np.array(history.learning_rate, dtype=float)
        handles = [*handles, *twin.plot(steps, rates, color="0.5", linestyle=":", label="learning rate")]
        twin.set_ylabel("learning rate")
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="step", ylabel="loss (nats per observed step)")
    legend_above(ax, handles)
    return ax


def plot_restarts(history: Any, *, ax: Any = None) -> Any:
    """Plot the last losses of restarts, from the best to the worst: equal ones are the same optimum found again.

    Args:
        history: a `pyrohmm.History` of `fit_em(..., restarts=R)`.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes.

    Raises:
        ValueError: a history without restarts, or without a finite loss.
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from pyrohmm.infer import History
        >>> plot_restarts(History(loss=[1.0], restarts=[2.0, 1.0, 1.5])).get_lines()[0].get_ydata()
        array([1. , 1.5, 2. ])
    """
    losses = sorted(loss for loss in history.restarts if math.isfinite(loss))
    if not losses:
        raise ValueError(f"history: expected the finite losses of restarts, got {history.restarts}")
    ax = new_axes(ax, 6.0, 3.2)
    ranks = range(1, len(losses) + 1)
    ax.plot(ranks, losses, color=OKABE_ITO[0], marker="o", linewidth=0.8, label="restart")
    ax.plot([1], losses[:1], color=OKABE_ITO[1], marker="o", linestyle="none", markersize=9, label="best", zorder=3)
    ax.axhline(losses[0], color="0.7", linestyle=":", zorder=0)
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.ticklabel_format(axis="y", useOffset=False)
    # What is no more than rounding should not look like a spread.
    middle, half = (losses[0] + losses[-1]) / 2, max(0.55 * (losses[-1] - losses[0]), LEAST_SPREAD)
    ax.set_ylim(middle - half, middle + half)
    failed = len(history.restarts) - len(losses)
    ax.set(xlabel=f"restarts, best first{f' ({failed} without a finite loss)' if failed else ''}")
    ax.set_ylabel("last loss (nats per observed step)")
    legend_above(ax, ax.get_lines()[:2])
    return ax
