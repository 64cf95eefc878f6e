"""Fit with several seeds, decode, and write the figures and a picture."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.switching.config import Config
from experiments.switching.track import NUM_REGIMES, track
from pyrohmm import fit_svi
from pyrohmm.checks import state_colours
from pyrohmm.data import Sequences
from pyrohmm.infer import initialize_switching
from pyrohmm.models import SwitchingLDS, SwitchingNLDS, SwitchingSSM, match_states, overlap

HERE = Path(__file__).parent


def build(config: Config, seed: int) -> SwitchingSSM:
    """The model before its start."""
    settings: dict[str, Any] = {
        "recurrent": "latent" if config.model.startswith("r") else None,
        "evenness": config.evenness,
        "evenness_runs": max(1, config.steps // 2),
        "generator": torch.Generator().manual_seed(seed),
    }
    if config.model.endswith("snlds"):
        return SwitchingNLDS(config.states, 2, config.num_entries, units=16, emission_units=(32,), **settings)
    return SwitchingLDS(config.states, 2, config.num_entries, **settings)


def accuracy(states: Tensor, labels: Tensor, num_states: int) -> tuple[float, Tensor]:
    """The share of steps whose state is the one that stands for their regime, and the order of the states."""
    counts = overlap(states, labels, num_states, NUM_REGIMES)
    order = match_states(counts)
    return float(counts[order].diagonal().sum() / counts.sum()), order


def run_seed(config: Config, seed: int, *, progress: bool = True) -> tuple[SwitchingSSM, dict[str, Any]]:
    """Fit with one seed and decode.

    Returns:
        The model, its states in the order of the regimes, and the figures.
    """
    data, _ = track(config)
    train, test = parts(data, config)
    begin, cpu = time.perf_counter(), time.process_time()
    model = build(config, seed)
    initialize_switching(model, train, restarts=config.restarts, seed=seed)
    at_start = accuracy(model.decode(train), train.labels, config.states)[0]
    history = fit_svi(
        model,
        train,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="cosine",
        seed=seed,
        progress=progress,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    model.eval()
    after, order = accuracy(model.decode(train), train.labels, config.states)
    model.relabel(order)
    held_out = model.decode(test)
    return model, {
        "seed": seed,
        "train_at_start": at_start,
        "train": after,
        "test": float((held_out == test.labels).double().mean()),
        "loss": statistics.fmean(history.loss[-20:]),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }


def parts(data: Sequences, config: Config) -> tuple[Sequences, Sequences]:
    """The pieces to be fitted, and the last ones."""
    cut = round(len(data) * (1 - config.test_share))
    return data[:cut].as_whole(), data[cut:].as_whole()


def run(
    config: Config,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    results: Path = HERE / "results",
    picture: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit with each seed; write the figures as JSON, and a picture of the first seed, to `results`.

    Returns:
        What the JSON holds.
    """
    if not seeds:
        raise ValueError("seeds: expected at least one, got none")
    results.mkdir(parents=True, exist_ok=True)
    figures = []
    for seed in seeds:
        model, found = run_seed(config, seed, progress=progress)
        if picture and not figures:
            draw(model, config, results / f"{config.model}-{config.states}.png")
        figures.append(found)
        result = {"config": asdict(config), "seeds": figures}
        (results / f"{config.model}-{config.states}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def draw(model: SwitchingSSM, config: Config, file: Path) -> None:
    """The held-out places by their regimes, and the inferred paths, turned upon them, by the decoded states."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data, places = track(config)
    _, test = parts(data, config)
    places = places[-len(test) :].flatten(0, 1)
    with torch.no_grad():
        paths = model.path(test).sample((20,)).mean(0).flatten(0, -2)
    ones = torch.ones(len(paths), 1)
    turned = torch.cat([paths, ones], 1)
    turned = turned @ torch.linalg.lstsq(turned, places).solution
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharex=True, sharey=True)
    for axis, points, states, title in (
        (axes[0], places, test.labels, "places, regimes"),
        (axes[1], turned, model.decode(test), "inferred from new observations"),
    ):
        for state, colour in enumerate(state_colours(max(NUM_REGIMES, config.states))):
            axis.scatter(*points[states.flatten() == state].mT.numpy(), s=3, color=colour)
        axis.set(title=title, aspect="equal")
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    plt.close(figure)
