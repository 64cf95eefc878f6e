"""`python -m experiments.bee_dance`, from the root of the repository: see README.md."""

import argparse
from typing import Any

from experiments.bee_dance.config import CANDIDATES, TABLE, WEIGHTS, Config
from experiments.bee_dance.picture import write_picture
from experiments.bee_dance.run import at_random, baseline, check, evenly_spaced, run
from pyrohmm.data import load_bee_dance


def row(name: str, figures: dict[str, Any]) -> str:
    """A row of a table of Markdown."""
    within = [figures[f"f1 within {tolerance}"] for tolerance in (5, 10)]
    cells = [f"{f1['mean']:.3f} ± {f1['std']:.3f}" for f1 in within]
    cells.append(", ".join(f"{value:.2f}" for value in within[1]["tracks"]))
    bic = f"{figures['bic']:.0f}" if "bic" in figures else ""
    return f"| {name} | {bic} | {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    """Run, and print the rows of a table: BIC, F1 within 5 and within 10 steps, and the latter by track."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bee_dance", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--select", action="store_true", help="states and order by BIC, with the first seed only")
    what.add_argument("--weights", action="store_true", help="weights of the sticky prior, with the first seed only")
    what.add_argument("--picture", action="store_true", help="write track.png")
    what.add_argument("--check", action="store_true", help="p-values of checks of the fit, track by track")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args(argv)
    dance = load_bee_dance()
    if given.picture:
        write_picture(dance)
    elif given.check:
        for number, track in enumerate(dance.tracks.to_list()):
            for name, values in check(track, Config(), given.seeds[0]).items():
                print(f"track {number}, {name}: p = {', '.join(f'{p:.3f}' for p in values)}", flush=True)
    elif given.select or given.weights:
        for config in CANDIDATES if given.select else WEIGHTS:
            print(row(config.name, run(config, given.seeds[:1], dance=dance, results=None)["summary"]), flush=True)
    else:
        for config in TABLE:
            print(row(config.name, run(config, given.seeds, dance=dance)["summary"]), flush=True)
        for kind in (evenly_spaced, at_random):
            print(row(kind.__name__, baseline(kind, dance, range(20))))


if __name__ == "__main__":
    main()
