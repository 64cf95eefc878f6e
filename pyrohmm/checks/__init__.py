"""Checks of fitted models, with plots. They need ArviZ or matplotlib: `pip install 'pyrohmm[checks]'`."""

from pyrohmm.checks.arviz_bridge import to_inference_data as to_inference_data
from pyrohmm.checks.calibration import SimulationBasedCalibration as SimulationBasedCalibration
from pyrohmm.checks.calibration import StateCalibration as StateCalibration
from pyrohmm.checks.calibration import prior_simulator as prior_simulator
from pyrohmm.checks.calibration import simulation_based_calibration as simulation_based_calibration
from pyrohmm.checks.calibration import state_calibration as state_calibration
from pyrohmm.checks.plots import plot_decoding as plot_decoding
from pyrohmm.checks.plots import plot_dwell_times as plot_dwell_times
from pyrohmm.checks.plots import plot_emissions as plot_emissions
from pyrohmm.checks.plots import plot_history as plot_history
from pyrohmm.checks.plots import plot_restarts as plot_restarts
from pyrohmm.checks.plots import plot_series as plot_series
from pyrohmm.checks.plots import plot_state_graph as plot_state_graph
from pyrohmm.checks.plots import plot_transitions as plot_transitions
from pyrohmm.checks.predictive import PredictiveCheck as PredictiveCheck
from pyrohmm.checks.predictive import default_statistics as default_statistics
from pyrohmm.checks.predictive import posterior_predictive_check as posterior_predictive_check
from pyrohmm.checks.residuals import PseudoResiduals as PseudoResiduals
from pyrohmm.checks.residuals import ResidualTest as ResidualTest
from pyrohmm.checks.residuals import pseudo_residuals as pseudo_residuals
from pyrohmm.checks.selection import plot_selection as plot_selection
from pyrohmm.checks.statistics import autocorrelation as autocorrelation
from pyrohmm.checks.statistics import dwell_times as dwell_times
from pyrohmm.checks.statistics import marginal_quantiles as marginal_quantiles
from pyrohmm.checks.statistics import state_occupancy as state_occupancy
from pyrohmm.checks.statistics import transition_counts as transition_counts
