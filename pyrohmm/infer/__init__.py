"""Fitting a model to sequences."""

from pyrohmm.infer.em import fit_em as fit_em
from pyrohmm.infer.history import History as History
from pyrohmm.infer.initialization import initialize as initialize
from pyrohmm.infer.svi import fit_svi as fit_svi
