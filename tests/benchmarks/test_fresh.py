import math
import sys

import pytest
import torch

from benchmarks import fresh


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_was_held_in_between() -> None:
    megabytes = fresh.peak_bytes_of(lambda: torch.ones(100_000_000, dtype=torch.uint8)) / 1e6
    assert megabytes == pytest.approx(100, rel=0.1)
    assert fresh.peak_bytes_of(lambda: None) < 1e6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["import", "first call"])
def test_measured_in_a_new_process(name: str) -> None:
    assert 0 < fresh.measure(name, repeats=1) < math.inf


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_fit() -> None:
    assert 1e6 < fresh.measure(fresh.EM_PEAK, repeats=1, arguments=("diag", 8, 4, 100, 100, 2)) < 1e9
