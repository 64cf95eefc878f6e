from time import sleep

from benchmarks.timing import interleaved


def test_each_function_runs_twice_in_its_turn() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = interleaved(functions, rounds=5, warmups=2)
    warmups, turns = calls[:6], calls[6:]
    assert warmups == ["a", "b", "c"] * 2
    assert turns[::2] == turns[1::2]
    rounds = [turns[i : i + 6 : 2] for i in range(0, len(turns), 6)]
    assert len(rounds) == 5 and all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1  # not always in the same order
    assert all(timing.rounds == 5 for timing in timings.values())


def test_fewer_rounds_where_they_are_long() -> None:
    assert interleaved({"slow": lambda: sleep(0.01)}, rounds=9, warmups=1, budget=0.0)["slow"].rounds == 3
    assert interleaved({"slow": lambda: sleep(0.01)}, rounds=2, warmups=1, budget=0.0)["slow"].rounds == 2


def test_times_are_seconds() -> None:
    timing = interleaved({"sleep": lambda: sleep(0.02)}, rounds=3, warmups=0)["sleep"]
    assert 0.02 <= timing.smallest <= timing.median <= timing.largest
