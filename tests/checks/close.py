"""Away with the figure of a plot."""


def close(ax) -> None:
    from matplotlib import pyplot

    pyplot.close(ax.figure)
