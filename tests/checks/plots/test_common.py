import pickle
import re

import numpy as np
import pytest
import torch

from pyrohmm.checks.plots.common import (
    OKABE_ITO,
    bands,
    decoded,
    legend_above,
    names_of_states,
    new_axes,
    observations,
    panels,
    runs,
    shown,
    state_colours,
    time_axis,
)
from pyrohmm.data import Sequences
from pyrohmm.distributions import MarkovChain

NAN = float("nan")


def posterior(lengths: list[int], num_steps: int = 5, num_states: int = 3) -> MarkovChain:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(len(lengths), num_steps, num_states, generator=generator)
    for row, length in zip(logits, lengths, strict=True):
        row[length:] = NAN
    matrix = torch.randn(num_states, num_states, generator=generator)
    return MarkovChain(torch.zeros(num_states), matrix, logits, lengths=torch.tensor(lengths))


def test_colours_are_different():
    assert state_colours(8) == list(OKABE_ITO)
    many = state_colours(12)
    assert len(set(many)) == 12
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in many)
    with pytest.raises(ValueError, match="num_states: expected at least 1, got 0"):
        state_colours(0)


@pytest.mark.parametrize("names", [["a"], "ab", []])
def test_names_are_as_many_as_states(names):
    with pytest.raises(ValueError, match="state_names: expected 2 names"):
        names_of_states(names, 2)


def test_a_new_figure_is_one_of_pyplot():
    from matplotlib import pyplot

    created = new_axes(None, 5.0, 2.0)
    assert pyplot.gcf() is created.figure
    assert created.figure.get_size_inches().tolist() == [5.0, 2.0]
    assert new_axes(created) is created


def test_panels_fill_the_place_of_the_axes(ax):
    rows = panels(ax, [2.0, 1.0, 1.0], sharex=ax)
    assert rows[0] is ax
    assert rows == ax.figure.axes
    ax.figure.draw_without_rendering()
    boxes = [row.get_position() for row in rows]
    assert boxes[0].height == pytest.approx(2 * boxes[1].height, rel=0.01)
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1
    rows[2].set_xlim(3, 4)
    assert ax.get_xlim() == (3, 4)


def test_panels_beside_other_axes_and_of_axes_put_by_hand():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    grid = panels(right, [1.0, 1.0], 2)
    assert len(grid) == 4
    assert all(panel.get_position().x0 > left.get_position().x1 for panel in grid)
    hand = figure.add_axes((0.1, 0.2, 0.3, 0.4))
    top, bottom = panels(hand, [1.0, 1.0])
    assert top is hand
    assert top.get_position().y1 == pytest.approx(0.6)
    assert bottom.get_position().bounds[:3:2] == pytest.approx((0.1, 0.3))
    assert bottom.get_position().y0 == pytest.approx(0.2)
    assert panels(left, [1.0]) == [left]


def test_edges_lie_halfway():
    assert time_axis(None, 3).edges.tolist() == [-0.5, 0.5, 1.5, 2.5]
    assert time_axis([5], 1).edges.tolist() == [4.5, 5.5]
    assert time_axis(torch.tensor([0.0, 2.0, 3.0, -1.0]), 3).edges.tolist() == [-1.0, 1.0, 2.5, 3.5]
    dates = time_axis(np.array(["2026-01-01", "2026-01-03"], dtype="datetime64[D]"), 2)
    assert dates.is_date
    assert np.diff(dates.edges).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("times", "match"),
    [([1.0], "shape"), ([[1.0, 2.0]], "shape"), ([1.0, 1.0], "increasing"), ([0.0, NAN], "finite")],
)
def test_bad_times(times, match):
    with pytest.raises(ValueError, match=f"times: expected .*{match}"):
        time_axis(times, 2)


@pytest.mark.parametrize("sequence", [0, 1, 2, -1])
def test_one_sequence_is_decoded_as_in_the_batch(sequence):
    lengths = [5, 1, 3]
    chain = posterior(lengths)
    found = decoded(chain, sequence)
    length = lengths[sequence]
    assert found.states.tolist() == chain.mode[sequence, :length].tolist()
    assert found.marginals == pytest.approx(chain.marginals[sequence, :length].numpy(), abs=1e-6)


@pytest.mark.parametrize("length", [1, 4])
def test_one_of_transitions_that_differ(length):
    generator = torch.Generator().manual_seed(1)
    chain = MarkovChain(
        torch.randn(2, 3, generator=generator),
        torch.randn(2, 3, 3, 3, generator=generator),
        torch.randn(2, 4, 3, generator=generator),
        lengths=torch.tensor([4, length]),
    )
    found = decoded(chain, 1)
    assert found.marginals == pytest.approx(chain.marginals[1, :length].numpy(), abs=1e-6)


def test_one_without_a_batch_and_without_observations():
    chain = MarkovChain(torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), num_steps=3)
    assert decoded(chain, 0).marginals == pytest.approx(chain.marginals.numpy(), abs=1e-6)


def test_what_cannot_be_decoded():
    with pytest.raises(TypeError, match="posterior: expected a MarkovChain, got Tensor"):
        decoded(torch.zeros(2), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sequence: expected an int that is one of 2 sequences, got 2"):
        decoded(posterior([5, 3]), 2)
    with pytest.raises(ValueError, match="at least one step"):
        decoded(posterior([5, 0]), 1)
    with pytest.raises(ValueError, match=r"batch shape \(\) or \(N,\), got \(2, 2\)"):
        decoded(posterior([5, 3]).expand((2, 2)), 0)
    impossible = MarkovChain(torch.zeros(2), torch.zeros(2, 2), torch.full((3, 2), -torch.inf))
    with pytest.raises(ValueError, match="sequence 0 has none"):
        decoded(impossible, 0)


def test_observed_entries():
    chain = posterior([5, 2], num_states=2)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    x[0, 2, 1] = NAN
    expected = ~x.isnan()
    expected[1, 2:] = False
    assert observations(x, chain)[1].equal(expected)
    data = Sequences.from_list([x[0], x[1, :2]], mask="nan")
    values, seen = observations(data, chain)
    assert seen.equal(expected)
    assert values[seen].equal(x[seen])
    steps = Sequences(torch.zeros(2, 5, 3), torch.tensor([5, 2]), mask=torch.tensor([[True, False] * 2 + [True]] * 2))
    assert observations(steps, chain)[1][..., 0].tolist() == [[True, False] * 2 + [True], [True] + [False] * 4]


def test_observations_that_do_not_fit():
    chain = posterior([5, 2])
    with pytest.raises(ValueError, match=r"x of shape \(2, 5, \*event\), like the posterior, got \(2, 4\)"):
        observations(torch.zeros(2, 4), chain)
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences or a tensor, got list"):
        observations([1.0], chain)  # type: ignore[arg-type]


def test_runs():
    starts, ends, values = runs(np.array([2, 2, 0, -1, -1, 1]))
    assert starts.tolist() == [0, 2, 3, 5]
    assert ends.tolist() == [2, 3, 5, 6]
    assert values.tolist() == [2, 0, -1, 1]


def test_bands_leave_out_what_is_unknown(ax):
    bands(ax, np.array([0, 0, -1, 2]), time_axis(None, 4), ["red", "green", "blue"], 0.2, 0.4)
    first, second = ax.collections
    assert [path.get_extents().bounds for path in first.get_paths()] == [pytest.approx((-0.5, 0.2, 2.0, 0.2))]
    assert [path.get_extents().bounds for path in second.get_paths()] == [pytest.approx((2.5, 0.2, 1.0, 0.2))]
    assert second.get_facecolor()[0].tolist() == [0, 0, 1, 1]


def test_the_rows_of_a_legend_are_read_in_order(ax):
    lines = [ax.plot([0], [0], label=str(i))[0] for i in range(8)]
    legend_above(ax, lines)
    ax.figure.draw_without_rendering()
    texts = ax.get_legend().get_texts()
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    order = sorted(boxes, key=lambda name: (-round(boxes[name].y0), boxes[name].x0))
    assert order == [str(i) for i in range(8)]


@pytest.mark.parametrize(("value", "text"), [(0.994, ".99"), (0.9951, ">.99"), (0.0049, "<.01"), (0.0051, ".01")])
def test_rounding_does_not_reach_0_and_1(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("in_subfigure", [False, True])
@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize("num_lines", [1, 6])
def test_titles_lie_above_the_legend(in_subfigure, layout, num_lines):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), layout=layout)
    ax = (figure.subfigures(1, 2)[1] if in_subfigure else figure).subplots()
    for i in range(num_lines):
        ax.plot([0, 1], [0, i], label=f"line {i}")
    legend_above(ax)
    ax.set_title("title")
    assert figure.axes == [ax]
    figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert ax.get_window_extent().y1 <= legend.y0 < legend.y1 <= ax.title.get_window_extent().y0 < legend.y1 + 20
    pickle.loads(pickle.dumps(figure)).draw_without_rendering()
    ax.get_legend().remove()
    figure.draw_without_rendering()
    assert 0 <= ax.title.get_window_extent().y0 - ax.get_window_extent().y1 < 20
