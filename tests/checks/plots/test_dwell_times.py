import math

import numpy as np
import pytest
import torch

from pyrohmm.checks import plot_dwell_times
from pyrohmm.checks.plots.dwell_times import dwell_times
from pyrohmm.distributions import MarkovChain
from pyrohmm.models import HMM
from pyrohmm.nn import CategoricalEmission, Transition


def test_runs_whose_end_was_seen():
    paths = torch.tensor([[0, 0, 1, 1, 1, 0], [1, -1, 0, 1, -1, -1], [2, 2, 2, 2, 2, 2]])
    assert [dwells.tolist() for dwells in dwell_times(paths, 4)] == [[2, 1], [3], [], []]
    assert [dwells.tolist() for dwells in dwell_times(paths[0], 2)] == [[2], [3]]
    assert [dwells.tolist() for dwells in dwell_times(torch.zeros(2, 1).long(), 1)] == [[]]


def test_dwell_times_of_a_long_path_are_geometric():
    chain = MarkovChain(torch.zeros(2), torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log(), num_steps=20000)
    path = chain.sample(generator=torch.Generator().manual_seed(0))
    for dwells, stay in zip(dwell_times(path, 2), (0.9, 0.5), strict=True):
        error = math.sqrt(stay) / (1 - stay) / math.sqrt(len(dwells))
        assert dwells.mean() == pytest.approx(1 / (1 - stay), abs=4 * error)


def test_bars_and_law(ax):
    paths = torch.tensor([[0, 0, 0, 1, 0, 1, 1, 1, 0, -1]])
    assert plot_dwell_times(paths, [[0.75, 0.25], [0.5, 0.5]], state_names=["rest", "run"], ax=ax) is ax
    first, second = ax.figure.axes
    assert [panel.get_title() for panel in (first, second)] == ["rest", "run"]
    heights = [bar.get_height() for bar in first.patches]
    assert heights[:3] == [0.5, 0, 0.5]
    assert sum(heights) == 1
    (law,) = first.get_lines()
    steps = law.get_xdata()
    assert steps[:3].tolist() == [1, 2, 3]
    assert law.get_ydata() == pytest.approx(0.75 ** (steps - 1) * 0.25)
    assert first.texts[0].get_text() == "2 runs, mean 2\ngeometric, mean 4"
    assert [bar.get_height() for bar in second.patches][:3] == [0.5, 0, 0.5]


def test_long_dwell_times_share_bars(ax):
    generator = torch.Generator().manual_seed(0)
    chain = MarkovChain(torch.zeros(2), torch.tensor([[0.99, 0.01], [0.01, 0.99]]).log(), num_steps=20000)
    path = chain.sample(generator=generator)
    plot_dwell_times(path, chain, chosen=[1], ax=ax)
    dwells = dwell_times(path, 2)[1]
    bars, (law,) = ax.patches, ax.get_lines()
    width = bars[0].get_width()
    assert width > 1
    assert len(bars) <= 40
    for bar, height in zip(bars, law.get_ydata(), strict=True):
        steps = np.arange(math.ceil(bar.get_x()), bar.get_x() + width)
        assert bar.get_height() == pytest.approx(np.isin(dwells, steps).mean() / width)
        assert height == pytest.approx((0.99 ** (steps - 1) * 0.01).mean(), rel=1e-4)
    assert sum(bar.get_height() for bar in bars) * width == pytest.approx(1)


def test_the_paths_and_transitions_of_a_posterior(ax):
    model = HMM(CategoricalEmission(2, 2, probs=[[0.9, 0.1], [0.2, 0.8]]), transition=Transition(2, sticky=1.0))
    posterior = model.posterior(model.simulate(3, 50, lengths=torch.tensor([50, 1, 20]), seed=0))
    plot_dwell_times(posterior, ax=ax)
    dwells = dwell_times(posterior.mode, 2)
    for panel, found in zip(ax.figure.axes, dwells, strict=True):
        assert panel.texts[0].get_text().startswith(f"{len(found)} run")
        assert panel.patches[0].get_height() * len(found) == pytest.approx((found == 1).sum())


def test_states_that_are_never_left_or_never_there(ax):
    plot_dwell_times(torch.zeros(5).long(), [[1.0, 0.0], [0.5, 0.5]], ax=ax)
    first, second = ax.figure.axes
    assert first.texts[0].get_text() == "0 runs\nnever left"
    assert not first.get_lines()
    assert second.get_lines()[0].get_ydata()[0] == 0.5
    ax.figure.draw_without_rendering()


def test_seven_states_have_two_rows(ax):
    plot_dwell_times(torch.arange(7), np.full((7, 7), 1 / 7), ax=ax)
    assert len(ax.figure.axes) == 7  # of 2 times 4 places


@pytest.mark.parametrize(("size", "num_rows"), [((8, 2), 1), ((3, 8), 3)])
def test_panels_by_the_shape_of_the_axes(size, num_rows):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    plot_dwell_times(torch.arange(3), np.full((3, 3), 1 / 3), ax=figure.subplots())
    assert len({panel.get_position().y0 for panel in figure.axes}) == num_rows


def test_bad_paths(ax):
    with pytest.raises(TypeError, match="transitions: expected some beside paths"):
        plot_dwell_times(torch.zeros(3).long(), ax=ax)
    with pytest.raises(TypeError, match="states: expected a MarkovChain or a tensor"):
        plot_dwell_times(torch.zeros(3), np.eye(2), ax=ax)
    with pytest.raises(ValueError, match="states: expected -1, ..., 1, got 0 to 2"):
        plot_dwell_times(torch.tensor([0, 2]), np.eye(2), ax=ax)
    with pytest.raises(ValueError, match="chosen: expected some of 0, ..., 1"):
        plot_dwell_times(torch.tensor([0, 1]), np.eye(2), chosen=[2], ax=ax)
