from time import perf_counter, sleep

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import device_seconds, interleaved, queued_seconds


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_host_and_device_are_timed_apart() -> None:
    a = torch.ones(2048, 2048, device="cuda")
    a @ a
    queued = queued_seconds(lambda: a @ a)
    assert 0 < queued.device < 0.1 and 0 < queued.host < 0.1  # the idle time before does not count
    assert device_seconds(lambda: a @ a) > 0
    with pytest.raises(RuntimeError, match="synchroniz"):
        queued_seconds(lambda: a.sum().item())
