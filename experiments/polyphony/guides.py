"""Which guide suits the deep Markov model? `python -m experiments.polyphony.guides` from the root of the repository."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments.polyphony.deep import DeepConfig, run_deep
from experiments.polyphony.run import HERE
from pyrohmm.data import Polyphony, load_polyphony

# All alike but for the guide. The weight of the KL term grows in the first half.
SHORT = DeepConfig(epochs=150, annealing=75, particles=100)
GUIDES = [
    *({"inference": inference} for inference in ("mean-field", "left-right", "right-left", "both")),
    {"inference": "right-left", "flows": 1},
]


def compare(
    base: DeepConfig = SHORT,
    guides: Sequence[dict[str, Any]] = GUIDES,
    seed: int = 0,
    *,
    music: Polyphony | None = None,
    results: Path = HERE / "results",
    runs: Path = HERE / "runs",
    progress: bool = True,
) -> dict[str, Any]:
    """Train one model with each guide; write the figures to `results` as JSON, after each.

    Args:
        base: the settings that all share.
        guides: what differs.
        seed: of the starts and of the minibatches.
        music: the data; by default the set that `base` names.
        results: folder for the JSON.
        runs: folder for the checkpoints, from which runs that were broken off go on.
        progress: whether to show progress.

    Returns:
        What the JSON holds.
    """
    music = load_polyphony(base.dataset) if music is None else music
    for folder in (results, runs):
        folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"config": asdict(base), "guides": []}
    name = f"{base.dataset}-{base.model}-{base.states}-guides"
    for guide in guides:
        checkpoint = runs / f"{name}-{'-'.join(str(value) for value in guide.values())}-{base.epochs}-seed{seed}.ckpt"
        model, figures = run_deep(music, replace(base, **guide), seed, checkpoint=checkpoint, progress=progress)
        result["guides"].append({**guide, "num_parameters": model.num_parameters, **figures})
        (results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(argv: list[str] | None = None) -> None:
    """Compare the guides, and print the rows of the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.polyphony.guides", description=__doc__)
    for name in ("epochs", "annealing", "particles"):
        parser.add_argument(f"--{name}", type=int, default=getattr(SHORT, name))
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(argv))
    seed = given.pop("seed")
    for row in compare(replace(SHORT, **given), seed=seed)["guides"]:
        guide = row["inference"] + (f", {row['flows']} flow" if row.get("flows") else "")
        figures = [f"{row[key]:.3f}" for key in ("test", "test_importance", "validation", "train")]
        print(f"| {guide} | {row['num_parameters']} | {' | '.join(figures)} | {row['cpu_seconds']:.0f} s |")


if __name__ == "__main__":
    main()
