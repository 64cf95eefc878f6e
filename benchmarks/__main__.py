"""`python -m benchmarks cpu`, from the root of the repository."""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    """Run one benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    cpu = kinds.add_parser("cpu", help="ours and other libraries on the CPU")
    cpu.add_argument("--quick", action="store_true", help="under a minute: few shapes, few rounds")
    cpu.add_argument("--rounds", type=int, help="rounds of each cell (default: 9, quick 3)")
    cpu.add_argument("--impl", default="auto", help="our implementation (default: auto)")
    cpu.add_argument(
        "--output",
        type=Path,
        nargs="?",
        const=RESULTS,
        help="also save as FILE.md and FILE.json; without FILE in benchmarks/results, named by date and processor",
        metavar="FILE",
    )
    options = parser.parse_args(argv)

    from benchmarks.cpu import QUICK, Settings, run

    settings = QUICK if options.quick else Settings()
    if options.rounds:
        settings = settings._replace(rounds=options.rounds)
    report = run(settings, options.impl)
    print(report.as_markdown(), end="")
    if options.output:
        path = RESULTS / report.name if options.output == RESULTS else options.output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(report.as_markdown())
        path.with_suffix(".json").write_text(json.dumps(report.as_json(), indent=1) + "\n")


if __name__ == "__main__":
    main()
