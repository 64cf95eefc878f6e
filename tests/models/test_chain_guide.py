import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyrohmm import MarkovChain, fit_svi, nn
from pyrohmm.data import Sequences
from pyrohmm.infer import PathELBO
from pyrohmm.models import HMM, ChainGuide


def path_program(hmm):
    """The program of an `HMM`, with its path as a site."""

    def program(data):
        prior = MarkovChain(
            hmm.initial(),
            hmm.transition(torch.arange(hmm.num_states)),
            lengths=data.lengths.unsqueeze(-1),
            num_steps=data.num_steps,
        )
        with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
            z = pyro.sample("z", prior)[..., 0, :].clamp(min=0)
            with pyro.plate("time", data.num_steps, dim=-1), poutine.mask(mask=data.observed):
                pyro.sample("x", hmm.emission(z), obs=data.x)

    return program


def make(num_sequences=60, num_steps=12):
    """A model, and data of it that are ragged and partly missing."""
    emission = nn.GaussianEmission(2, 1, loc=[[-1.0], [1.0]], scale=0.8)
    hmm = HMM(emission)
    with torch.no_grad():
        hmm.transition.logits.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log())
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, num_steps + 1, (num_sequences,), generator=generator)
    lengths[:2] = torch.tensor([num_steps, 1])
    data = hmm.simulate(num_sequences, num_steps, lengths=lengths, seed=0)
    mask = torch.rand(num_sequences, num_steps, generator=generator) < 0.8
    mask[0, :2] = torch.tensor([True, False])
    return hmm.requires_grad_(False), Sequences(data.x, data.lengths, mask=mask)


def encoder(pairwise=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.ChainEncoder(2, nn.RecurrentEncoder(1, 16, generator=generator), pairwise=pairwise, generator=generator)


@pytest.mark.parametrize("pairwise", [False, True])
def test_amortised_posterior_comes_close_to_the_exact_one(pairwise):
    hmm, data = make()
    guide = ChainGuide(encoder(pairwise))
    program = poutine.block(path_program(hmm), hide_types=["param"])
    exact, marginals = hmm.log_prob(data).sum() / data.num_observed, hmm.posterior(data).marginals

    def error():
        return (guide.posterior(data).marginals - marginals)[data.valid].abs().mean().item()

    at_start = error()
    with pyro.validation_enabled(False):
        history = fit_svi(
            program, data, guide, loss=PathELBO(), steps=100, learning_rate=0.03, batch_size=30, progress=False
        )
    elbo = -PathELBO().loss(program, guide, data) / data.num_observed
    assert history.loss[0] + exact > 0.2
    # A bound, and nats for each step.
    assert -1e-5 < exact - elbo < 0.02
    assert at_start > 0.2 and error() < 0.03


def test_posterior_is_what_is_sampled():
    _, data = make(4, 6)
    for pairwise in (False, True):
        guide = ChainGuide(encoder(pairwise))
        trace = poutine.trace(guide).get_trace(data[1:])
        site = trace.nodes["z"]
        chain = guide.posterior(data[1:])
        assert site["fn"].batch_shape == (3, 1) and chain.batch_shape == (3,)
        torch.testing.assert_close(site["fn"].marginals.squeeze(1), chain.marginals)
        torch.testing.assert_close(site["fn"].entropy().squeeze(1), chain.entropy())
        assert site["scale"] == pytest.approx(4 / 3)
        assert ((site["value"].squeeze(1) == -1) == ~data[1:].valid).all()


def test_another_site_and_simulation():
    hmm, data = make(5, 4)
    guide = ChainGuide(encoder(), site="state")
    assert "state" in poutine.trace(guide).get_trace(data).nodes
    drawn = Predictive(poutine.uncondition(path_program(hmm)), num_samples=3)(data)
    assert drawn["x"].shape == (3, 5, 4, 1)


def test_leaves_nothing_behind_and_keeps_its_state():
    _, data = make(5, 4)
    guide, other = ChainGuide(encoder()), ChainGuide(encoder(seed=1))
    pyro.clear_param_store()
    before = guide.posterior(data).marginals
    assert not list(pyro.get_param_store())
    assert not torch.allclose(other.posterior(data).marginals, before)
    other.load_state_dict(guide.state_dict())
    assert torch.equal(other.posterior(data).marginals, before)
    assert guide.double().posterior(data.to(dtype=torch.float64)).marginals.dtype == torch.float64


def test_padding_is_not_read():
    _, data = make(5, 4)
    guide = ChainGuide(encoder())
    spoiled = data._replace({"x": data.x.masked_fill(~data.observed.unsqueeze(-1), math.nan)})
    assert torch.equal(guide.posterior(spoiled).marginals, guide.posterior(data).marginals)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"encoder: expected a pyrohmm.nn.ChainEncoder, got StepEncoder"):
        ChainGuide(nn.StepEncoder(2, 4))
