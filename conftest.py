"""What holds for every test and doctest: no time limit for one Hypothesis example, and no parameters left over."""

from collections.abc import Iterator

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
