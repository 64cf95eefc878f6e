"""Pyro effect handlers: the `markov` loop over time, and the posterior of its states."""

from pyrohmm.program.markov import markov, previous
from pyrohmm.program.posterior import Posterior, posterior

__all__ = ["Posterior", "markov", "posterior", "previous"]
