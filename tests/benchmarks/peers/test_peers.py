"""Every library that is installed against ours; `DiscreteHMM` always is."""

import pytest
import torch

from benchmarks import ours
from benchmarks.peers import CPU, GPU, discrete_hmm, peers, products, torch_loop
from benchmarks.problem import OPERATIONS, Shape, check_agreement, random_problem

PEERS = {column: prepare for column, prepare in peers(sorted({*CPU, *GPU})).items() if prepare}


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


def test_loop_has_what_it_is_compared_in() -> None:
    problem = random_problem(Shape(2, 1, 3))
    assert "torch loop" in PEERS and torch_loop.prepare("smooth", problem) is None
    assert all(torch_loop.prepare(operation, problem) for operation in ("log_partition", "gradient", "viterbi"))


def test_products_are_those_of_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(Shape(3, 2, 5))
    assert products.prepare("gradient", problem) is None  # too few states
    monkeypatch.setattr(products, "_FEWEST_STATES", 1)
    assert products.prepare("viterbi", problem) is None
    shapes = []
    real = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        shapes.append((*a.shape, *b.shape))
        return real(a, b, **options)

    monkeypatch.setattr(torch, "mm", mm)
    for operation, expected in (
        ("log_partition", 4 * [(2, 3, 3, 3)]),
        ("gradient", 8 * [(2, 3, 3, 3)] + [(3, 8, 8, 3)]),
    ):
        shapes.clear()
        job = products.prepare(operation, problem)
        assert job and job.read is None
        job.run()
        assert shapes == expected


def test_discrete_hmm_leaves_out_what_it_cannot() -> None:
    assert "DiscreteHMM" in PEERS
    assert discrete_hmm.prepare("viterbi", random_problem(Shape(2, 1, 3))) is None
    assert discrete_hmm.prepare("log_partition", random_problem(Shape(512, 1, 300))) is None  # memory


def test_work_is_estimated() -> None:
    short, long = (discrete_hmm.prepare("gradient", random_problem(Shape(2, 1, steps))) for steps in (10, 100))
    assert short and long and long.seconds == pytest.approx(10 * short.seconds)
