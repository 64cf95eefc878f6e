import pytest
import torch

from pyrohmm.data import Sequences
from pyrohmm.infer import initialize_switching
from pyrohmm.infer.switching import _smooth
from pyrohmm.models import HMM, SwitchingLDS, SwitchingNLDS
from pyrohmm.nn import CategoricalEmission
from tests.models.test_switching import two_regimes


def test_start_reconstructs_the_observations_and_finds_regimes():
    data = two_regimes(num_sequences=20, num_steps=50)
    mask = torch.rand(data.x.shape, generator=torch.Generator().manual_seed(0)) < 0.95
    shifted = Sequences(5.0 + 3.0 * data.x, mask=mask)  # in any units
    model = SwitchingLDS(2, 2, 6, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    initialize_switching(model, shifted, restarts=3)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        path = model.path(shifted).sample((10,)).mean(0).squeeze(1)
        error = (model.emission(path).base_dist.loc - shifted.x)[mask]
    assert error.std() < 0.5 * shifted.x[mask].std()
    model.align(data.labels, shifted)
    assert (model.decode(shifted) == data.labels).double().mean() > 0.9
    # The noise of the observations, 0.2, in the units of the data.
    scale = model.emission(torch.zeros(2)).base_dist.scale
    assert ((scale > 0.3) & (scale < 1.2)).all()


def test_smoothing_takes_the_noise_and_bridges_gaps():
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(200.0, dtype=torch.float64)
    truth = torch.stack([(time / 15).sin(), (time / 20).cos(), 0.01 * time])
    noisy = truth + 0.2 * torch.randn(truth.shape, generator=generator).double()
    known = torch.ones(3, 200, dtype=torch.bool)
    known[0, 50:54] = False
    lengths = [200, 120, 1]
    values = noisy.clone()
    values[0, 50:54] = 0.0
    _smooth(values, known, lengths, 0.04)
    before, after = (noisy[:1] - truth[:1]).std(), (values[:1] - truth[:1]).std()
    assert after < 0.5 * before
    assert (values[0, 50:54] - truth[0, 50:54]).abs().max() < 0.3
    assert torch.equal(values[1, 120:], noisy[1, 120:]) and torch.equal(values[2], noisy[2])
    taken = torch.cat([(values - noisy)[0][known[0]], (values - noisy)[1, :120]]).square().mean()
    assert taken == pytest.approx(0.04, rel=0.05)
    exact = noisy.clone()
    _smooth(exact, known, lengths, 1e-12)  # without noise nothing is taken away
    torch.testing.assert_close(exact[1], noisy[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
def test_networks_and_bits(family):
    truth = SwitchingNLDS(2, 2, 6, family=family, units=4, generator=torch.Generator().manual_seed(0))
    data = truth.simulate(10, 20, seed=0)
    model = SwitchingNLDS(2, 2, 6, family=family, units=4, recurrent="latent", hidden=4)
    before = model.path(data).sample()
    initialize_switching(model, data, restarts=2, emission_steps=50)
    with torch.no_grad():
        path = model.path(data).sample((10,)).mean(0).squeeze(1)
        assert path.isfinite().all() and path.shape == before.squeeze(1).shape
        fitted = model.emission(path).log_prob(data.x).mean()
        assert fitted > model.emission(torch.zeros(2)).log_prob(data.x).mean()
    assert (model.transition.weights == 0).all()


def test_one_state_one_dimension_and_sequences_of_one_step():
    model = SwitchingLDS(1, 1, 1, hidden=2)
    data = Sequences(torch.randn(4, 9, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 1, 2, 5]))
    initialize_switching(model, data, restarts=1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_errors():
    data = Sequences(torch.randn(4, 5, 2))
    with pytest.raises(TypeError, match="model: expected a pyrohmm.models.SwitchingSSM, got HMM"):
        initialize_switching(HMM(CategoricalEmission(2, 3)), data)
    with pytest.raises(ValueError, match="expected at most 2 dimensions of the path, like an observation, got 3"):
        initialize_switching(SwitchingLDS(2, 3, 2), data)
    with pytest.raises(ValueError, match="restarts: expected"):
        initialize_switching(SwitchingLDS(2, 2, 2), data, restarts=0)
    with pytest.raises(ValueError, match="expected sequences of at least two steps, got none"):
        initialize_switching(SwitchingLDS(2, 1, 2), Sequences(torch.randn(4, 1, 2)))
