"""dynamax: JAX, compiled, vmap over sequences. Takes probabilities, and log-likelihoods of the observations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from dynamax.hidden_markov_model.inference import hmm_filter, hmm_posterior_mode, hmm_smoother
from torch import Tensor

from benchmarks.problem import Job, Problem, path_score


def prepare(operation: str, problem: Problem) -> Job:
    """Set an operation of dynamax up; the first run compiles it.

    Only what the operation asks for leaves the compiled function, so that the compiler may drop the rest.
    """
    shape, *logits = problem
    logits = [jnp.asarray(tensor.numpy()) for tensor in logits]
    over_sequences = partial(jax.vmap, in_axes=(None, 0 if shape.time_varying else None, 0))
    log_z = over_sequences(lambda *args: hmm_filter(*args).marginal_loglik)

    def total(initial, transition, observation):
        return log_z(jnp.exp(initial), jnp.exp(transition), observation).sum()

    def smooth(*args):
        result = hmm_smoother(*args)
        return result.marginal_loglik, result.smoothed_probs, result.trans_probs

    probs = [jnp.exp(logits[0]), jnp.exp(logits[1]), logits[2]]
    match operation:
        case "log_partition":
            return _job(log_z, probs, lambda value: {"log_partition": _tensor(value)})
        case "gradient":
            names = ("d_initial", "d_transition", "d_observation")

            def read(value):
                gradients = zip(names, map(_tensor, value[1]), strict=True)
                return {"total": _tensor(value[0]), **dict(gradients)}

            return _job(jax.value_and_grad(total, argnums=(0, 1, 2)), logits, read)
        case "smooth":
            names = ("log_partition", "state_marginals", "transition_marginals")
            return _job(over_sequences(smooth), probs, lambda value: dict(zip(names, map(_tensor, value), strict=True)))
        case "viterbi":
            return _job(
                over_sequences(hmm_posterior_mode),
                probs,
                lambda states: {"score": path_score(problem, _tensor(states))},
            )
    raise ValueError(f"operation: unknown {operation!r}")


def _job(function, args, read) -> Job:
    compiled = jax.jit(function)
    return Job(lambda: jax.block_until_ready(compiled(*args)), read)


def _tensor(array: jax.Array) -> Tensor:
    return torch.from_numpy(np.array(array))
