"""The plot of a choice among models."""

from typing import Any

from pyrohmm.checks.plots.common import OKABE_ITO, legend_above, new_axes


def plot_selection(result: Any, ax: Any = None) -> Any:
    """Plot the criteria of `pyrohmm.infer.select_states` against the number of states.

    All in nats for each of n observed steps, so that they share an axis, lower is better: AIC / 2n, BIC / 2n, and minus
    the held-out log-likelihood, with its standard error if there were folds.

    Args:
        result: a `pyrohmm.infer.StateSelection`.
        ax: matplotlib axes to draw on; a new figure's if None.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> from pyrohmm.infer import SelectionRow, StateSelection
        >>> small = SelectionRow(1, -300.0, 3, 606.0, 613.8, None, None)
        >>> large = SelectionRow(2, -200.0, 8, 416.0, 436.8, None, None)
        >>> ax = plot_selection(StateSelection([small, large], "bic", large, None, 100))
        >>> ax.get_xlabel(), [line.get_label() for line in ax.get_lines()][:2]
        ('number of states', ['AIC / 2n', 'BIC / 2n'])
    """
    ax = new_axes(ax, 6.0)
    ax.set_prop_cycle(color=OKABE_ITO)
    rows = sorted(result.rows, key=lambda row: row.num_states)
    sizes, scale = [row.num_states for row in rows], 2 * result.num_observed
    curves = {"aic": [row.aic / scale for row in rows], "bic": [row.bic / scale for row in rows]}
    ax.plot(sizes, curves["aic"], marker="o", label="AIC / 2n")
    ax.plot(sizes, curves["bic"], marker="s", label="BIC / 2n")
    if all(row.heldout is not None for row in rows):
        curves["heldout"] = [-row.heldout for row in rows]
        errors = [row.heldout_error or 0.0 for row in rows]
        ax.errorbar(sizes, curves["heldout"], yerr=errors, marker="^", capsize=3, label="held-out")
    best = result.best.num_states
    ax.axvline(best, color="0.7", linestyle=":", zorder=0, label=f"best by {result.criterion}: {best} states")
    ax.set_xticks(sizes)
    ax.set_xlabel("number of states")
    ax.set_ylabel("nats per observed step, lower is better")
    legend_above(ax)
    return ax
