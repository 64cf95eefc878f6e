import pytest
import torch
from torch.nn.functional import softplus

from pyrohmm.nn import GatedTransition, GaussianTransition
from pyrohmm.nn.dynamics import LEAST_SCALE


def test_gated_transition_is_the_formula():
    torch_rng = torch.Generator().manual_seed(0)
    transition = GatedTransition(3, 5, generator=torch_rng)
    h = torch.randn(2, 4, 3)
    law = transition(h, slice(0, 4))
    assert (law.batch_shape, law.event_shape) == ((2, 4), (3,))
    W, b = transition.first.weight, transition.first.bias
    assert torch.equal(W[10:], torch.eye(3))
    gate = torch.sigmoid(transition.gate((h @ W[:5].mT + b[:5]).relu()))
    proposal = transition.proposal((h @ W[5:10].mT + b[5:10]).relu())
    assert torch.allclose(law.base_dist.loc, (1 - gate) * h + gate * proposal, atol=1e-6)
    expected = softplus(transition.spread(proposal.relu())) + LEAST_SCALE
    assert torch.allclose(law.base_dist.scale, expected, atol=1e-6)


def test_gaussian_transition():
    transition = GaussianTransition(3, scale=0.2, generator=torch.Generator().manual_seed(0))
    h = torch.randn(2, 4, 3)
    law = transition(h).base_dist
    assert torch.allclose(law.loc, h, atol=0.2)
    assert torch.allclose(law.scale, torch.tensor(0.2), atol=1e-6)
    net = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    assert torch.equal(GaussianTransition(3, net)(h).base_dist.loc, net(h))
    law.loc.sum().backward()
    assert transition.net.weight.grad.abs().max() > 0


def test_the_same_generator_gives_the_same_start():
    state = torch.get_rng_state()
    for kind in (lambda g: GatedTransition(3, 5, generator=g), lambda g: GaussianTransition(3, generator=g)):
        one, other = (kind(torch.Generator().manual_seed(3)).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"net: expected output \(..., 3\) for input \(..., 3\), got \(1, 2\)"):
        GaussianTransition(3, torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="scale: expected a number above"):
        GaussianTransition(3, scale=0.0)
    with pytest.raises(TypeError, match="dim: expected an int, got float"):
        GatedTransition(3.0, 5)
