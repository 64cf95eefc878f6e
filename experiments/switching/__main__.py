"""`python -m experiments.switching --model rslds`, from the root of the repository."""

import argparse
import statistics
from dataclasses import fields
from typing import get_args

from experiments.switching.config import Config
from experiments.switching.run import run


def main(argv: list[str] | None = None) -> None:
    """Run with the settings of the command line, and print a row of the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.switching", description=__doc__)
    for field in fields(Config):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(field.default), choices=get_args(field.type) or None
        )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    seeds = given.pop("seeds")
    config = Config(**given)
    found = run(config, seeds)["seeds"]
    columns = [
        " to ".join(f"{pick(figures[key] for figures in found):.3f}" for pick in (min, max))
        for key in ("train_at_start", "train", "test")
    ]
    print(f"| {config.model} | {' | '.join(columns)} | {statistics.fmean(f['cpu_seconds'] for f in found):.0f} s |")


if __name__ == "__main__":
    main()
