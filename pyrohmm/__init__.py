"""Hidden Markov models for Pyro: exact, differentiable inference for models written as loops over time."""

from pyrohmm import checks, data, infer, models, nn, ops
from pyrohmm.distributions import ContinuousPath, HiddenMarkovModel, MarkovChain
from pyrohmm.infer import History, fit_em, fit_svi, fit_vb, select_states
from pyrohmm.program import Posterior, markov, posterior, previous

__version__ = "0.1.0"

__all__ = [
    "ContinuousPath",
    "HiddenMarkovModel",
    "History",
    "MarkovChain",
    "Posterior",
    "checks",
    "data",
    "fit_em",
    "fit_svi",
    "fit_vb",
    "infer",
    "markov",
    "models",
    "nn",
    "ops",
    "posterior",
    "previous",
    "select_states",
]
