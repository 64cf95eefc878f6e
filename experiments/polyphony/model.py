"""The three models, built from the parts of `pyrohmm.nn`.

z is the state, x a chord (0/1 for each key), s the logistic function, U, V, W matrices that all states share.

    hmm    p(x_t | z_t)          = Bernoulli(s(b[z_t]))
    arhmm  p(x_t | z_t, x_{t-1}) = Bernoulli(s(b[z_t] + W x_{t-1}))
    nnhmm  p(x_t | z_t, x_{t-1}) = Bernoulli(s(b[z_t] + W x_{t-1} + V relu(c[z_t] + U x_{t-1})))
"""

from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from experiments.polyphony.config import Config
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn import AutoregressiveEmission, BernoulliEmission, Initial, Transition


class CountedKeys(PyroModule):
    """An emission of independent keys of which only some count in the likelihood; all do at first."""

    def __init__(self, emission: Any):
        super().__init__()
        self.num_states, self.event_shape, self.order = emission.num_states, emission.event_shape, emission.order
        self.emission = emission
        self.counted: Tensor | None = None

    def forward(self, state: Tensor, inputs: Tensor | None = None, previous: Tensor | None = None) -> Any:
        """The law of a chord; a key with False in `counted` (D,) adds nothing to its log-probability."""
        law = self.emission(state, inputs, previous)
        return law if self.counted is None else law.base_dist.mask(self.counted).to_event(1)


class Residual(nn.Module):
    """[direct; hidden] -> direct + V dropout(relu(hidden))."""

    def __init__(self, hidden: int, dim: int, dropout: float, generator: Generator):
        super().__init__()
        self.dim = dim
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, dim, bias=False)
        nn.init.uniform_(self.out.weight, -(hidden**-0.5), hidden**-0.5, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """(..., dim + hidden) to (..., dim)."""
        direct, hidden = features[..., : self.dim], features[..., self.dim :]
        return direct + self.out(self.dropout(hidden.relu()))


def start_probs(train: Sequences, config: Config, generator: Generator) -> Tensor:
    """Key probabilities of the states at the start (K, D): between the mean chord and random chords of the music."""
    chords = train.x[train.observed]
    chosen = chords[torch.randint(len(chords), (config.states,), generator=generator)]
    return torch.lerp(chords.mean(0), chosen, config.contrast).clamp(1e-3, 1 - 1e-3)


def build(train: Sequences, config: Config, seed: int) -> HMM:
    """The model at its start, which takes the states' chords from the training set."""
    generator = torch.Generator().manual_seed(seed)
    num_states, (dim,) = config.states, train.event_shape
    probs = start_probs(train, config, generator)
    match config.model:
        case "hmm":
            emission = BernoulliEmission(num_states, dim, probs=probs)
        case "arhmm" | "nnhmm":
            # The columns of the first layer are the one-hot state, then the previous chord.
            hidden = config.hidden if config.model == "nnhmm" else 0
            first = nn.Linear(num_states + dim, dim + hidden, bias=False)
            with torch.no_grad():
                first.weight.zero_()
                first.weight[:dim, :num_states] = probs.logit().mT
                if hidden:
                    first.weight[dim:, :num_states].normal_(generator=generator)
                    first.weight[dim:, num_states:].uniform_(-(dim**-0.5), dim**-0.5, generator=generator)
            rest = [Residual(hidden, dim, config.dropout, generator)] if hidden else []
            emission = AutoregressiveEmission(num_states, nn.Sequential(first, *rest), "bernoulli", dim=dim)
        case other:
            raise ValueError(f"model: expected 'hmm', 'arhmm' or 'nnhmm', got {other!r}")
    initial = Initial(num_states, generator=generator)
    return HMM(CountedKeys(emission), initial, Transition(num_states, generator=generator))
