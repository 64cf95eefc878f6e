"""The picture of the README: a track coloured by its decoded states, and its features over time."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.bee_dance.config import Config
from experiments.bee_dance.model import FEATURES, features
from experiments.bee_dance.run import HERE, fit
from pyrohmm.checks import plot_series, state_colours
from pyrohmm.data import BeeDance, Sequences
from pyrohmm.models import HMM

NAMES = ["waggle", "turn, heading falls", "turn, heading rises"]


def in_order(model: HMM, data: Sequences) -> None:
    """Put three states into the order of `NAMES`: the one in which the heading varies most, then by its mean change."""
    states, change = model.posterior(data).mode[0], data.x[0, :, 0]
    visited = [change[states == state] for state in range(3)]
    waggle = max(range(3), key=lambda state: visited[state].var() if len(visited[state]) > 1 else 0.0)
    turns = sorted({0, 1, 2} - {waggle}, key=lambda state: visited[state].mean())
    model.relabel([waggle, *turns])


def draw(track: Tensor, true: Tensor, seed: int = 0) -> Any:
    """The figure of one track."""
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection

    data = features(track)
    with torch.no_grad():
        model = fit(data, Config(), seed)
        in_order(model, data)
        posterior = model.posterior(data)
    figure = pyplot.figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=(2, 5))
    plot_series(
        data, posterior, dim_names=FEATURES, state_names=NAMES, change_points=true, ax=figure.add_subplot(right)
    )
    place, palette = figure.add_subplot(left), state_colours(len(NAMES))
    points = track[:, :2].numpy()
    pieces = LineCollection(
        [points[t : t + 2] for t in range(len(points) - 1)],
        colors=[palette[state] for state in posterior.mode[0, 1:].tolist()],
        linewidths=0.9,
    )
    place.add_collection(pieces)
    place.plot(*points[true.numpy()].T, "o", color="black", markersize=3)
    place.set(
        xlabel="x (scaled)",
        ylabel="y (scaled)",
        aspect="equal",
        title="dots: change points",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
    )
    return figure


def write_picture(dance: BeeDance, track: int = 4, path: Path = HERE / "track.png") -> None:
    """Write the picture of one track."""
    from matplotlib import pyplot

    figure = draw(dance.tracks.to_list()[track], dance.change_points[track])
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
