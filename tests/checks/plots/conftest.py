"""Axes that are closed again, on a backend that shows nothing; and a check that nothing global is touched."""

from collections.abc import Iterator

import matplotlib
import pytest
from matplotlib import pyplot

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    settings = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == settings


@pytest.fixture
def ax() -> Iterator:
    """Axes of a figure that pyplot does not know, after which it must know no other one either."""
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    yield Figure(figsize=(8, 4), layout="constrained").subplots()
    assert pyplot.get_fignums() == before
