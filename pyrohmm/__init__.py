"""Hidden Markov models for Pyro: exact, differentiable inference for models written as loops over time."""

from pyrohmm import data, models, nn, ops
from pyrohmm.distributions import HiddenMarkovModel, MarkovChain
from pyrohmm.infer import History, fit_em, fit_svi
from pyrohmm.program import Posterior, markov, posterior, previous

__version__ = "0.1.0"

__all__ = [
    "HiddenMarkovModel",
    "History",
    "MarkovChain",
    "Posterior",
    "data",
    "fit_em",
    "fit_svi",
    "markov",
    "models",
    "nn",
    "ops",
    "posterior",
    "previous",
]
