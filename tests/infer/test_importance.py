"""The estimate of the likelihood, against quadrature and exact posteriors."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.infer import importance_log_prob
from pyrohmm.models import HMM
from pyrohmm.models.isolation import own_parameters
from tests.infer import test_svi
from tests.infer.programs import latent_guide, latent_model, level_guide, level_model, log_likelihood, make_data

estimate = functools.partial(importance_log_prob, progress=False)

LOC = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def by_quadrature(data: Sequences, slope: float = 1.0) -> Tensor:
    """log p(x) of each sequence under `level_model`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    parts = [log_likelihood(data, LOC, torch.full((len(data),), slope * node).double()) for node in nodes]
    return (torch.stack(parts, 1) + torch.from_numpy(weights).log() - 0.5 * math.log(2 * math.pi)).logsumexp(1)


@pytest.mark.parametrize("chunk_size", [2, 7, 30, 5000])
def test_agrees_with_quadrature(chunk_size):
    data, num_particles = make_data(), 20 if chunk_size < 5000 else 2000
    expected = by_quadrature(data)
    found = estimate(level_model, data, level_guide, num_particles=num_particles, chunk_size=chunk_size)
    size = found.effective_sample_size
    assert found.log_prob.shape == size.shape == (6,)
    assert (size > 0.3 * num_particles).all()
    assert (size < num_particles).all()
    error = (1 / size - 1 / num_particles).sqrt()
    assert ((found.log_prob - expected).abs() < 4 * error).all()
    assert ((found.log_prob - expected).abs() > 1e-9).all()


def test_minibatches_and_subsets():
    data = make_data(12)
    whole = by_quadrature(data)
    part = data[[7, 2, 11]]
    assert part.num_total == 12
    found = estimate(level_model, part, level_guide, num_particles=50, chunk_size=2)
    error = (1 / found.effective_sample_size - 1 / 50).sqrt()
    assert ((found.log_prob - whole[[7, 2, 11]]).abs() < 4 * error).all()


def linear(data: Sequences) -> None:
    """x_1 = h + noise, in a plate that is not subsampled, with an inner one."""
    with pyro.plate("rows", len(data), dim=-2):
        h = pyro.sample("h", dist.Normal(torch.zeros(2).to(data.x), 1.0).to_event(1))
        with pyro.plate("columns", 2, dim=-1):
            pyro.sample("x", dist.Normal(h.sum(-1), 1.0), obs=data.x[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_posterior_as_guide(dtype):
    """All weights are the same."""

    def guide(data: Sequences) -> None:
        total = data.x[:, 0].sum(-1) / 5
        covariance = torch.eye(2).to(data.x) - 2 / 5 * torch.ones(2, 2).to(data.x)
        with pyro.plate("rows", len(data), dim=-2):
            loc = total[:, None, None].expand(-1, 1, 2)
            pyro.sample("h", dist.MultivariateNormal(loc, covariance))

    data = Sequences(torch.randn(4, 1, 2, generator=torch.Generator().manual_seed(0)).to(dtype))
    found = estimate(linear, data, guide, num_particles=10, plate="rows")
    covariance = 2 * torch.ones(2, 2) + torch.eye(2)
    expected = dist.MultivariateNormal(torch.zeros(2), covariance.double()).log_prob(data.x[:, 0].double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found.log_prob, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.effective_sample_size, torch.full((4,), 10.0).double(), atol=1e-3, rtol=0)


def test_without_latent_sites_it_is_the_likelihood():
    model, data = test_svi.make_model(), test_svi.make_data(5)
    found = estimate(model, data, num_particles=3, chunk_size=4)
    torch.testing.assert_close(found.log_prob.float(), model.log_prob(data).detach())
    torch.testing.assert_close(found.effective_sample_size, torch.full((5,), 3.0).double())


def test_seed():
    data = make_data()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    runs = [estimate(level_model, data, level_guide, num_particles=20, seed=seed).log_prob for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_sites_outside_of_the_plate_are_drawn_once():
    data = make_data()
    slopes = []

    def guide(data: Sequences) -> None:
        pyro.deterministic("mean", data.x.mean())
        slopes.append(pyro.sample("slope", dist.Normal(0.0, 1.0).mask(True)))
        level_guide(data)

    found = estimate(latent_model, data, guide, num_particles=2000, chunk_size=3000)
    assert len(slopes) > 3
    assert len({slope.item() for slope in slopes}) == 1
    torch.testing.assert_close(found.log_prob, by_quadrature(data, slopes[0].item()), atol=0.1, rtol=0)


def test_parameters_with_a_prior_and_pyros_guides():
    """Where all latent sites are parameters it is what the model's own method says, for one draw."""
    model, guide = test_svi.noisy_model()
    data = test_svi.make_data(5)
    guide(data)
    model.eval()
    found = estimate(model, data, guide, num_particles=4, chunk_size=10, seed=3)
    pyro.clear_param_store()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        with own_parameters(model, guide):
            expected = model.log_prob(data, guide).detach()
    torch.testing.assert_close(found.log_prob.float(), expected)
    torch.testing.assert_close(found.effective_sample_size, torch.full((5,), 4.0).double())
    assert len(pyro.get_param_store()) == 0


def test_auxiliary_sites():
    """Pyro's guide of a constrained site in the plate, for data that are not a minibatch."""

    def model(data: Sequences) -> None:
        with pyro.plate("sequences", len(data)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Exponential(rate), obs=data.x[:, 0])

    data = Sequences(torch.tensor([[0.5], [1.0], [3.0]]))
    repeated = data[torch.arange(3).repeat(2000)]
    guide = AutoNormal(model, init_scale=1.0)
    guide(repeated)
    found = estimate(model, repeated, guide, num_particles=1, chunk_size=6000)
    expected = math.log(2) - 3 * (1 + data.x[:, 0]).log()  # a Lomax law
    means = found.log_prob.reshape(2000, 3).logsumexp(0) - math.log(2000)
    torch.testing.assert_close(means.float(), expected, atol=0.1, rtol=0)


def test_impossible_sequences():
    model = HMM(nn.BernoulliEmission(2, 3), use_labels=True, transition=nn.Transition(2, torch.eye(2) > 0))
    data = Sequences(torch.zeros(2, 2, 3), labels=torch.tensor([[0, 1], [1, 1]]))
    found = estimate(model, data, num_particles=7, chunk_size=4)
    assert found.log_prob[0] == -torch.inf
    assert found.effective_sample_size.tolist() == pytest.approx([0.0, 7.0])
    assert found.log_prob[1].isfinite()


def test_weights_that_are_not_finite():
    def guide(data: Sequences) -> None:
        loc = torch.where(data.index == 4, torch.nan, 0.0).unsqueeze(-1).to(data.x)
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            pyro.sample("level", dist.Normal(loc, 1.0, validate_args=False))

    with (
        pyro.validation_enabled(False),
        pytest.raises(FloatingPointError, match=r"a weight is NaN.*site 'level' of the guide .*sequences \[4"),
    ):
        estimate(level_model, make_data(), guide, num_particles=1)


def test_modules_are_evaluated_without_gradients():
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(input)

    model = HMM(nn.NeuralEmission(2, Net(2, 3), "bernoulli"))
    seen.clear()
    found = estimate(model, test_svi.make_data(3), num_particles=2)
    assert set(seen) == {(False, False)}
    assert model.training
    assert not found.log_prob.requires_grad


def unplated(data: Sequences) -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0).expand(data.x.shape).to_event(2), obs=data.x)


def more(data: Sequences) -> None:
    level_guide(data)
    pyro.sample("other", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "options", "error", "message"),
    [
        (latent_model, level_guide, {}, ValueError, "latent site 'slope' is not fixed"),
        (latent_model, None, {}, ValueError, "latent site '(slope|level)' is not fixed"),
        (level_model, more, {}, ValueError, "guide: expected sites of the model, got 'other'"),
        (level_model, level_guide, {"plate": "rows"}, ValueError, r"plate: expected .* \['sequences'\], got 'rows'"),
        (unplated, None, {}, ValueError, r"plate: expected .* one of \[\], got 'sequences'"),
        (level_model, level_guide, {"num_particles": 0}, ValueError, "num_particles: expected at least 1"),
        (level_model, level_guide, {"chunk_size": 0}, ValueError, "chunk_size: expected at least 1"),
        (level_model, level_guide, {"seed": 0.5}, TypeError, "seed: expected an int"),
        (level_model, 3, {}, TypeError, "guide: expected a Pyro program, got int"),
        (3, level_guide, {}, TypeError, "model: expected a Pyro program"),
    ],
)
def test_wrong_arguments(model, guide, options, error, message):
    with pytest.raises(error, match=message):
        estimate(model, make_data(), guide, **options)


def test_wrong_data():
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        estimate(level_model, torch.zeros(3), level_guide)


def test_plate_of_another_size():
    def model(data: Sequences) -> None:
        with pyro.plate("sequences", 4):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))

    with pytest.raises(ValueError, match="plate: expected 'sequences' to hold the 12 sequences, got size 4"):
        estimate(model, make_data(), num_particles=2)


def test_progress_bar(capsys):
    importance_log_prob(level_model, make_data(), level_guide, num_particles=3)
    assert "18/18" in capsys.readouterr().err
    estimate(level_model, make_data(), level_guide, num_particles=3)
    assert capsys.readouterr().err == ""


def test_global_guide_with_local_sites_is_usable_as_it_is():
    found = estimate(latent_model, make_data(), latent_guide, num_particles=50)
    assert found.log_prob.isfinite().all()
