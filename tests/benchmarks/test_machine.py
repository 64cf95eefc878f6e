import pytest

from benchmarks import machine
from benchmarks.machine import Ceilings, floor
from benchmarks.problem import Shape

CEILINGS = Ceilings(flops=1e9, bytes=1e6, exps=1e7)


# K = 10, B = 2, T = 50: 10^4 edges and 10^3 exponentials, 10^-4 seconds at these rates.
@pytest.mark.parametrize(
    ("operation", "seconds"),
    [
        ("log_partition", 2e-5 + 1e-4),
        ("gradient", 6e-5 + 1e-4),
        ("smooth", 6e-5 + 1e-4),
        ("viterbi", 4e-5),
    ],
)
def test_floor_of_a_shared_matrix(operation: str, seconds: float) -> None:
    assert floor(operation, Shape(10, 2, 50), CEILINGS) == pytest.approx(seconds)


# K = 10, B = 2, T = 51: 10^4 floats of 4 bytes.
@pytest.mark.parametrize(
    ("operation", "seconds"), [("log_partition", 0.04), ("gradient", 0.08), ("smooth", 0.08), ("viterbi", 0.04)]
)
def test_floor_of_a_matrix_per_step(operation: str, seconds: float) -> None:
    assert floor(operation, Shape(10, 2, 51, time_varying=True), CEILINGS) == pytest.approx(seconds)


def test_ceilings_are_positive() -> None:
    assert min(machine.measure_ceilings(size=16, copied=100, repeats=1)) > 0


def test_machine_is_described() -> None:
    described = machine.describe()
    assert {"CPU", "cores", "torch threads", "torch", "pyrohmm", "dynamax"} <= described.keys()
    assert all(described.values())
