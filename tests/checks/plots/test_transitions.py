import math

import numpy as np
import pytest
import torch
from matplotlib.patches import Circle, ConnectionStyle, FancyArrowPatch

from pyrohmm.checks import plot_state_graph, plot_transitions
from pyrohmm.checks.plots.transitions import BEND, loop, on_bend, transition_matrix
from pyrohmm.data import Sequences
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.models import HMM
from pyrohmm.nn import CategoricalEmission, NeuralTransition, Transition

MATRIX = [[0.9, 0.1, 0.0], [0.05, 0.8, 0.15], [0.25, 0.25, 0.5]]


def random_matrix(num_states: int) -> torch.Tensor:
    return torch.randn(num_states, num_states, generator=torch.Generator().manual_seed(0)).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_matrix_comes_from(dtype):
    import pyro.distributions as dist

    probs = torch.tensor(MATRIX, dtype=dtype)
    chain = MarkovChain(torch.zeros(3, dtype=dtype), probs.log())
    model = HMM(CategoricalEmission(3, 2), transition=Transition(3)).to(dtype)
    with torch.no_grad():
        model.transition.logits.copy_(probs.clamp(min=1e-30).log())
    data = Sequences.from_list([[0, 1, 1], [1]])
    hmm = HiddenMarkovModel(chain, dist.Bernoulli(torch.tensor([0.1, 0.5, 0.9], dtype=dtype)))
    for source in (MATRIX, np.array(MATRIX), probs, chain, hmm, model, model.posterior(data)):
        assert transition_matrix(source) == pytest.approx(np.array(MATRIX), abs=1e-6)


def test_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"one matrix \(K, K\) .* got shape \(2, 1\)"):
        transition_matrix([[1.0], [1.0]])
    with pytest.raises(ValueError, match="rows of probabilities that add up to 1"):
        transition_matrix([[0.5, 0.4], [0.5, 0.5]])
    with pytest.raises(ValueError, match="rows of probabilities"):
        transition_matrix([[1.5, -0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="rows of probabilities"):
        transition_matrix([[float("nan"), 1.0], [0.5, 0.5]])
    varying = MarkovChain(torch.zeros(2), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match=r"got shape \(3, 2, 2\)"):
        transition_matrix(varying)
    neural = HMM(CategoricalEmission(2, 2), transition=NeuralTransition(2, context=1))
    with pytest.raises(ValueError, match="inputs"):
        transition_matrix(neural)
    with pytest.raises(TypeError, match=r"expected a model, a chain or a matrix \(K, K\), got Sequences"):
        transition_matrix(Sequences(torch.zeros(2, 3)))  # type: ignore[arg-type]


def test_heat_map(ax):
    assert plot_transitions(MATRIX, state_names=["a", "b", "c"], ax=ax) is ax
    (image,) = ax.get_images()
    assert image.get_array().tolist() == MATRIX
    assert image.get_clim() == (0, 1)
    texts = {text.get_position(): text for text in ax.texts}
    assert {place: text.get_text() for place, text in texts.items()} == {
        (column, row): {0.0: "0"}.get(MATRIX[row][column], f"{MATRIX[row][column]:.2f}"[1:])
        for row in range(3)
        for column in range(3)
    }
    assert texts[0, 0].get_color() == "white"
    assert texts[2, 0].get_color() == "black"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("to state", "from state")


@pytest.mark.parametrize(("num_states", "num_texts"), [(1, 1), (20, 400), (21, 0), (30, 0)])
def test_heat_map_of_few_and_of_many(num_states, num_texts):
    ax = plot_transitions(random_matrix(num_states))
    assert len(ax.texts) == num_texts
    assert len(ax.figure.axes) == (1 if num_texts else 2)  # a colour bar
    assert len(ax.get_xticks()) <= 25


@pytest.mark.parametrize(("num_states", "with_numbers"), [(12, True), (20, False)])
def test_small_cells_have_no_numbers(num_states, with_numbers, ax):
    plot_transitions(random_matrix(num_states), ax=ax)
    assert bool(ax.texts) == with_numbers
    assert all(text.get_fontsize() >= 6 for text in ax.texts)
    assert len(ax.figure.axes) == 2 - with_numbers


def discs_and_arrows(ax):
    discs = [patch for patch in ax.patches if isinstance(patch, Circle)]
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    assert len(discs) + len(arrows) == len(ax.patches)
    return discs, arrows


def test_graph(ax):
    assert plot_state_graph(MATRIX, ax=ax) is ax
    discs, arrows = discs_and_arrows(ax)
    assert len(arrows) == 8  # not the impossible transition
    # Areas by the stationary law.
    stationary = np.linalg.matrix_power(np.array(MATRIX), 1000)[0]
    areas = np.array([disc.radius**2 for disc in discs])
    assert areas / areas.sum() == pytest.approx(stationary, abs=1e-6)
    assert np.linalg.norm([disc.center for disc in discs], axis=1) == pytest.approx(np.ones(3))
    widths = [arrow.get_linewidth() for arrow in arrows]
    assert np.argsort(widths).tolist() == np.argsort([p for row in MATRIX for p in row if p], stable=True).tolist()
    assert (widths[0] - widths[3]) / (widths[0] - widths[1]) == pytest.approx(0.1 / 0.8)  # .9, .8; .9, .1


def test_occupancy_and_the_least_transition(ax):
    plot_state_graph(MATRIX, occupancy=torch.tensor([4.0, 1.0, 1.0]), least=0.2, ax=ax)
    discs, arrows = discs_and_arrows(ax)
    assert discs[0].radius == pytest.approx(2 * discs[1].radius)
    assert len(arrows) == 5
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2", ".90", ".80", ".25", ".25", ".50"]


def test_graph_without_a_stationary_law(ax):
    with pytest.raises(ValueError, match="occupancy: expected one, as there is no stationary distribution"):
        plot_state_graph(np.eye(2), ax=ax)
    plot_state_graph(np.eye(2), occupancy=[0.5, 0.5], ax=ax)
    assert len(discs_and_arrows(ax)[1]) == 2
    for wrong in ([1.0], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="occupancy: expected 2 shares"):
            plot_state_graph(np.eye(2), occupancy=wrong, ax=ax)
    with pytest.raises(ValueError, match="least: expected a probability"):
        plot_state_graph(np.eye(2), occupancy=[0.5, 0.5], least=2.0, ax=ax)


@pytest.mark.parametrize("num_states", [1, 2, 6, 12])
def test_discs_do_not_touch_and_names_are_seen(num_states, ax):
    names = [f"a long name {i}" for i in range(num_states)]
    plot_state_graph(random_matrix(num_states), state_names=names, least=0.0, ax=ax)
    discs, arrows = discs_and_arrows(ax)
    assert len(arrows) == num_states**2
    for i, disc in enumerate(discs):
        for other in discs[:i]:
            assert math.dist(disc.center, other.center) > disc.radius + other.radius
    ax.figure.draw_without_rendering()
    frame = ax.get_window_extent()
    boxes = [text.get_window_extent() for text in ax.texts[:num_states]]
    assert [text.get_text() for text in ax.texts[:num_states]] == names
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_loops_begin_and_end_on_the_disc():
    for radius, angle in ((0.3, 0.0), (0.05, 2.0)):
        points, far = loop(np.array([1.0, 2.0]), radius, angle)
        for end in (points[0], points[-1]):
            assert math.dist(end, (1.0, 2.0)) == pytest.approx(radius)
        assert math.dist(far, (1.0, 2.0)) == pytest.approx(
            max(math.dist(point, (1.0, 2.0)) for point in points), rel=0.01
        )


def test_numbers_lie_on_the_arrows():
    start, end = np.array([0.0, 1.0]), np.array([0.5, -1.0])
    first, control, last = ConnectionStyle.Arc3(rad=BEND).connect(start, end).vertices
    assert on_bend(start, end, 0.4) == pytest.approx(0.36 * first + 0.48 * control + 0.16 * last)
