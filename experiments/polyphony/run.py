"""Train with several seeds, test, and write the results."""

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.polyphony.config import Config, config_for
from experiments.polyphony.deep import DeepConfig, run_deep
from experiments.polyphony.model import build
from experiments.polyphony.style import StyleConfig, run_style
from pyrohmm import fit_svi
from pyrohmm.data import Polyphony, Sequences, load_polyphony
from pyrohmm.models import HMM

HERE = Path(__file__).parent


def seen_keys(train: Sequences) -> torch.Tensor:
    """(D,) bool, the keys that sound in the training set."""
    return train.x[train.observed].any(0)


def nats_per_step(model: HMM, data: Sequences, counted: torch.Tensor | None = None) -> float:
    """Negative log-likelihood for each time step, of the counted keys (D,) only; of all keys if None.

    The model is to be in eval mode.
    """
    model.emission.counted = counted
    with torch.no_grad():
        total = sum(model.log_prob(batch).sum().item() for batch in data.batches(20))
    model.emission.counted = None
    return -total / data.num_observed


def run_seed(music: Polyphony, config: Config, seed: int, *, progress: bool = True) -> tuple[HMM, dict[str, Any]]:
    """Train with one seed, stopped by the validation set, and test.

    Returns:
        The model, in eval mode, and its figures: nats for each time step, by part and by counted keys.
    """
    model = build(music.train, config, seed)
    epoch = math.ceil(len(music.train) / config.batch_size)
    begin = time.perf_counter()
    history = fit_svi(
        model,
        music.train,
        steps=config.epochs * epoch,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        validation=music.valid,
        evaluate_every=epoch,
        patience=config.patience,
        seed=seed,
        progress=progress,
    )
    seconds = time.perf_counter() - begin
    model.eval()
    seen = seen_keys(music.train)
    figures = {
        "seed": seed,
        "test": nats_per_step(model, music.test),
        "test_seen_keys": nats_per_step(model, music.test, seen),
        "validation": nats_per_step(model, music.valid),
        "train": nats_per_step(model, music.train),
        "best_epoch": (history.best_step or 0) / epoch,
        "epochs": history.num_steps / epoch,
        "stop_reason": history.stop_reason,
        "seconds": round(seconds, 1),
        "validation_by_epoch": [round(value, 4) for value in history.validation],
    }
    return model, figures


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def run(
    config: Config | DeepConfig | StyleConfig,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    music: Polyphony | None = None,
    results: Path = HERE / "results",
    runs: Path = HERE / "runs",
    progress: bool = True,
) -> dict[str, Any]:
    """Train with each seed; write the figures to `results` as JSON and the models to `runs`, after each seed.

    Figures of other seeds with the same settings that are in the JSON already are kept.

    Args:
        config: the settings.
        seeds: of the starts and of the minibatches.
        music: the data; by default the set that `config` names.
        results: folder for the JSON.
        runs: folder for the parameters.
        progress: whether to show progress.

    Returns:
        What the JSON holds.
    """
    if not seeds:
        raise ValueError("seeds: expected at least one, got none")
    music = load_polyphony(config.dataset) if music is None else music
    name = f"{config.dataset}-{config.model}-{config.states}"
    for folder in (results, runs):
        folder.mkdir(parents=True, exist_ok=True)
    seen = seen_keys(music.train)
    result: dict[str, Any] = {}
    for seed in seeds:
        if isinstance(config, DeepConfig):
            checkpoint = runs / f"{name}-seed{seed}.ckpt"
            model, figures = run_deep(music, config, seed, checkpoint=checkpoint, progress=progress)
        elif isinstance(config, StyleConfig):
            plain, start = run_seed(music, config_for("hmm", config.states), seed, progress=progress)
            model, figures = run_style(music, config, seed, plain, progress=progress)
            figures = {**figures, "start": {key: start[key] for key in ("test", "validation", "train", "seconds")}}
        else:
            model, figures = run_seed(music, config, seed, progress=progress)
        tests = [key for key in ("test", "test_seen_keys", "test_importance") if key in figures]
        torch.save(model.state_dict(), runs / f"{name}-seed{seed}.pt")
        by_seed = {**_former(results / f"{name}.json", config), seed: figures}
        result = {
            "config": asdict(config),
            "num_parameters": model.num_parameters,
            "num_keys": len(seen),
            "num_seen_keys": int(seen.sum()),
            "test_notes_on_unseen_keys": int(music.test.x[..., ~seen].sum()),
            "summary": {key: summary([f[key] for f in by_seed.values()]) for key in tests},
            "seeds": [by_seed[number] for number in sorted(by_seed)],
        }
        (results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        if progress:
            print(f"{name} seed {seed}: " + ", ".join(f"{key} {figures[key]:.3f}" for key in tests))
    return result


def _former(file: Path, config: Config | DeepConfig | StyleConfig) -> dict[int, dict[str, Any]]:
    """The figures in the file by seed, if they are of the same settings."""
    former = json.loads(file.read_text()) if file.exists() else None
    if former is None or former["config"] != asdict(config):
        return {}
    return {figures["seed"]: figures for figures in former["seeds"]}
