import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrohmm.checks import plot_decoding, plot_series
from pyrohmm.data import Sequences
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.models import HMM
from pyrohmm.nn import CategoricalEmission, GaussianEmission, Transition

NAN = float("nan")


def model(num_states: int = 2, dim: int = 1) -> HMM:
    generator = torch.Generator().manual_seed(0)
    loc = torch.arange(num_states * dim).reshape(num_states, dim) * 2.0
    return HMM(GaussianEmission(num_states, dim, loc=loc), transition=Transition(num_states, generator=generator))


def spans(collection) -> list[tuple[float, float]]:
    """First and last x of the rectangles."""
    boxes = [path.get_extents() for path in collection.get_paths()]
    return [(box.x0, box.x1) for box in boxes]


def spans_of(states: list[int], state: int) -> list[tuple[float, float]]:
    """The same from the path, by hand."""
    found, start = [], None
    for step, value in enumerate([*states, None]):
        if value == state and start is None:
            start = step
        if value != state and start is not None:
            found.append((start - 0.5, step - 0.5))
            start = None
    return found


@pytest.mark.parametrize("sequence", [0, 1, 2])
def test_bands_curves_and_shares(sequence, ax):
    fitted = model(dim=2)
    data = fitted.simulate(3, 30, lengths=torch.tensor([30, 1, 12]), seed=0)
    posterior = fitted.posterior(data)
    length = int(data.lengths[sequence])
    assert plot_series(data, posterior, sequence, ax=ax) is ax
    first, second, below = ax.figure.axes
    path = posterior.mode[sequence, :length].tolist()
    for panel, dim in ((first, 0), (second, 1)):
        assert [spans(band) for band in panel.collections] == [spans_of(path, state) for state in sorted(set(path))]
        curve = panel.get_lines()[0]
        assert curve.get_xdata().tolist() == list(range(length))
        assert curve.get_ydata() == pytest.approx(data.x[sequence, :length, dim].numpy())
        assert panel.get_xlim() == (-0.5, length - 0.5)
    # The stack: at each step, state k reaches from the sum of those before to the sum with its own.
    tops = posterior.marginals[sequence, :length].detach().cumsum(-1).numpy()
    for state, area in enumerate(below.collections):
        (outline,) = area.get_paths()
        for step in range(length):
            low = tops[step, state - 1] if state else 0.0
            if tops[step, state] - low > 0.01:
                assert outline.contains_point((step, (low + tops[step, state]) / 2))
            assert not outline.contains_point((step, tops[step, state] + 0.01))
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["state 0", "state 1"]


def test_what_is_missing_is_a_gap(ax):
    fitted = model()
    x = [torch.tensor([0.0, NAN, 2.0, NAN, 0.1, 0.2]).unsqueeze(-1)]
    data = Sequences.from_list(x, mask="nan")
    plot_series(data, fitted.posterior(data), ax=ax)
    curve, alone = ax.get_lines()
    assert np.isnan(curve.get_ydata()).tolist() == [False, True, False, True, False, False]
    assert alone.get_xdata().tolist() == [0, 2]  # points between gaps, which a line does not show
    assert alone.get_ydata() == pytest.approx([0.0, 2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors(dtype, ax):
    chain = MarkovChain(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    hmm = HiddenMarkovModel(chain, dist.Normal(torch.tensor([-1.0, 1.0], dtype=dtype), 0.5))
    x = torch.tensor([-1.1, NAN, 1.0], dtype=dtype)
    posterior = hmm.posterior(x.nan_to_num(), mask=~x.isnan())
    plot_series(x, posterior, ax=ax)
    assert np.isnan(ax.get_lines()[0].get_ydata()).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="data: expected x of shape"):
        plot_series(x[:2], posterior, ax=ax)


def test_symbols_are_points(ax):
    fitted = HMM(CategoricalEmission(2, 3))
    data = Sequences.from_list([[0, 2, 1]])
    plot_series(data, fitted.posterior(data), ax=ax)
    (points,) = ax.get_lines()
    assert (points.get_linestyle(), points.get_marker()) == ("None", ".")
    assert points.get_ydata().tolist() == [0, 2, 1]


def test_dimensions_names_and_times(ax):
    fitted = model(dim=3)
    data = fitted.simulate(1, 4, seed=0)
    times = torch.tensor([0.0, 1.0, 2.0, 4.0])
    plot_series(
        data,
        fitted.posterior(data),
        dims=[2, 0],
        dim_names=["height (m)", "speed (m/s)"],
        state_names=["rest", "run"],
        times=times,
        time_label="time (s)",
        ax=ax,
    )
    top, middle, below = ax.figure.axes
    assert [panel.get_ylabel() for panel in (top, middle, below)] == ["height (m)", "speed (m/s)", "posterior"]
    assert top.get_lines()[0].get_ydata() == pytest.approx(data.x[0, :, 2].numpy())
    assert top.get_lines()[0].get_xdata().tolist() == times.tolist()
    assert (below.get_xlabel(), below.get_xlim()) == ("time (s)", (-0.5, 5.0))
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["rest", "run"]


def test_dates(ax):
    from matplotlib.dates import ConciseDateFormatter

    fitted = model()
    data = fitted.simulate(1, 5, seed=0)
    days = np.arange("2026-01-30", "2026-02-04", dtype="datetime64[D]")
    plot_series(data, fitted.posterior(data), times=days, ax=ax)
    below = ax.figure.axes[-1]
    assert isinstance(below.xaxis.get_major_formatter(), ConciseDateFormatter)
    assert np.diff(below.get_xlim()) == 5


def test_many_dimensions_are_an_image(ax):
    fitted = model(dim=9)
    data = fitted.simulate(1, 6, seed=0)
    mask = torch.ones(1, 6, 9, dtype=torch.bool)
    mask[0, 3, 4] = False
    data = Sequences(data.x, mask=mask)
    plot_series(data, fitted.posterior(data), ax=ax)
    image = ax.collections[0].get_array()
    assert image.shape == (9, 6)
    assert image.mask.nonzero() == (np.array([4]), np.array([3]))
    assert image[8].tolist() == pytest.approx(data.x[0, :, 8].tolist())


@pytest.mark.parametrize(("num_states", "num_axes"), [(1, 2), (12, 2), (19, 3)])
def test_many_states(num_states, num_axes, ax):
    fitted = model(num_states)
    data = fitted.simulate(1, 20, seed=0)
    plot_series(data, fitted.posterior(data), ax=ax)
    assert len(ax.figure.axes) == num_axes  # the last one is a colour bar instead of a legend
    assert (ax.get_legend() is None) == (num_axes == 3)
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize("num_states", [2, 19])
def test_change_points(num_states, ax):
    fitted = model(num_states, dim=2)
    data = fitted.simulate(2, 20, lengths=torch.tensor([20, 12]), seed=0)
    posterior = fitted.posterior(data)
    times = torch.arange(20) * 2.0
    plot_series(data, posterior, 1, change_points=torch.tensor([3, 11]), times=times, ax=ax)
    for panel in ax.figure.axes[:3]:
        lines = panel.collections[-1]
        assert [segment[:, 0].tolist() for segment in lines.get_segments()] == [[5.0, 5.0], [21.0, 21.0]]
        assert panel.get_xlim() == (-1.0, 23.0)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [*(["state 0", "state 1"] if num_states == 2 else []), "change points"]
    for wrong in ([12], [-1], [1.5], [[1]]):
        with pytest.raises(ValueError, match="change_points: expected steps among 0, ..., 11"):
            plot_series(data, posterior, 1, change_points=wrong)
    plot_series(data, posterior, 1, change_points=[], ax=ax.figure.add_subplot())


def test_bad_dimensions():
    fitted = model(dim=2)
    data = fitted.simulate(1, 4, seed=0)
    posterior = fitted.posterior(data)
    for dims in ([2], [-1], []):
        with pytest.raises(ValueError, match="dims: expected some of 0, ..., 1"):
            plot_series(data, posterior, dims=dims)
    with pytest.raises(ValueError, match="dim_names: expected 2 names"):
        plot_series(data, posterior, dim_names=["x"])
    with pytest.raises(ValueError, match="state_names"):
        plot_series(data, posterior, state_names=["x"])


def test_errors_leave_no_figure():
    from matplotlib import pyplot

    fitted = model()
    data = fitted.simulate(1, 4, seed=0)
    posterior = fitted.posterior(data)
    for wrong in ({"sequence": 3}, {"dims": [5]}, {"times": [0.0]}, {"state_names": ["a"]}):
        with pytest.raises(ValueError):  # noqa: PT011
            plot_series(data, posterior, **wrong)
        with pytest.raises((ValueError, TypeError)):
            plot_decoding(posterior, **wrong)
    assert not pyplot.get_fignums()
    assert plot_series(data, posterior).figure is pyplot.gcf()


def test_decoding(ax):
    fitted = model()
    data = fitted.simulate(2, 40, lengths=torch.tensor([7, 40]), seed=1)
    posterior = fitted.posterior(data)
    assert data.labels is not None
    truth = data.labels.clone()
    truth[1, 5:9] = -1
    assert plot_decoding(posterior, truth, 1, state_names=["fair", "loaded"], ax=ax) is ax
    (curve,) = ax.get_lines()
    assert curve.get_ydata() == pytest.approx(posterior.marginals[1, :, 1].detach().numpy(), abs=1e-6)
    shade, *strip = ax.collections
    assert spans(shade) == spans_of(truth[1].tolist(), 1)
    path = posterior.mode[1].tolist()
    assert len(set(path)) == 2
    assert [spans(band) for band in strip] == [spans_of(path, state) for state in (0, 1)]
    # In axes coordinates: shades up to probability 1, the strip above it.
    assert shade.get_paths()[0].get_extents().y1 == pytest.approx(1 / ax.get_ylim()[1])
    assert strip[0].get_paths()[0].get_extents().y0 > 1 / ax.get_ylim()[1]
    assert ax.get_ylabel() == "P(loaded | all data)"


def test_decoding_of_more_states(ax):
    fitted = model(3)
    data = fitted.simulate(1, 30, seed=1)
    posterior = fitted.posterior(data)
    plot_decoding(posterior, states=[2, 0], ax=ax)
    marginals = posterior.marginals[0].detach().numpy()
    for line, state in zip(ax.get_lines(), (2, 0), strict=True):
        assert line.get_ydata() == pytest.approx(marginals[:, state], abs=1e-6)


@pytest.mark.parametrize(("num_states", "num_steps"), [(1, 1), (2, 1), (12, 9), (20, 9)])
def test_decoding_of_odd_sizes(num_states, num_steps, ax):
    fitted = model(num_states)
    data = fitted.simulate(1, num_steps, seed=1)
    plot_decoding(fitted.posterior(data), data.labels, ax=ax)
    assert len(ax.get_lines()) == (1 if num_states == 2 else num_states)
    ax.figure.draw_without_rendering()


def test_true_states_that_do_not_fit(ax):
    fitted = model()
    posterior = fitted.posterior(fitted.simulate(2, 4, seed=0))
    with pytest.raises(ValueError, match=r"true_states: expected shape \(2, 4\), like the posterior, got \(4,\)"):
        plot_decoding(posterior, torch.zeros(4, dtype=torch.int64), ax=ax)
    with pytest.raises(TypeError, match="true_states: expected a tensor of integers"):
        plot_decoding(posterior, torch.zeros(2, 4), ax=ax)
    with pytest.raises(ValueError, match="true_states: expected -1, ..., 1, got 2 to 2"):
        plot_decoding(posterior, torch.full((2, 4), 2), ax=ax)
    with pytest.raises(ValueError, match="states: expected some of 0, ..., 1"):
        plot_decoding(posterior, states=[2], ax=ax)
    assert not ax.collections
