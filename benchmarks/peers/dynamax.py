"""dynamax: JAX, compiled, vmap over sequences. Takes probabilities, and log-likelihoods of the observations."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from dynamax.hidden_markov_model.inference import hmm_filter, hmm_posterior_mode, hmm_smoother
from torch import Tensor

from benchmarks.problem import Job, Problem, path_score

# Seconds for each step on a GPU, roughly: JAX starts the kernels of a loop's body one by one.
_GPU_SECONDS = 1e-4


def prepare(operation: str, problem: Problem) -> Job | None:
    """Set an operation of dynamax up; the first run compiles it. None where JAX has not the device that torch has."""
    shape, *logits = problem
    on_gpu = problem.observation.is_cuda
    if on_gpu != (jax.default_backend() == "gpu"):
        return None
    if on_gpu:
        jax.config.update("jax_default_matmul_precision", "highest")  # its default there is TF32
    compiled = _compiled(operation, shape.time_varying)
    args = [jnp.asarray(tensor.cpu().numpy()) for tensor in logits]
    if operation != "gradient":
        args = [jnp.exp(args[0]), jnp.exp(args[1]), args[2]]

    def read(value) -> dict[str, Tensor]:
        match operation:
            case "log_partition":
                return {"log_partition": _tensor(value)}
            case "gradient":
                names = ("total", "d_initial", "d_transition", "d_observation")
                value = value[0], *value[1]
            case "smooth":
                names = ("log_partition", "state_marginals", "transition_marginals")
            case "viterbi":
                return {"score": path_score(problem, _tensor(value))}
        return dict(zip(names, map(_tensor, value), strict=True))

    seconds = _GPU_SECONDS * shape.num_steps if on_gpu else 0.0
    return Job(lambda: jax.block_until_ready(compiled(*args)), read, seconds)


@cache
def _compiled(operation: str, time_varying: bool) -> Callable:
    """An operation on all sequences; only what it asks for leaves it, so that the compiler may drop the rest."""
    over_sequences = partial(jax.vmap, in_axes=(None, 0 if time_varying else None, 0))
    log_z = over_sequences(lambda *args: hmm_filter(*args).marginal_loglik)

    def total(initial, transition, observation):
        return log_z(jnp.exp(initial), jnp.exp(transition), observation).sum()

    def smooth(*args):
        result = hmm_smoother(*args)
        return result.marginal_loglik, result.smoothed_probs, result.trans_probs

    match operation:
        case "log_partition":
            return jax.jit(log_z)
        case "gradient":
            return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
        case "smooth":
            return jax.jit(over_sequences(smooth))
        case "viterbi":
            return jax.jit(over_sequences(hmm_posterior_mode))
    raise ValueError(f"operation: unknown {operation!r}")


def _tensor(array: jax.Array) -> Tensor:
    return torch.from_numpy(np.array(array))
