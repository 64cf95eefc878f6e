"""Markov chains and hidden Markov models as torch distributions, over `pyrohmm.ops`."""

from pyrohmm.distributions.continuous_path import ContinuousPath
from pyrohmm.distributions.hidden_markov_model import HiddenMarkovModel, HMMSample
from pyrohmm.distributions.markov_chain import MarkovChain

__all__ = ["ContinuousPath", "HMMSample", "HiddenMarkovModel", "MarkovChain"]
