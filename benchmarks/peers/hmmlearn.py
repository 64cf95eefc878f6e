"""hmmlearn: C++ in float64, one thread, one sequence a call; in log space (its default) or scaled.

Its functions do not compute gradients, and have one transition matrix. The matrix is exponentiated and everything made
float64 beforehand; the scaled form's exponential of the observation logits is part of each run.
"""

import numpy as np
import torch
from hmmlearn import _hmmc

from benchmarks.problem import Job, Problem

# Seconds for each of the B T K^2 edges, roughly, to leave out what would take minutes.
_LOG_SECONDS = {"log_partition": 7e-9, "smooth": 24e-9, "viterbi": 2e-9}
_SCALED_SECONDS = {"log_partition": 2.5e-9, "smooth": 8e-9}


def prepare_log(operation: str, problem: Problem) -> Job | None:
    """Set an operation up in log space."""

    def forward(start, matrix, logits):
        return _hmmc.forward_log(start, matrix, logits)[0]

    def smooth(start, matrix, logits):
        log_z, alpha = _hmmc.forward_log(start, matrix, logits)
        beta = _hmmc.backward_log(start, matrix, logits)
        counts = np.exp(_hmmc.compute_log_xi_sum(alpha, matrix, beta, logits))
        return log_z, np.exp(alpha + beta - log_z), counts

    def viterbi(start, matrix, logits):
        return _hmmc.viterbi(start, matrix, logits)[0]

    functions = {"log_partition": forward, "smooth": smooth, "viterbi": viterbi}
    return _job(operation, problem, functions, _LOG_SECONDS)


def prepare_scaled(operation: str, problem: Problem) -> Job | None:
    """Set an operation up in scaled space; there is no Viterbi in it."""

    def forward(start, matrix, logits):
        return _hmmc.forward_scaling(start, matrix, np.exp(logits))[0]

    def smooth(start, matrix, logits):
        likelihood = np.exp(logits)
        log_z, alpha, scale = _hmmc.forward_scaling(start, matrix, likelihood)
        beta = _hmmc.backward_scaling(start, matrix, likelihood, scale)
        counts = _hmmc.compute_scaling_xi_sum(alpha, matrix, beta, likelihood)
        marginals = alpha * beta
        return log_z, marginals / marginals.sum(-1, keepdims=True), counts

    return _job(operation, problem, {"log_partition": forward, "smooth": smooth}, _SCALED_SECONDS)


def _job(operation: str, problem: Problem, functions: dict, seconds: dict[str, float]) -> Job | None:
    if problem.shape.time_varying or operation not in functions:
        return None
    function = functions[operation]
    start, matrix = problem.initial.double().exp().numpy(), problem.transition.double().exp().numpy()
    # It asks for rows that sum to one more exactly than float32 does.
    start, matrix = start / start.sum(), matrix / matrix.sum(-1, keepdims=True)
    sequences = list(problem.observation.double().numpy())
    names = {
        "log_partition": ("log_partition",),
        "smooth": ("log_partition", "state_marginals", "transition_marginals"),
        "viterbi": ("score",),
    }[operation]

    def read(results):
        columns = [results] if len(names) == 1 else zip(*results, strict=True)
        return {name: torch.tensor(np.array(column)) for name, column in zip(names, columns, strict=True)}

    return Job(
        lambda: [function(start, matrix, logits) for logits in sequences],
        read,
        seconds[operation] * problem.shape.edges,
    )
