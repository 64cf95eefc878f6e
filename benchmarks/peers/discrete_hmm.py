"""Pyro's `DiscreteHMM`: K x K matrix products by a parallel scan over time, O(T K^3)."""

import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.problem import Job, Problem

# The scan holds several tensors of B T K^2 floats; where one of them is larger than this, it is left out. A GPU says
# itself what is too large.
_LARGEST_BYTES = 256 * 2**20
# Seconds for each of the B T K^3 products, roughly, with the gradient.
_SECONDS = 1.5e-9
_GPU_SECONDS = 2e-12


class _Given(dist.TorchDistribution):
    """An observation law whose log-probabilities are given, whatever is observed."""

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.real

    def __init__(self, logits: Tensor):
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.logits


def prepare(operation: str, problem: Problem) -> Job | None:
    """Set `log_prob` up, with or without its gradient.

    This chain moves before its first observation. A shared chain starts from its stationary law, for which that makes
    no difference; a matrix a step gets a first one with the initial law in each row. Its laws are normalised inside,
    so of the gradients only that of the observation logits is comparable.
    """
    shape, initial, transition, observation = problem
    on_gpu = observation.is_cuda
    if operation not in ("log_partition", "gradient") or (4 * shape.edges > _LARGEST_BYTES and not on_gpu):
        return None
    if shape.time_varying:
        first = initial.expand(shape.batch, 1, shape.num_states, shape.num_states)
        transition = torch.cat([first, transition], 1)
    logits = [initial, transition, observation]
    value = torch.zeros(shape.batch, shape.num_steps, device=observation.device)

    def log_prob(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
        matrices = transition if shape.time_varying else transition.unsqueeze(0)
        return dist.DiscreteHMM(initial, matrices, _Given(observation), duration=shape.num_steps).log_prob(value)

    seconds = (_GPU_SECONDS if on_gpu else _SECONDS) * shape.edges * shape.num_states
    if operation == "log_partition":
        return Job(lambda: log_prob(*logits), lambda log_z: {"log_partition": log_z}, seconds)
    leaves = [tensor.clone().requires_grad_() for tensor in logits]

    def gradient():
        total = log_prob(*leaves).sum()
        return total, torch.autograd.grad(total, leaves)

    return Job(gradient, lambda value: {"total": value[0], "d_observation": value[1][2]}, seconds)
