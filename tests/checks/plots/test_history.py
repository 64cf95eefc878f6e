import numpy as np
import pytest

from pyrohmm import History
from pyrohmm.checks import plot_history, plot_restarts


def lines(ax) -> dict:
    return {line.get_label(): line for line in ax.get_lines()}


def test_few_steps(ax):
    history = History(loss=[3.0, 2.0, 1.5], evaluated=[1, 3], validation=[3.5, 2.5], learning_rate=[0.1] * 3)
    assert plot_history(history, ax=ax) is ax
    drawn = lines(ax)
    assert drawn["loss"].get_xdata().tolist() == [1, 2, 3]
    assert drawn["loss"].get_ydata().tolist() == [3.0, 2.0, 1.5]
    assert drawn["validation"].get_xydata().tolist() == [[1, 3.5], [3, 2.5]]
    assert drawn["best validation, step 3"].get_xydata().tolist() == [[3, 2.5]]
    assert ax.figure.axes == [ax]  # the learning rate stayed the same
    assert len(ax.get_legend().get_texts()) == 3


def test_many_steps_have_a_moving_mean_and_a_learning_rate(ax):
    loss = np.random.default_rng(0).normal(size=500)
    rates = np.linspace(0.1, 0.0, 500)
    plot_history(History(loss=loss.tolist(), learning_rate=rates.tolist()), ax=ax)
    mean = lines(ax)["mean of 10 steps"]
    assert mean.get_xdata()[[0, -1]].tolist() == [10, 500]
    assert mean.get_ydata()[0] == pytest.approx(loss[:10].mean())
    assert mean.get_ydata()[-1] == pytest.approx(loss[-10:].mean())
    twin = ax.figure.axes[1]
    assert twin.get_ylabel() == "learning rate"
    assert twin.get_lines()[0].get_ydata() == pytest.approx(rates)
    assert "learning rate" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_validation_that_was_never_finite_has_no_best(ax):
    plot_history(History(loss=[1.0], evaluated=[1], validation=[float("nan")]), ax=ax)
    assert set(lines(ax)) == {"loss", "validation"}
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]


def test_restarts_are_sorted(ax):
    history = History(loss=[1.0], restarts=[2.0, float("inf"), 1.0, 1.0, float("nan")])
    assert plot_restarts(history, ax=ax) is ax
    drawn = lines(ax)
    assert drawn["restart"].get_xydata().tolist() == [[1, 1.0], [2, 1.0], [3, 2.0]]
    assert drawn["best"].get_xydata().tolist() == [[1, 1.0]]
    assert ax.get_xlabel() == "restarts, best first (2 without a finite loss)"
    low, high = ax.get_ylim()
    assert low < 1 < 2 < high


def test_rounding_does_not_look_like_a_spread(ax):
    plot_restarts(History(loss=[1.0], restarts=[1.0, 1.0 + 1e-7]), ax=ax)
    low, high = ax.get_ylim()
    assert high - low > 1e-3


def test_nothing_to_draw(ax):
    with pytest.raises(ValueError, match="history: expected at least one step"):
        plot_history(History(), ax=ax)
    for restarts in ([], [float("inf")]):
        with pytest.raises(ValueError, match="history: expected the finite losses of restarts"):
            plot_restarts(History(loss=[1.0], restarts=restarts), ax=ax)
