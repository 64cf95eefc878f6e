import pytest
import torch

from pyrohmm.distributions import MarkovChain
from pyrohmm.nn import ChainEncoder, RecurrentEncoder, StepEncoder

K = 3


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("num_steps", [1, 6])
def test_potentials_make_a_chain_that_padding_does_not_change(pairwise, num_steps):
    generator = torch.Generator().manual_seed(0)
    encoder = RecurrentEncoder(2, 8, context=1, generator=generator)
    part = ChainEncoder(K, encoder, pairwise=pairwise, generator=generator).double()
    x = torch.randn(3, num_steps, 2, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, num_steps, 1, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([num_steps, min(4, num_steps), 1])
    beyond = (torch.arange(num_steps) >= lengths.unsqueeze(-1)).unsqueeze(-1)
    logits = part(x.masked_fill(beyond, torch.nan), lengths, inputs=inputs)
    chain = MarkovChain.from_potentials(*logits, lengths=lengths)
    assert chain.batch_shape == (3,) and chain.event_shape == (num_steps,)
    for n, length in enumerate(lengths.tolist()):
        alone = MarkovChain.from_potentials(*part(x[n : n + 1, :length], inputs=inputs[n : n + 1, :length]))
        assert torch.allclose(chain.marginals[n, :length], alone.marginals[0])
    observed = torch.zeros(3, num_steps).bool()
    assert not torch.allclose(part(x, inputs=inputs, observed=observed).observation, logits.observation)
    chain.entropy().sum().backward()
    parameters = dict(part.named_parameters())
    assert ("pairwise.weight" in parameters) == pairwise
    for name, p in parameters.items():
        # One step has no transition, and a recurrent unit no memory.
        used = num_steps > 1 or name in ("initial", "unary.weight", "unary.bias")
        assert p.grad is None or p.grad.isfinite().all()
        assert not used or (p.grad is not None and (p.grad != 0).any()), name


def test_seed():
    parts = [ChainEncoder(K, StepEncoder(2, 4), generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(parts[0].unary.weight, parts[1].unary.weight)


def test_bad_arguments():
    with pytest.raises(TypeError, match="encoder: expected a pyrohmm.nn.Encoder, got Linear"):
        ChainEncoder(K, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="num_states: expected at least 1, got 0"):
        ChainEncoder(0, StepEncoder(2, 4))
