"""`python -m benchmarks cpu`, `em`, `nuts`, `gpu` or `compile`, from the root of the repository."""

import argparse
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark and print its tables; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    kinds = parser.add_subparsers(required=True)
    cpu = kinds.add_parser("cpu", help="ours and other libraries on the CPU")
    cpu.add_argument("--impl", default="auto", help="our implementation (default: auto)")
    cpu.add_argument("--quick", action="store_true", help="under a minute: few shapes, few rounds")
    em = kinds.add_parser("em", help="expectation maximisation, ours and other libraries' on the CPU")
    em.add_argument("--quick", action="store_true", help="about a minute: small data, few rounds")
    nuts = kinds.add_parser("nuts", help="effective samples a second, collapsed and enumerated by Pyro")
    nuts.add_argument("--quick", action="store_true", help="about a minute: small data, few draws")
    nuts.add_argument("--draws", type=int, help="draws of each chain, after half as many steps of warm-up")
    gpu = kinds.add_parser("gpu", help="ours and other ways on a CUDA device")
    gpu.add_argument("--quick", action="store_true", help="few shapes, few rounds")
    for timed in (cpu, em, gpu):
        timed.add_argument("--rounds", type=int, help="rounds of each cell")
    ahead = kinds.add_parser("compile", help="registers, shared memory and spills of each GPU kernel; needs no GPU")
    ahead.add_argument("--quick", action="store_true", help="one number of states for each form")
    for kind in (cpu, em, nuts, gpu, ahead):
        kind.add_argument(
            "--output",
            type=Path,
            nargs="?",
            const=RESULTS,
            help="also save as FILE.md and FILE.json; without FILE in benchmarks/results, named by date and machine",
            metavar="FILE",
        )
    cpu.set_defaults(run=_cpu)
    em.set_defaults(run=_em)
    nuts.set_defaults(run=_nuts)
    gpu.set_defaults(run=_gpu)
    ahead.set_defaults(run=_compile)
    options = parser.parse_args(argv)

    report = options.run(options)
    print(report.as_markdown(), end="")
    if options.output:
        path = RESULTS / report.name if options.output == RESULTS else options.output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(report.as_markdown())
        path.with_suffix(".json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 0 if report.ok else 1


def _cpu(options: argparse.Namespace):
    from benchmarks import cpu

    return cpu.run(_timed(cpu, options), options.impl)


def _em(options: argparse.Namespace):
    from benchmarks import em

    return em.run(_timed(em, options))


def _nuts(options: argparse.Namespace):
    from benchmarks import nuts

    settings = nuts.QUICK if options.quick else nuts.Settings()
    if options.draws:
        settings = settings._replace(draws=options.draws, warmup=max(options.draws // 2, 1))
    return nuts.run(settings)


def _gpu(options: argparse.Namespace):
    from benchmarks import gpu

    return gpu.run(_timed(gpu, options))


def _compile(options: argparse.Namespace):
    from benchmarks import compilation

    return compilation.run(compilation.QUICK if options.quick else compilation.Settings())


def _timed(module, options: argparse.Namespace):
    settings = module.QUICK if options.quick else module.Settings()
    if options.rounds:
        settings = settings._replace(effort=settings.effort._replace(rounds=options.rounds))
    return settings


if __name__ == "__main__":
    sys.exit(main())
