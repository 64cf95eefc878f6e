"""What holds for every test and doctest: kernels that run anywhere, no time limit, and no parameters left over."""

import os
from collections.abc import Iterator

# Triton reads this when it is imported: without a GPU its kernels run on the CPU, one program after the other.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pyro
import pytest
from hypothesis import settings

# A first example may warm something up. All else stays Hypothesis's own, its CI profile included.
settings.register_profile("pyrohmm", settings(), deadline=None)
settings.load_profile("pyrohmm")


@pytest.fixture(autouse=True)
def fresh_param_store() -> Iterator[None]:
    """Pyro's parameters are global: a test must neither find those of another nor leave its own."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
