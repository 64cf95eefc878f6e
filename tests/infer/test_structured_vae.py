import math

import pyro
import pytest
import torch

from pyrohmm import fit_svi, nn
from pyrohmm.data import Sequences
from pyrohmm.infer import initialize_structured_vae
from pyrohmm.models import HMM, StructuredVAE
from tests.models.test_structured_vae import K, accuracy, arms


def free_model(seed, *, num_entries=2, dim=2, num_states=K, family="gaussian", dtype=torch.float32):
    """Networks and laws of the codes that know nothing of the data."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    outputs = 2 * num_entries if family == "gaussian" else num_entries
    net = torch.nn.Sequential(torch.nn.Linear(1 + dim, 32), torch.nn.Tanh(), torch.nn.Linear(32, outputs))
    return StructuredVAE(
        nn.GaussianEmission(num_states, dim, "full", generator=generator),
        nn.NeuralEmission(1, net, family, context=dim),
        nn.StepEncoder(num_entries, 32, generator=generator),
        num_rounds=2,
        generator=generator,
    ).to(dtype)


def test_start_tells_the_states_apart():
    data = arms(12, 15)
    model = free_model(0)
    assert accuracy(model, data) < 0.7
    state = torch.get_rng_state()
    with pyro.validation_enabled(False):
        history = initialize_structured_vae(model, data, restarts=2, network_steps=60, learning_rate=0.05)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store())
    assert accuracy(model, data) > 0.9
    assert history.stop_reason in ("converged", "finished") and len(history.restarts) == 2
    # The networks are those of the codes: they give the observations back.
    error = (model.reconstruct(data) - data.x)[data.observed].square().mean()
    assert error < 0.3 * data.x[data.observed].var()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
def test_what_is_not_observed_is_not_read(family, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 6, 3, generator=generator).round().to(dtype)
    lengths = torch.tensor([6, 1, 3, 5])
    mask = torch.rand(4, 6, 3, generator=generator) < 0.7
    mask[1, 0], mask[0, 2] = False, False
    found = []
    for fill in (0.0, math.nan):
        spoiled = x.masked_fill(~mask, fill)
        spoiled[torch.arange(6) >= lengths.unsqueeze(-1)] = fill
        model = free_model(0, num_entries=3, family=family, dtype=dtype)
        initialize_structured_vae(
            model, Sequences(spoiled, lengths, mask=mask), restarts=2, network_steps=4, batch_size=3
        )
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert value.isfinite().all() and torch.equal(value, found[1][name]), name


def test_one_state_one_dimension_and_sequences_of_one_step():
    model = free_model(0, num_entries=1, dim=1, num_states=1)
    data = Sequences(torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(0)))
    initialize_structured_vae(model, data, restarts=1, network_steps=3)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.log_prob(data, 3).isfinite().all()


def test_a_model_that_has_run_and_what_is_frozen():
    data = arms(4, 6)
    model = free_model(0)
    fit_svi(model, data, steps=2, progress=False)
    model.hmm.transition.requires_grad_(False)
    model.decoder.requires_grad_(False)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    initialize_structured_vae(model, data, restarts=2, network_steps=3)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in frozen)
        assert torch.equal(parameter, frozen[name]) if name in frozen else parameter.isfinite().all()
    history = fit_svi(model, data, steps=2, progress=False)
    assert all(map(math.isfinite, history.loss))


def test_errors():
    data, model = arms(3, 4), free_model(0)
    with pytest.raises(TypeError, match="model: expected a pyrohmm.models.StructuredVAE, got HMM"):
        initialize_structured_vae(HMM(nn.GaussianEmission(2, 2)), data)
    with pytest.raises(TypeError, match="data: expected pyrohmm.data.Sequences, got Tensor"):
        initialize_structured_vae(model, data.x)
    with pytest.raises(ValueError, match=r"data: expected x of shape \(N, T, \*\(2,\)\), like the decoder"):
        initialize_structured_vae(model, Sequences(torch.zeros(2, 3, 5)))
    with pytest.raises(ValueError, match="network_steps: expected at least 1, got 0"):
        initialize_structured_vae(model, data, network_steps=0)
    with pytest.raises(ValueError, match="learning_rate: expected a positive finite number, got -1"):
        initialize_structured_vae(model, data, learning_rate=-1)
    model.hmm.emission.closed_form = False
    with pytest.raises(ValueError, match="model: expected an emission with a closed M-step, as GaussianEmission, got"):
        initialize_structured_vae(model, data)


@pytest.mark.slow
def test_more_fits_find_the_states_than_from_random_starts():
    """Beside KL annealing, which helps random starts."""
    data = arms(60, 30, rate=0.6, width=0.05)
    found = {"random": [], "annealed": [], "initialized": []}
    for start, shares in found.items():
        for seed in range(5):
            model = free_model(seed)
            if start == "initialized":
                initialize_structured_vae(model, data, restarts=5, batch_size=20, seed=seed)
            annealing = 200 if start == "annealed" else None
            settings = {"steps": 400, "batch_size": 20, "learning_rate": 0.01, "schedule": "cosine"}
            with pyro.validation_enabled(False):
                fit_svi(model, data, annealing=annealing, seed=seed, progress=False, **settings)
            shares.append(accuracy(model, data))
        print(start, [f"{share:.3f}" for share in shares])
    separated = {start: sum(share > 0.9 for share in shares) for start, shares in found.items()}
    assert separated["initialized"] == 5
    assert separated["random"] < 5 and separated["annealed"] < 5
