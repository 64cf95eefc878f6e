"""Checks of fitted models, with plots. They need matplotlib: `pip install 'pyrohmm[checks]'`."""

from pyrohmm.checks.plots import plot_decoding as plot_decoding
from pyrohmm.checks.plots import plot_dwell_times as plot_dwell_times
from pyrohmm.checks.plots import plot_emissions as plot_emissions
from pyrohmm.checks.plots import plot_history as plot_history
from pyrohmm.checks.plots import plot_restarts as plot_restarts
from pyrohmm.checks.plots import plot_series as plot_series
from pyrohmm.checks.plots import plot_state_graph as plot_state_graph
from pyrohmm.checks.plots import plot_transitions as plot_transitions
from pyrohmm.checks.selection import plot_selection as plot_selection
