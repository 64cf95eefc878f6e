import pytest
import torch

from benchmarks.measure import Effort, Failure, measure
from benchmarks.problem import DisagreementError, Job, rotating

ONCE = Effort(rounds=1, warmups=0)


def job(value: float) -> Job:
    return Job(lambda: value, lambda result: {"value": torch.tensor(result)})


def test_disagreement_ends_the_run_unless_failures_are_listed() -> None:
    jobs = {"first": job(1.0), "second": job(2.0), "absent": None}
    with pytest.raises(DisagreementError, match="sum: second against first"):
        measure(jobs, "sum", ONCE)
    failures: list[Failure] = []
    timings = measure(jobs, "sum", ONCE, failures=failures)
    assert timings["first"] and timings["second"] is timings["absent"] is None
    assert [(failure.job, failure.error) for failure in failures] == [("second", "DisagreementError")]


def test_first_that_answers_is_what_others_are_compared_to() -> None:
    def fail() -> float:
        raise MemoryError

    failures: list[Failure] = []
    jobs = {"broken": Job(fail, lambda result: {}), "good": job(1.0), "same": job(1.0)}
    timings = measure(jobs, "sum", ONCE, failures=failures)
    assert timings["broken"] is None and timings["good"] and timings["same"]
    assert [failure.job for failure in failures] == ["broken"]


def test_what_has_no_answer_is_only_timed() -> None:
    timings = measure({"first": job(1.0), "machine": Job(lambda: None, None)}, "sum", ONCE, seconds=lambda run: 3.0)
    assert timings["machine"] and timings["machine"].median == 3.0


def test_problems_take_turns() -> None:
    both = rotating([job(1.0), job(2.0)])
    assert [both.run() for _ in range(3)] == [1.0, 2.0, 1.0]
