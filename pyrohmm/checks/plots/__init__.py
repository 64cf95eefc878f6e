"""Pictures of data with their decoded states, of fitted models and of fits."""

from pyrohmm.checks.plots.common import state_colours as state_colours
from pyrohmm.checks.plots.dwell_times import plot_dwell_times as plot_dwell_times
from pyrohmm.checks.plots.emissions import plot_emissions as plot_emissions
from pyrohmm.checks.plots.history import plot_history as plot_history
from pyrohmm.checks.plots.history import plot_restarts as plot_restarts
from pyrohmm.checks.plots.series import plot_decoding as plot_decoding
from pyrohmm.checks.plots.series import plot_series as plot_series
from pyrohmm.checks.plots.transitions import plot_state_graph as plot_state_graph
from pyrohmm.checks.plots.transitions import plot_transitions as plot_transitions
