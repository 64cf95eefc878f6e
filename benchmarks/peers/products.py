"""No library: the dense products alone that an operation on many states consists of, as fast as torch has them."""

import torch

from benchmarks.problem import Job, Problem

# With fewer states, products are not what takes the time.
_FEWEST_STATES = 512


def prepare(operation: str, problem: Problem) -> Job | None:
    """A product at each step forward; for the gradient one at each step back too, and that of all counts."""
    (K, B, T, time_varying), _, transition, observation = problem
    if operation not in ("log_partition", "gradient") or time_varying or K < _FEWEST_STATES:
        return None
    matrix = transition.exp()
    messages = [torch.rand(B, K, device=matrix.device) for _ in range(2)]
    steps = observation[:, 1:].reshape(-1, K)

    def walk(matrix: torch.Tensor) -> None:
        for step in range(T - 1):
            torch.mm(messages[step % 2], matrix, out=messages[1 - step % 2])

    def run() -> None:
        walk(matrix)
        if operation == "gradient":
            walk(matrix.T)
            torch.mm(steps.T, steps)

    return Job(run, None)
