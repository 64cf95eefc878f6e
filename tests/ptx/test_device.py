import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.ptx.device import emulate

ROOT = Path(__file__).parents[2]
OPS = [str(path) for path in sorted(ROOT.glob("tests/ops/*/test_gpu.py"))]


# In a process of its own: Triton compiles kernels or interprets them, but not one after the other.
def assert_passes(device: str, *tests: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", device, *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


def test_compiled_kernels():
    assert_passes("sm_90", "tests/ptx/test_compiled.py")


@pytest.mark.slow
def test_compiled_kernels_of_sm_80():
    assert_passes("sm_80", "tests/ptx/test_compiled.py")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
def test_the_kernels_of_the_ops(device):
    assert_passes(device, *OPS)


def test_what_there_is_none_of():
    with pytest.raises(ValueError, match="arch: expected one of 80, 90, got 75"):
        emulate(75)
