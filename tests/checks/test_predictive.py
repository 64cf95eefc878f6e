import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroSample

from pyrohmm import nn
from pyrohmm.checks import default_statistics, posterior_predictive_check
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from tests.checks.close import close
from tests.models.cases import make


def poisson() -> HMM:
    generator = torch.Generator().manual_seed(0)
    parts = (nn.Initial(2, generator=generator), nn.Transition(2, generator=generator))
    return HMM(nn.PoissonEmission(2, 1, rate=[[2.0], [9.0]]), *parts)


def bayesian() -> HMM:
    model = poisson()
    model.emission.log_rate = PyroSample(dist.Normal(torch.tensor([[0.7], [2.2]]), 0.1).to_event(2))
    return model


LARGEST = {"largest": lambda data: data.x.max()}


def test_the_numbers_are_those_of_the_sets_that_the_statistic_saw():
    seen = []

    def statistic(data: Sequences) -> torch.Tensor:
        seen.append(data)
        return torch.stack([data.x.sum(), data.labels.double().sum()])

    model = poisson()
    data = model.simulate(3, 6, lengths=torch.tensor([6, 1, 4]), seed=1)
    found = posterior_predictive_check(model, data, {"sums": statistic}, num_draws=7, progress=False)["sums"]
    ours, theirs = seen[::2], seen[1::2]
    assert all(some.x.equal(data.x) and some.lengths.equal(data.lengths) for some in ours)
    assert all((some.labels[~data.valid] == -1).all() and (some.labels[data.valid] >= 0).all() for some in seen)
    assert not theirs[0].x.equal(theirs[1].x) and all(some.lengths.equal(data.lengths) for some in theirs)
    assert not all(some.labels.equal(ours[0].labels) for some in ours)
    expected = torch.stack([statistic(some).double() for some in ours])
    assert found.observed.equal(expected) and found.replicated.shape == (7, 2)
    larger = (found.replicated > found.observed).double() + 0.5 * (found.replicated == found.observed).double()
    assert found.p_value.equal(larger.mean(0))


def test_paths_of_the_data_follow_their_posterior():
    model = poisson()
    data = model.simulate(2, 5, seed=1)
    paths = []
    shares = {"path": lambda data: paths.append(data.labels) or torch.zeros(())}
    posterior_predictive_check(model, data, shares, num_draws=1000, progress=False)
    share = torch.stack(paths[::2]).double().mean(0)
    torch.testing.assert_close(share, model.posterior(data).marginals[..., 1].double(), atol=0.06, rtol=0)


def test_missing_entries_are_missing_in_the_replicated_sets_too():
    model = HMM(nn.GaussianEmission(2, 2))
    mask = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    data = Sequences(torch.zeros(3, 6, 2), mask=mask)
    count = {"seen": lambda data: data.mask.sum((0, 1))}
    found = posterior_predictive_check(model, data, count, num_draws=4, progress=False)["seen"]
    assert found.replicated.equal(found.observed) and found.p_value.tolist() == [0.5, 0.5] and found.overall == 1.0


def test_a_number_that_the_model_always_makes_and_the_data_has_not():
    model = HMM(nn.CategoricalEmission(1, 2))
    data = Sequences(torch.zeros(1, 3, dtype=torch.int64))
    fixed = {"first": lambda some: torch.tensor([float(some.labels is not None), float(some.x.sum() == 0), 2.0])}
    found = posterior_predictive_check(model, data, fixed, num_draws=99, progress=False)["first"]
    assert 0 < found.overall <= 1
    always = {"size": lambda some: torch.as_tensor(float(some is data or some.x.data_ptr() == data.x.data_ptr()))}
    assert posterior_predictive_check(model, data, always, num_draws=99, progress=False)["size"].overall == 0.01


def test_default_statistics_of_every_kind_of_data():
    for name in ("categorical", "inputs", "autoregressive", "labels"):
        model, data = make(name)
        found = posterior_predictive_check(model, data, num_draws=3, progress=False)
        assert list(found) == list(default_statistics(3))
        assert all(x.replicated.isfinite().all() and 0 < x.overall <= 1 for x in found.values())


def test_parameters_that_were_drawn():
    model, rates = bayesian(), torch.tensor([[0.1], [0.2]])
    data = model.simulate(4, 20, seed=0)
    draws = {"emission.log_rate": rates.log().expand(2, 30, 2, 1) + torch.zeros(2, 30, 1, 1)}
    found = posterior_predictive_check(model, data, LARGEST, draws=draws, num_draws=20, progress=False)["largest"]
    assert found.replicated.shape == (20,) and found.replicated.max() < 5 and found.overall == pytest.approx(1 / 21)
    with pytest.raises(ValueError, match="latent site 'emission.log_rate' is not fixed"):
        posterior_predictive_check(model, data, LARGEST, num_draws=3)


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal])
def test_parameters_of_a_guide(kind):
    model = bayesian()
    data = model.simulate(4, 20, seed=0)
    guide = kind(model)
    guide(data)
    first, again = (
        posterior_predictive_check(model, data, LARGEST, guide=guide, num_draws=5, progress=False)["largest"]
        for _ in range(2)
    )
    assert first.replicated.equal(again.replicated) and len(set(first.replicated.tolist())) > 1


def test_a_short_text():
    model = poisson()
    found = posterior_predictive_check(model, model.simulate(4, 20, seed=0), num_draws=5, progress=False)
    text = repr(found["transition counts"])
    assert text.startswith("PredictiveCheck('transition counts', overall p = ") and " 4 entries: p = " in text
    assert len(text) < 100


def test_seeds():
    model = poisson()
    data = model.simulate(4, 20, seed=0)
    before = torch.get_rng_state()
    first, again, other = (
        posterior_predictive_check(model, data, num_draws=5, seed=seed, progress=False)["dwell times"]
        for seed in (0, 0, 1)
    )
    assert torch.get_rng_state().equal(before)
    assert first.observed.equal(again.observed) and first.replicated.equal(again.replicated)
    assert not first.replicated.equal(other.replicated)


def test_plots():
    from matplotlib import pyplot

    model = poisson()
    statistics = default_statistics(2) | LARGEST
    found = posterior_predictive_check(model, model.simulate(4, 20, seed=0), statistics, num_draws=20, progress=False)
    figure, ax = pyplot.subplots()
    check = found["transition counts"]
    assert check.plot(ax) is ax
    (points,) = [line for line in ax.get_lines() if line.get_label() == "data"]
    assert points.get_ydata().tolist() == pytest.approx(check.observed.mean(0).flatten().tolist())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0, 0", "0, 1", "1, 0", "1, 1"]
    pyplot.close(figure)
    ax = found["largest"].plot()
    assert ax.get_xlabel().startswith("largest (p = ") and ax.get_ylabel() == "draws"
    close(ax)


def test_bad_input():
    model = poisson()
    data = model.simulate(2, 3, seed=0)
    with pytest.raises(ValueError, match="statistics: expected at least one"):
        posterior_predictive_check(model, data, {})
    with pytest.raises(ValueError, match="statistics: expected numbers, got NaN from 'mean'"):
        posterior_predictive_check(model, data, {"mean": lambda data: torch.tensor(torch.nan)}, progress=False)
    with pytest.raises(ValueError, match=r"statistics: expected one shape from 'all', got \[\(1,\), "):
        posterior_predictive_check(model, data, {"all": lambda data: data.labels.unique()}, progress=False)
    with pytest.raises(ValueError, match="num_draws: expected at least 2, got 1"):
        posterior_predictive_check(model, data, num_draws=1)
    with pytest.raises(ValueError, match="draws: expected shape .* for 'a', got \\(3,\\)"):
        posterior_predictive_check(model, data, draws={"a": torch.zeros(3)})
    with pytest.raises(TypeError, match="draws: expected tensors by name of site"):
        posterior_predictive_check(model, data, draws={})
