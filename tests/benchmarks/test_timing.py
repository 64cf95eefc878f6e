from time import perf_counter, sleep

import pytest

from benchmarks import timing
from benchmarks.timing import interleaved


def test_each_function_runs_in_its_turn_until_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "STEADY", 0.005)
    calls: list[tuple[str, float]] = []
    functions = {name: (lambda name=name: calls.append((name, perf_counter()))) for name in "abcd"}
    timings = interleaved(functions, rounds=5, warmups=2)
    assert [name for name, _ in calls[:8]] == list("abcd" * 2)
    turns = []
    for name, now in calls[8:]:
        if not turns or now - turns[-1][-1][1] > timing.PAUSE:
            turns.append([])
        turns[-1].append((name, now))
    assert all(len({name for name, _ in turn}) == 1 and len(turn) > 2 for turn in turns)
    names = [turn[0][0] for turn in turns]
    rounds = [names[i : i + 4] for i in range(0, len(names), 4)]
    assert len(rounds) == 5 and all(sorted(names) == list("abcd") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1  # not always in the same order
    assert all(found.rounds == 5 for found in timings.values())


def test_fewer_rounds_where_they_are_long() -> None:
    assert interleaved({"slow": lambda: sleep(0.01)}, rounds=9, warmups=1, budget=0.0)["slow"].rounds == 3
    assert interleaved({"slow": lambda: sleep(0.01)}, rounds=2, warmups=1, budget=0.0)["slow"].rounds == 2


def test_times_are_seconds() -> None:
    found = interleaved({"sleep": lambda: sleep(0.02)}, rounds=3, warmups=0)["sleep"]
    assert 0.02 <= found.smallest <= found.median <= found.largest
