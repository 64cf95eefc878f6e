"""Other libraries, one file each. None of them is needed: a library that is not installed has an empty column."""

from importlib import import_module
from importlib.util import find_spec

from benchmarks.problem import Prepare

# Column of the tables: what must be installed, and where its `prepare` is.
_COLUMNS = {
    "dynamax": ("dynamax", "benchmarks.peers.dynamax", "prepare"),
    "hmmlearn log": ("hmmlearn", "benchmarks.peers.hmmlearn", "prepare_log"),
    "hmmlearn scaled": ("hmmlearn", "benchmarks.peers.hmmlearn", "prepare_scaled"),
    "DiscreteHMM": ("pyro", "benchmarks.peers.discrete_hmm", "prepare"),
}


def peers() -> dict[str, Prepare | None]:
    """The `prepare` of each column; None where the library is not installed."""
    return {
        column: getattr(import_module(module), name) if find_spec(package) else None
        for column, (package, module, name) in _COLUMNS.items()
    }
