import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrohmm import nn
from pyrohmm.checks import plot_emissions
from pyrohmm.data import Sequences
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.models import HMM

NAN = float("nan")


def curves(ax) -> tuple[np.ndarray, np.ndarray]:
    """The places and the heights of the states, and of all states at last."""
    lines = ax.get_lines()
    return lines[0].get_xdata(), np.stack([line.get_ydata() for line in lines])


def model_of(emission) -> HMM:
    return HMM(emission, transition=nn.Transition(emission.num_states, sticky=1.0))


LENGTHS = torch.tensor([40, 1, 25])


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_gaussian_by_hand(ax):
    model = model_of(nn.GaussianEmission(2, 2, loc=[[0.0, 3.0], [5.0, -3.0]], scale=[[1.0, 0.5], [2.0, 1.0]]))
    data = model.simulate(3, 40, lengths=LENGTHS, seed=0)
    assert plot_emissions(model, data, dim=1, state_names=["a", "b"], label="speed (m/s)", ax=ax) is ax
    weights = model.posterior(data).marginals[data.valid].detach().mean(0)
    places, heights = curves(ax)
    x = torch.from_numpy(places)
    for state, (loc, scale) in enumerate(((3.0, 0.5), (-3.0, 1.0))):
        expected = weights[state] * dist.Normal(loc, scale).log_prob(x).exp()
        assert heights[state] == pytest.approx(expected.numpy(), abs=1e-5)
    assert heights[2] == pytest.approx(heights[:2].sum(0))
    # The histogram is a density of the observed values.
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)
    values = data.x[data.valid][:, 1]
    assert ax.patches[0].get_x() == pytest.approx(float(values.min()))
    assert ax.get_xlabel() == "speed (m/s)"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["data", f"a ({weights[0]:.0%})", f"b ({weights[1]:.0%})", "all states"]


def test_missing_entries_do_not_count(ax):
    model = model_of(nn.GaussianEmission(2, 2, loc=[[0.0, 0.0], [5.0, 5.0]]))
    x = torch.tensor([[0.1, 0.0], [NAN, 0.2], [5.0, NAN], [NAN, NAN]])
    data = Sequences.from_list([x], mask="nan")
    plot_emissions(model, data, dim=1, ax=ax)
    weights = model.posterior(data).marginals[0, :2].detach().mean(0)
    places, heights = curves(ax)
    expected = weights[0] * dist.Normal(0.0, 1.0).log_prob(torch.from_numpy(places)).exp()
    assert heights[0] == pytest.approx(expected.numpy(), abs=1e-6)
    assert places.max() < 1  # the data end at 0.2


CONTINUOUS = {
    "diag": lambda: nn.GaussianEmission(3, 2, generator=noise()),
    "full": lambda: nn.GaussianEmission(3, 2, "full", generator=noise()),
    "spherical": lambda: nn.GaussianEmission(3, 2, "spherical", generator=noise()),
    "student": lambda: nn.StudentTEmission(3, 2, generator=noise()),
    "gamma": lambda: nn.GammaEmission(3, 2, generator=noise()),
    "exponential": lambda: nn.ExponentialEmission(3, 2, generator=noise()),
    "lognormal": lambda: nn.LogNormalEmission(3, 2, generator=noise()),
    "beta": lambda: nn.BetaEmission(3, 2, generator=noise()),
    "factors": lambda: nn.FactorAnalysisEmission(3, 2, 1, generator=noise()),
    "mixture": lambda: nn.GaussianMixtureEmission(3, 2, 2, generator=noise()),
    "tied": lambda: nn.TiedEmission(nn.GaussianEmission(2, 2, generator=noise()), [0, 1, 1]),
    "streams": lambda: nn.CompositeEmission([nn.PoissonEmission(3, 1), nn.GaussianEmission(3, 2, generator=noise())]),
    "autoregressive": lambda: nn.LinearAutoregressiveEmission(3, 2),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_are_those_of_whole_draws(name, ax):
    # The marginal law of one entry, by what is drawn of all of them: quantiles of many draws.
    model = model_of(CONTINUOUS[name]())
    data = model.simulate(3, 40, lengths=LENGTHS, seed=0)
    plot_emissions(model, data, dim=1, ax=ax)
    places, heights = curves(ax)
    assert np.isfinite(heights).all()
    total = heights[-1]
    area = np.concatenate([[0.0], np.cumsum((total[1:] + total[:-1]) / 2 * np.diff(places))])
    assert area[-1] < 1.03
    if name == "autoregressive":  # its law is that of the data's own past
        assert area[-1] > 0.9
        return
    weights = model.posterior(data).marginals[data.valid].detach().mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        law = model.emission(torch.arange(3))
        draws = law.sample(torch.Size((8000,)))[..., 1].double().numpy()
    for at in (60, 120, 240):
        below = ((draws <= places[at]) & (draws > places[0])).mean(0) @ weights.numpy()
        assert area[at] == pytest.approx(below, abs=0.03)


DISCRETE = {
    "bernoulli": (lambda: nn.BernoulliEmission(2, 2, noise=1.0, generator=noise()), [0, 1]),
    "poisson": (lambda: nn.PoissonEmission(2, 2, rate=[[2.0, 3.0], [1.0, 5.0]]), None),
    "negative binomial": (lambda: nn.NegativeBinomialEmission(2, 2, generator=noise()), None),
    "zero-inflated": (lambda: nn.ZeroInflatedPoissonEmission(2, 2, generator=noise()), None),
    "stream": (
        lambda: nn.CompositeEmission([nn.GaussianEmission(2, 1), nn.CategoricalEmission(2, 4, generator=noise())]),
        [0, 1, 2, 3],
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities(name, ax):
    build, expected = DISCRETE[name]
    model = model_of(build())
    data = model.simulate(3, 40, lengths=LENGTHS, seed=0)
    plot_emissions(model, data, dim=1, ax=ax)
    places, heights = curves(ax)
    values = data.x[data.valid][:, 1]
    if expected is None:
        expected = list(range(int(values.min()), int(values.max()) + 1))
    assert places.tolist() == expected
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(
        [float((values == x).double().mean()) for x in places]
    )
    assert 0.7 < heights[-1].sum() < 1 + 1e-6
    assert ax.get_ylabel() == "probability"


def test_symbols_by_hand(ax):
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    model = model_of(nn.CategoricalEmission(2, 3, probs=probs))
    data = Sequences.from_list([[0, 0, 1], [0]])  # symbol 2 is not among them
    plot_emissions(model, data, value_names=["a", "b", "c"], ax=ax)
    weights = model.posterior(data).marginals[data.valid].detach().mean(0)
    places, heights = curves(ax)
    assert places.tolist() == [0, 1, 2]
    assert heights[:2] == pytest.approx((weights.unsqueeze(-1) * probs).numpy(), abs=1e-6)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.75, 0.25, 0.0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_emissions_on_inputs_are_averaged_over_the_steps(ax):
    model = model_of(nn.LinearRegressionEmission(2, 1, context=1))
    with torch.no_grad():
        for parameter in model.emission.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise(1)))
    inputs = torch.randn(1, 20, 1, generator=noise())
    data = model.simulate(1, 20, inputs=inputs, seed=0)
    plot_emissions(model, data, ax=ax)
    places, heights = curves(ax)
    weights = model.posterior(data).marginals[0].detach()
    for state in range(2):
        law = model.emission(torch.full((20,), state), inputs[0])
        at = torch.from_numpy(places).float().reshape(-1, 1, 1)
        expected = (law.log_prob(at).exp() * weights[:, state]).mean(1)
        assert heights[state] == pytest.approx(expected.detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("varying", [False, True])
def test_distributions(varying, ax):
    chain = MarkovChain(torch.zeros(2), torch.eye(2), num_steps=4)
    loc = torch.tensor([-1.0, 1.0])
    law = dist.Normal(loc.expand(4, 2) if varying else loc, 0.5)
    hmm = HiddenMarkovModel(chain, law)
    x = torch.tensor([[-1.1, -0.9, 1.0, 1.2], [0.0, -1.0, -1.0, 3.0]])
    if varying:
        x = x[0]
    plot_emissions(hmm, x, ax=ax)
    weights = hmm.posterior(x).marginals.reshape(-1, 2).mean(0)
    places, heights = curves(ax)
    expected = weights[1] * dist.Normal(1.0, 0.5).log_prob(torch.from_numpy(places)).exp()
    assert heights[1] == pytest.approx(expected.numpy(), abs=1e-6)
    assert ax.get_xlabel() == "x"


def test_a_narrow_state_is_not_missed(ax):
    model = model_of(nn.GaussianEmission(2, 1, loc=[[0.0], [5.0]], scale=[[0.001], [3.0]]))
    plot_emissions(model, model.simulate(1, 300, seed=0), ax=ax)
    assert curves(ax)[1][0].max() > 50
    assert ax.get_ylim()[1] < 20  # and does not hide the other


@pytest.mark.parametrize("num_states", [1, 12])
def test_odd_sizes(num_states, ax):
    model = model_of(nn.GaussianEmission(num_states, 1))
    plot_emissions(model, Sequences.from_list([[[0.5]]]), ax=ax)
    assert len(ax.get_lines()) == (1 if num_states == 1 else num_states + 1)
    ax.figure.draw_without_rendering()


def test_large_counts_share_bars(ax):
    model = model_of(nn.PoissonEmission(2, 1, rate=[[20.0], [500.0]]))
    plot_emissions(model, model.simulate(1, 300, seed=0), ax=ax)
    assert len(ax.patches) <= 60
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(1)


def test_errors():
    from matplotlib import pyplot

    model = model_of(nn.GaussianEmission(2, 2))
    data = Sequences.from_list([[[0.0, NAN], [1.0, NAN]]], mask="nan")
    with pytest.raises(ValueError, match="dim: expected one of 0, ..., 1, got 2"):
        plot_emissions(model, data, dim=2)
    with pytest.raises(ValueError, match="data: expected an observed value of entry 1, got none"):
        plot_emissions(model, data, dim=1)
    with pytest.raises(ValueError, match="value_names: expected None"):
        plot_emissions(model, data, value_names=["a"])
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences for an HMM, got Tensor"):
        plot_emissions(model, data.x)
    with pytest.raises(TypeError, match="model: expected an HMM or a HiddenMarkovModel, got int"):
        plot_emissions(3, data)  # type: ignore[arg-type]
    hmm = HiddenMarkovModel(MarkovChain(torch.zeros(2), torch.eye(2)), dist.Normal(torch.zeros(2), 1.0))
    with pytest.raises(TypeError, match="data: expected a tensor for a HiddenMarkovModel, got Sequences"):
        plot_emissions(hmm, data)
    counts = model_of(nn.MultinomialEmission(2, 3))
    with pytest.raises(TypeError, match="law of one entry is known, got Multinomial"):
        plot_emissions(counts, Sequences.from_list([[[1.0, 2.0, 0.0]]]))
    symbols = model_of(nn.CategoricalEmission(2, 3))
    with pytest.raises(ValueError, match="value_names: expected names of 0, ..., 2"):
        plot_emissions(symbols, Sequences.from_list([[0, 1]]), value_names=["a"])
    assert not pyplot.get_fignums()
