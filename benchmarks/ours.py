"""pyrohmm itself, through its public ops."""

import torch

from benchmarks.problem import Job, Problem, path_score
from pyrohmm import ops


def prepare(operation: str, problem: Problem, impl: str = "auto") -> Job:
    """Set an operation of pyrohmm up."""
    shape, *logits = problem
    match operation:
        case "log_partition":
            return Job(lambda: ops.log_partition(*logits, impl=impl), lambda log_z: {"log_partition": log_z})
        case "gradient":
            leaves = [tensor.clone().requires_grad_() for tensor in logits]

            def gradient():
                total = ops.log_partition(*leaves, impl=impl).sum()
                return total, *torch.autograd.grad(total, leaves)

            names = ("total", "d_initial", "d_transition", "d_observation")
            return Job(gradient, lambda values: dict(zip(names, values, strict=True)))
        case "smooth":
            transitions = "each" if shape.time_varying else "sum"
            return Job(lambda: ops.smooth(*logits, transitions=transitions, impl=impl), lambda result: result._asdict())
        case "viterbi":
            return Job(
                lambda: ops.viterbi(*logits, impl=impl).states, lambda states: {"score": path_score(problem, states)}
            )
    raise ValueError(f"operation: unknown {operation!r}")
