"""`python -m experiments.polyphony --dataset jsb --model hmm --states 16`, from the root of the repository."""

import argparse
from dataclasses import fields
from typing import Any, get_args

from experiments.polyphony.config import Config, config_for
from experiments.polyphony.deep import DeepConfig
from experiments.polyphony.run import run
from experiments.polyphony.style import StyleConfig


def main(argv: list[str] | None = None) -> None:
    """Run with the settings of the command line, and print a row of the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.polyphony",
        description=__doc__,
        epilog="Settings that are not given suit the model: see config.py, deep.py and style.py.",
    )
    options: dict[str, Any] = {}
    for field in (*fields(Config), *fields(DeepConfig), *fields(StyleConfig)):
        choices = (*options.get(field.name, (None, ()))[1], *get_args(field.type))
        options[field.name] = type(field.default), choices
    for name, (kind, choices) in options.items():
        parser.add_argument("--" + name.replace("_", "-"), type=kind, choices=choices or None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    seeds = given.pop("seeds")
    try:
        make = {"dmm": DeepConfig, "style": StyleConfig}.get(given.get("model", ""), config_for)
        config = make(**given)
    except TypeError as error:
        parser.error(f"a setting of another model: {error}")

    result = run(config, seeds)
    figures = [f"{figure['mean']:.3f} ± {figure['std']:.3f}" for figure in result["summary"].values()]
    print(f"| {config.model} | {config.states} | {result['num_parameters']} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
