"""What one writes first: a loop over time in plain torch, in log space, and autograd for the gradient."""

import torch
from torch import Tensor

from benchmarks.problem import Job, Problem, path_score

# Seconds for each step on a GPU, roughly: it has some ten kernels, with those of the backward pass.
_SECONDS = 1e-4


def prepare(operation: str, problem: Problem) -> Job | None:
    """Set an operation up; there is no smoothing but the gradient."""
    _, *logits = problem
    seconds = _SECONDS * problem.shape.num_steps
    match operation:
        case "log_partition":
            return Job(lambda: forward(*logits), lambda log_z: {"log_partition": log_z}, seconds)
        case "gradient":
            leaves = [tensor.clone().requires_grad_() for tensor in logits]

            def gradient():
                total = forward(*leaves).sum()
                return total, *torch.autograd.grad(total, leaves)

            names = ("total", "d_initial", "d_transition", "d_observation")
            return Job(gradient, lambda values: dict(zip(names, values, strict=True)), seconds)
        case "viterbi":
            return Job(lambda: decode(*logits), lambda states: {"score": path_score(problem, states)}, seconds)
    return None


def forward(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """log Z of each sequence, (B,)."""
    # Not indexed in the loop: the gradient of an index is as large as all that it chooses from.
    first, *rest = observation.unbind(1)
    alpha = initial + first
    for matrix, logits in zip(_each(transition, len(rest)), rest, strict=True):
        alpha = torch.logsumexp(alpha.unsqueeze(-1) + matrix, -2) + logits
    return torch.logsumexp(alpha, -1)


def decode(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
    """The best path of each sequence, (B, T)."""
    first, *rest = observation.unbind(1)
    delta, origins = initial + first, []
    for matrix, logits in zip(_each(transition, len(rest)), rest, strict=True):
        best, origin = (delta.unsqueeze(-1) + matrix).max(-2)
        delta = best + logits
        origins.append(origin)
    path = [delta.argmax(-1, keepdim=True)]
    for origin in reversed(origins):
        path.append(origin.gather(-1, path[-1]))
    return torch.cat(path[::-1], -1)


def _each(transition: Tensor, count: int) -> list[Tensor] | tuple[Tensor, ...]:
    return [transition] * count if transition.dim() == 2 else transition.unbind(1)
