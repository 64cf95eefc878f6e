"""Plots without a window, and away with their figures."""

import matplotlib

matplotlib.use("Agg")


def close(ax) -> None:
    from matplotlib import pyplot

    pyplot.close(ax.figure)
