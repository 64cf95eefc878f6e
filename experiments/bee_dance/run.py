"""Fit every track by itself, compare the decoded change points with the true ones, and write the results."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from experiments.bee_dance.config import Config
from experiments.bee_dance.model import build, features
from pyrohmm import fit_em
from pyrohmm.checks import boundary_scores, change_points, posterior_predictive_check, pseudo_residuals
from pyrohmm.data import BeeDance, Sequences, load_bee_dance
from pyrohmm.infer import criteria
from pyrohmm.models import HMM

HERE = Path(__file__).parent
TOLERANCES = (5, 10)


def fit(data: Sequences, config: Config, seed: int) -> HMM:
    """The most probable of the model's fits to one track."""
    model = build(config, data.num_steps, Generator().manual_seed(seed))
    fit_em(
        model,
        data,
        steps=config.steps,
        restarts=config.restarts,
        initialization="kmeans",
        seed=seed,
        progress=False,
    )
    return model


def scores(found: Tensor, true: Tensor) -> dict[str, Any]:
    """Precision, recall and F1 at each tolerance."""
    result: dict[str, Any] = {"found": len(found), "true": len(true)}
    for tolerance in TOLERANCES:
        precision, recall, f1, *_ = boundary_scores(found, true, tolerance)
        result[f"within {tolerance}"] = {"precision": precision, "recall": recall, "f1": f1}
    return result


def run_seed(dance: BeeDance, config: Config, seed: int, *, progress: bool = True) -> dict[str, Any]:
    """Figures of every track, with one seed, and the BIC of all."""
    tracks = zip(dance.tracks.to_list(), dance.change_points, strict=True)
    figures, bic = [], 0.0
    for track, true in tqdm(tracks, f"{config.name}, seed {seed}", len(dance.tracks), disable=not progress):
        data = features(track)
        model = fit(data, config, seed)
        with torch.no_grad():
            (found,) = change_points(model.posterior(data))
        figures.append(scores(found, true))
        bic += criteria(model, data).bic
    return {"seed": seed, "bic": bic, "tracks": figures}


def run(
    config: Config,
    seeds: Sequence[int] = range(5),
    *,
    dance: BeeDance | None = None,
    results: Path | None = HERE / "results",
    progress: bool = True,
) -> dict[str, Any]:
    """Fit with each seed, and write the figures to `results` as JSON.

    Args:
        config: the settings.
        seeds: of the starts.
        dance: the data; by default those of `load_bee_dance`.
        results: folder for the JSON; None to write none.
        progress: whether to show progress.

    Returns:
        What the JSON holds.
    """
    if not seeds:
        raise ValueError("seeds: expected at least one, got none")
    dance = load_bee_dance() if dance is None else dance
    by_seed = [run_seed(dance, config, seed, progress=progress) for seed in seeds]
    result = {"config": asdict(config), "summary": summary(by_seed), "seeds": by_seed}
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{config.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds: BIC, if known, and F1 of each track and over all, the latter with its standard deviation."""
    result: dict[str, Any] = {}
    if "bic" in by_seed[0]:
        result["bic"] = statistics.fmean(figures["bic"] for figures in by_seed)
    for tolerance in TOLERANCES:
        key = f"within {tolerance}"
        # (seeds, tracks)
        f1 = [[track[key]["f1"] for track in figures["tracks"]] for figures in by_seed]
        means = [statistics.fmean(row) for row in f1]
        result[f"f1 {key}"] = {
            "mean": statistics.fmean(means),
            "std": statistics.stdev(means) if len(means) > 1 else 0.0,
            "tracks": [statistics.fmean(column) for column in zip(*f1, strict=True)],
        }
    return result


def evenly_spaced(num_steps: int, count: int, generator: Generator) -> Tensor:
    """As many change points as said, the same distance apart."""
    return (torch.arange(1, count + 1) * num_steps / (count + 1)).round().long()


def at_random(num_steps: int, count: int, generator: Generator) -> Tensor:
    """As many change points as said, anywhere."""
    return 1 + torch.randperm(num_steps - 1, generator=generator)[:count]


def baseline(kind: Any, dance: BeeDance, seeds: Sequence[int]) -> dict[str, Any]:
    """The summary of change points that know only their true number, which the models do not."""
    by_seed = []
    for seed in seeds:
        generator = Generator().manual_seed(seed)
        figures = [
            scores(kind(int(length), len(true), generator), true)
            for length, true in zip(dance.tracks.lengths, dance.change_points, strict=True)
        ]
        by_seed.append({"tracks": figures})
    return summary(by_seed)


def check(track: Tensor, config: Config, seed: int = 0, num_simulations: int = 39) -> dict[str, list[float]]:
    """p-values of the fit to one track: of one-step residuals by feature, and of statistics of simulated tracks."""
    data = features(track)
    model = fit(data, config, seed)
    residuals = pseudo_residuals(model, data, num_simulations=num_simulations, seed=seed, progress=False)
    predicted = posterior_predictive_check(model, data, num_draws=num_simulations, seed=seed, progress=False)
    result = {
        f"residuals, {name}": test.p_value.tolist()
        for name, test in residuals.tests.items()
        if test.p_value is not None
    }
    return result | {name: [found.overall] for name, found in predicted.items()}
