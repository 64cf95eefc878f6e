"""A measure against the collapse of discrete states to one."""

import math

import torch
from torch import Tensor

from pyrohmm import ops
from pyrohmm.distributions import MarkovChain
from pyrohmm.ops.chain import valid_steps


def evenness(chain: MarkovChain) -> Tensor:
    r"""How even the states of each step are: :math:`-\sum_t \mathrm{KL}(\mathrm{uniform} \,\|\, p(z_t))`, at most 0.

    Args:
        chain: a law of paths.

    Returns:
        (*batch), nats, float64 inside, so that states of probability down to 1e-308 are still pushed.

    >>> probs = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    >>> even = MarkovChain.from_potentials(torch.zeros(2), torch.zeros(2, 2), probs.log())
    >>> evenness(even)
    tensor(-0.5108)
    """
    potentials = (potential.double() for potential in chain.potentials)
    marginals = ops.smooth(*potentials, lengths=chain.lengths).state_marginals
    divergence = -marginals.clamp_min(torch.finfo(marginals.dtype).tiny).log().mean(-1) - math.log(chain.num_states)
    if chain.lengths is not None:
        divergence = torch.where(valid_steps(chain.lengths, chain.num_steps), divergence, 0.0)
    return -divergence.sum(-1).to(chain.initial_logits.dtype)
