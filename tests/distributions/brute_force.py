"""The law of paths by listing them: what the tests here hold the distributions to."""

import torch
from torch import Tensor

from pyrohmm.testing import Chain, enumeration


def as_law(chain: Chain) -> Chain:
    """The chain with its initial and transition rows normalised; a row of -inf stays one, NaN becomes uniform."""

    def rows(logits: Tensor) -> Tensor:
        impossible = (logits == -torch.inf).all(-1, keepdim=True)
        law = torch.where(impossible | logits.isnan(), 0.0, logits).log_softmax(-1)
        return torch.where(impossible, -torch.inf, law)

    return chain._replace(initial_logits=rows(chain.initial_logits), transition_logits=rows(chain.transition_logits))


def sequences(chain: Chain) -> list[Chain]:
    """Each sequence of the batch by itself, cut at its length: (K,), (length-1, K, K), (length, K)."""
    num_steps, num_states = chain.observation_logits.shape[-2:]
    shape = chain.batch_shape
    lengths = torch.full(shape, num_steps) if chain.lengths is None else chain.lengths.expand(shape)
    count = shape.numel()
    initial = chain.initial_logits.expand(*shape, num_states).reshape(count, num_states)
    transition = chain.transition_logits.expand(*shape, num_steps - 1, num_states, num_states)
    transition = transition.reshape(count, num_steps - 1, num_states, num_states)
    observation = chain.observation_logits.expand(*shape, num_steps, num_states).reshape(count, num_steps, num_states)
    return [
        Chain(initial[n], transition[n, : max(length - 1, 0)], observation[n, :length])
        for n, length in enumerate(lengths.flatten().tolist())
    ]


def path_laws(chain: Chain) -> list[tuple[Tensor, Tensor]]:
    """Of each sequence: all paths (K^length, length) and their log-probabilities (K^length,)."""
    laws = []
    for one in sequences(chain):
        num_steps, num_states = one.observation_logits.shape
        score = enumeration.path_log_probs(*one.logits)
        possible = score > -torch.inf
        log_z = score[possible].logsumexp(0) if possible.any() else 0.0
        laws.append((enumeration.paths(num_states, num_steps), score - log_z))
    return laws
