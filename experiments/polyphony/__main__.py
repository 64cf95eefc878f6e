"""`python -m experiments.polyphony --dataset jsb --model hmm --states 16`, from the root of the repository."""

import argparse
from dataclasses import fields
from typing import get_args

from experiments.polyphony.config import Config, config_for
from experiments.polyphony.run import run


def main(argv: list[str] | None = None) -> None:
    """Run with the settings of the command line, and print a row of the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.polyphony",
        description=__doc__,
        epilog="Settings that are not given suit the model: see config.py.",
    )
    for field in fields(Config):
        option = "--" + field.name.replace("_", "-")
        choices = get_args(field.type) or None
        parser.add_argument(option, type=type(field.default), choices=choices)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    seeds = given.pop("seeds")
    config = config_for(**given)

    result = run(config, seeds)
    test, test_seen = result["summary"]["test"], result["summary"]["test_seen_keys"]
    print(
        f"| {config.model} | {config.states} | {result['num_parameters']} "
        f"| {test['mean']:.3f} ± {test['std']:.3f} | {test_seen['mean']:.3f} ± {test_seen['std']:.3f} |"
    )


if __name__ == "__main__":
    main()
