"""The parts that reports have in common: tables of times, of targets, and plain numbers."""

import re
from collections.abc import Mapping, Sequence

from benchmarks.table import markdown, number
from benchmarks.targets import Cell, Target
from benchmarks.timing import Timing


def operation_tables(
    cells: Sequence[Cell], operations: Mapping[str, str], missing: Sequence[str], ratios: Mapping[str, Sequence[str]]
) -> list[str]:
    """A heading and a table of milliseconds for each operation.

    Args:
        cells: all times.
        operations: what the operations are.
        missing: libraries that are not installed.
        ratios: headings of ratios of times to ours, and the columns of which the fastest counts.
    """
    parts = []
    for operation, what in operations.items():
        mine = [cell for cell in cells if cell.operation == operation]
        if mine:
            parts += [f"## {operation}: {what}", _operation_table(mine, missing, ratios)]
    return parts


def milliseconds(name: str, timing: Timing | None, missing: Sequence[str]) -> str:
    """The median, or why there is none."""
    if timing is None:
        return "not installed" if name in missing else "not run"
    return number(1e3 * timing.median)


def targets_table(targets: Sequence[Target]) -> str:
    """Goals, what was measured, and verdicts."""
    rows = [[t.what, t.goal, number(t.measured), t.verdict] for t in targets]
    return markdown(["", "goal", "measured", ""], rows)


def plain_cells(cells: Sequence[Cell]) -> list[dict]:
    """Plain numbers and texts."""
    return [{**cell._asdict(), "shape": cell.shape._asdict(), "timings": plain_timings(cell.timings)} for cell in cells]


def plain_timings(timings: Mapping[str, Timing | None]) -> dict[str, dict | None]:
    """Plain numbers."""
    return {name: timing and timing._asdict() for name, timing in timings.items()}


def plain_targets(targets: Sequence[Target]) -> list[dict]:
    """Plain numbers and texts."""
    return [{"what": t.what, "goal": t.goal, "measured": t.measured, "verdict": t.verdict} for t in targets]


def listed(facts: Mapping[str, str]) -> str:
    """A sentence of facts."""
    return ", ".join(f"{key}: {value}" for key, value in facts.items()) + "."


def in_file_name(text: str) -> str:
    """Lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def _operation_table(cells: Sequence[Cell], missing: Sequence[str], ratios: Mapping[str, Sequence[str]]) -> str:
    columns = [c for c in cells[0].timings if c in missing or any(cell.timings[c] for cell in cells)]
    rows = [
        [
            str(cell.shape),
            *(milliseconds(column, cell.timings[column], missing) for column in columns),
            *(number(cell.ratio(*peers)) for peers in ratios.values()),
            number(1e3 * cell.floor),
            number(cell.over_floor),
        ]
        for cell in cells
    ]
    return markdown(["K, B, T", *columns, *ratios, "floor", "ours / floor"], rows)
