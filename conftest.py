"""What holds for every test and doctest: kernels that run anywhere, no time limit, and no parameters left over."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pyro
import pytest
from hypothesis import settings

# A first example may warm something up. All else stays Hypothesis's own, its CI profile included.
settings.register_profile("pyrohmm", settings(), deadline=None)
settings.load_profile("pyrohmm")

# Its doctests need what it needs.
collect_ignore = [] if find_spec("sklearn") else ["pyrohmm/sklearn.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/ops --device cuda` runs the tests of the ops on a GPU, sm_90 on one that is emulated."""
    parser.addoption("--device", default="cpu", help="where the ops compute: cpu, cuda, sm_80 or sm_90 (default: cpu)")


@pytest.hookimpl(tryfirst=True)  # others ask for the device
def pytest_configure(config: pytest.Config) -> None:
    """Without a GPU, Triton's kernels run on the CPU, one program after the other."""
    option = config.option
    if option.device.startswith("sm_"):
        # To all else this is the CPU, which is where the tensors are.
        option.emulated, option.device = int(option.device.removeprefix("sm_")), "cpu"
    if arch := getattr(option, "emulated", None):
        os.environ["TRITON_INTERPRET"] = "0"  # asked for when Triton is imported
        from tests.ptx.device import emulate

        emulate(arch)
    if option.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def fresh_param_store() -> Iterator[None]:
    """Pyro's parameters are global: a test must neither find those of another nor leave its own."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
