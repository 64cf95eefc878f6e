"""Exact inference on linear chains: tensors in, tensors out.

`README.md` in this folder derives the recursions, their gradients and the numerical contract.
"""

from pyrohmm.ops.explanation import Explanation, explain
from pyrohmm.ops.forward_backward.api import (
    FilterResult,
    SmoothResult,
    entropy,
    filter,
    log_partition,
    smooth,
)
from pyrohmm.ops.sampling.api import sample
from pyrohmm.ops.viterbi.api import KBestResult, ViterbiResult, k_best, viterbi

__all__ = [
    "Explanation",
    "FilterResult",
    "KBestResult",
    "SmoothResult",
    "ViterbiResult",
    "entropy",
    "explain",
    "filter",
    "k_best",
    "log_partition",
    "sample",
    "smooth",
    "viterbi",
]
