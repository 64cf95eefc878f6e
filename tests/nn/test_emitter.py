import pyro.distributions as dist
import pytest
import torch

from pyrohmm.nn import Emitter


def test_bernoulli_and_missing_entries():
    emitter = Emitter(2, 3, (5, 5))
    h, x = torch.randn(4, 6, 2), torch.bernoulli(torch.full((4, 6, 3), 0.5))
    law = emitter(h)
    assert (law.batch_shape, law.event_shape) == ((4, 6), (3,))
    each = dist.Bernoulli(logits=emitter.net(h)).log_prob(x)
    assert torch.allclose(law.log_prob(x), each.sum(-1))
    observed = torch.rand(4, 6, 3) < 0.5
    x[~observed] = torch.nan
    assert torch.allclose(emitter(h, observed).log_prob(x), (each * observed).sum(-1))


def test_gaussian():
    emitter = Emitter(2, 3, family="gaussian")
    assert len(emitter.net) == 1
    law = emitter(torch.zeros(4, 2))
    assert torch.allclose(law.base_dist.loc, emitter.net[0].bias.expand(4, 3))
    assert torch.allclose(law.base_dist.scale, torch.ones(()), atol=0.01)
    assert law.log_prob(torch.zeros(4, 3)).shape == (4,)


def test_dropout_is_of_hidden_units_in_training():
    emitter, h = Emitter(2, 3, (50,), dropout=0.5), torch.ones(1, 2)
    assert not torch.equal(emitter(h).base_dist.logits, emitter(h).base_dist.logits)
    emitter.eval()
    assert torch.equal(emitter(h).base_dist.logits, emitter(h).base_dist.logits)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"family: expected one of \('bernoulli', 'gaussian'\), got 'cauchy'"):
        Emitter(2, 3, family="cauchy")
    with pytest.raises(ValueError, match="num_entries: expected at least 1, got 0"):
        Emitter(2, 0)
