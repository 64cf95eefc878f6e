"""Hidden Markov models for Pyro: exact, differentiable inference for models written as loops over time."""

from pyrohmm import ops
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.program import Posterior, markov, posterior, previous

__version__ = "0.1.0"

__all__ = [
    "HiddenMarkovModel",
    "MarkovChain",
    "Posterior",
    "markov",
    "ops",
    "posterior",
    "previous",
]
