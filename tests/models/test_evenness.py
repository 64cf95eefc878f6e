import math

import torch

from pyrohmm import MarkovChain
from pyrohmm.models.evenness import evenness


def test_evenness_is_minus_the_divergence_from_even_states():
    generator = torch.Generator().manual_seed(0)
    potentials = [torch.randn(*shape, generator=generator) for shape in ((2, 3), (2, 4, 3, 3), (2, 5, 3))]
    chain = MarkovChain.from_potentials(*potentials, lengths=torch.tensor([5, 2]))
    expected = (chain.marginals.log().mean(-1) + math.log(3)).masked_fill(
        torch.arange(5) >= chain.lengths.unsqueeze(-1), 0.0
    )
    torch.testing.assert_close(evenness(chain), expected.sum(-1))
    assert (evenness(chain) < 0).all()
    # A state that is out of reach of float32 is pushed still.
    unary = torch.tensor([[0.0, -300.0]], requires_grad=True)
    far = evenness(MarkovChain.from_potentials(torch.zeros(2), torch.zeros(2, 2), unary))
    (grad,) = torch.autograd.grad(far, unary)
    torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.5]]))
