"""Checks of fitted models, with plots. They need matplotlib: `pip install 'pyrohmm[checks]'`."""

from pyrohmm.checks.selection import plot_selection as plot_selection
