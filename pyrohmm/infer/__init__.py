"""Fitting a model to sequences."""

from pyrohmm.infer.history import History as History
from pyrohmm.infer.svi import fit_svi as fit_svi
