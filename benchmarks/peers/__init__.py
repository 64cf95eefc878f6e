"""Other libraries, one file each. None of them is needed: a library that is not installed has an empty column."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

from benchmarks.problem import Job

# Column of the tables: what must be installed, and where its `prepare` is.
_COLUMNS = {
    "dynamax": ("dynamax", "benchmarks.peers.dynamax", "prepare"),
    "hmmlearn log": ("hmmlearn", "benchmarks.peers.hmmlearn", "prepare_log"),
    "hmmlearn scaled": ("hmmlearn", "benchmarks.peers.hmmlearn", "prepare_scaled"),
    "DiscreteHMM": ("pyro", "benchmarks.peers.discrete_hmm", "prepare"),
    "torch loop": ("torch", "benchmarks.peers.torch_loop", "prepare"),
    "torbi": ("torbi", "benchmarks.peers.torbi", "prepare"),
    "bare products": ("torch", "benchmarks.peers.products", "prepare"),
    "dynamax fit_em": ("dynamax", "benchmarks.peers.dynamax_em", "prepare"),
    "dynamax fit_em, compiled before": ("dynamax", "benchmarks.peers.dynamax_em", "prepare_compiled"),
    "hmmlearn fit log": ("hmmlearn", "benchmarks.peers.hmmlearn_em", "prepare_log"),
    "hmmlearn fit scaling": ("hmmlearn", "benchmarks.peers.hmmlearn_em", "prepare_scaling"),
}
CPU = ("dynamax", "hmmlearn log", "hmmlearn scaled", "DiscreteHMM")
GPU = ("DiscreteHMM", "torch loop", "dynamax", "torbi", "bare products")
EM = ("hmmlearn fit scaling", "hmmlearn fit log", "dynamax fit_em", "dynamax fit_em, compiled before")


def peers(columns: Sequence[str] = CPU) -> dict[str, Callable[..., Job | None] | None]:
    """The `prepare` of each column; None where the library is not installed."""
    found = {}
    for column in columns:
        package, module, name = _COLUMNS[column]
        found[column] = getattr(import_module(module), name) if find_spec(package) else None
    return found
