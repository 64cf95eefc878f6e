"""Every library that is installed against ours; `DiscreteHMM` always is."""

import pytest

from benchmarks import ours
from benchmarks.peers import discrete_hmm, peers
from benchmarks.problem import OPERATIONS, Shape, check_agreement, random_problem

PEERS = {column: prepare for column, prepare in peers().items() if prepare}


@pytest.mark.parametrize("shape", [Shape(3, 2, 5), Shape(3, 2, 5, time_varying=True)], ids=["shared", "per step"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("column", PEERS)
def test_agrees_with_ours(column: str, operation: str, shape: Shape) -> None:
    problem = random_problem(shape)
    theirs = PEERS[column](operation, problem)
    if theirs is None:
        pytest.skip("it has no such operation")
    expected = ours.prepare(operation, problem)
    got = theirs.read(theirs.run())
    check_agreement(expected.read(expected.run()), got, column, tolerance=1e-5)


def test_discrete_hmm_leaves_out_what_it_cannot() -> None:
    assert "DiscreteHMM" in PEERS
    assert discrete_hmm.prepare("viterbi", random_problem(Shape(2, 1, 3))) is None
    assert discrete_hmm.prepare("log_partition", random_problem(Shape(512, 1, 300))) is None  # memory


def test_work_is_estimated() -> None:
    short, long = (discrete_hmm.prepare("gradient", random_problem(Shape(2, 1, steps))) for steps in (10, 100))
    assert short and long and long.seconds == pytest.approx(10 * short.seconds)
