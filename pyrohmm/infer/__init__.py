"""Fitting a model to sequences, and choosing among models."""

from pyrohmm.infer.draws import AlignedDraws as AlignedDraws
from pyrohmm.infer.draws import align_draws as align_draws
from pyrohmm.infer.em import fit_em as fit_em
from pyrohmm.infer.history import History as History
from pyrohmm.infer.importance import ImportanceEstimate as ImportanceEstimate
from pyrohmm.infer.importance import importance_log_prob as importance_log_prob
from pyrohmm.infer.initialization import initialize as initialize
from pyrohmm.infer.path_elbo import PathELBO as PathELBO
from pyrohmm.infer.selection import Criteria as Criteria
from pyrohmm.infer.selection import PredictiveScore as PredictiveScore
from pyrohmm.infer.selection import SelectionRow as SelectionRow
from pyrohmm.infer.selection import StateSelection as StateSelection
from pyrohmm.infer.selection import criteria as criteria
from pyrohmm.infer.selection import predictive_score as predictive_score
from pyrohmm.infer.selection import select_states as select_states
from pyrohmm.infer.structured_vae import initialize_structured_vae as initialize_structured_vae
from pyrohmm.infer.svi import fit_svi as fit_svi
from pyrohmm.infer.switching import initialize_switching as initialize_switching
from pyrohmm.infer.variational_bayes import VariationalPosterior as VariationalPosterior
from pyrohmm.infer.variational_bayes import fit_vb as fit_vb
