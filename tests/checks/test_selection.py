import subprocess
import sys

import matplotlib
import pytest

from pyrohmm.checks import plot_selection
from pyrohmm.infer import SelectionRow, StateSelection

matplotlib.use("Agg")


def selection(heldout: bool = True, error: float | None = 0.1) -> StateSelection:
    rows = [
        SelectionRow(k, -300.0 / k, 4 * k, 600.0 / k + 8 * k, 600.0 / k + 20 * k, -3.0 / k if heldout else None, error)
        for k in (4, 1, 2)
    ]
    return StateSelection(rows, "bic", rows[2], None, 100)  # type: ignore[arg-type]


def close(ax) -> None:
    from matplotlib import pyplot

    pyplot.close(ax.figure)


def test_the_curves_are_the_table_in_nats_for_each_step():
    ax = plot_selection(selection())
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["AIC / 2n"].get_xdata().tolist() == [1, 2, 4]
    assert lines["AIC / 2n"].get_ydata().tolist() == pytest.approx([3.04, 1.58, 0.91])
    assert lines["BIC / 2n"].get_ydata().tolist() == pytest.approx([3.1, 1.7, 1.15])
    assert ax.containers[0].get_label() == "held-out"
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([3.0, 1.5, 0.75])
    assert lines["best by bic: 2 states"].get_xdata() == [2, 2]
    close(ax)


@pytest.mark.parametrize(("heldout", "error"), [(False, None), (True, None)])
def test_what_was_not_held_out_is_not_drawn(heldout, error):
    ax = plot_selection(selection(heldout, error))
    assert len(ax.containers) == heldout
    close(ax)


def test_on_given_axes():
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2)
    assert plot_selection(selection(), right) is right
    assert not left.get_lines()
    pyplot.close(figure)


def test_the_library_loads_neither_matplotlib_nor_arviz():
    code = "import pyrohmm.checks, sys; assert not {'matplotlib', 'arviz', 'xarray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_loads_no_part_of_scipy_that_is_not_used_yet():
    parts = {f"scipy.{name}" for name in ("cluster", "linalg", "optimize", "special", "stats")}
    # Those that torch and Pyro load themselves would not be the library's.
    code = (
        f"import pyro, sys; before = set(sys.modules); import pyrohmm; assert not {parts} & set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
