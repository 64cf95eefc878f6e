"""Pyro's funsor back end: enumeration with a vectorised Markov loop, summed out by a parallel scan."""

import sys

import funsor
import pyro.distributions as dist
from pyro.contrib import funsor as contrib
from pyro.contrib.funsor.infer import TraceMarkovEnum_ELBO
from pyroapi import pyro, pyro_backend
from torch import Tensor

from benchmarks.problem import Job
from benchmarks.svi import Tones, no_guide, step

# Seconds for each tone of each state at each step of each sequence, roughly.
_SECONDS = 8e-8


def prepare_step(program: Tones) -> Job:
    """One SVI step of the model of tones."""
    funsor.set_backend("torch")
    if "jax" in sys.modules:
        # funsor 0.4.8 then asks for this type, which it sets in its JAX back end only.
        funsor.util._JAX_COMPILED_FUNCTION_TYPE = type(sys.modules["jax"].jit(lambda: 0))

    def model(x: Tensor) -> None:
        initial, transition, tones = program.parameters()
        with pyro.plate("sequences", x.shape[0], dim=-2):
            z = None
            for t in contrib.vectorized_markov(name="time", size=x.shape[1], dim=-1):
                logits = initial if z is None else transition[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                # A number or a range of numbers; the observations keep an axis of time in both cases.
                now = x[:, t].reshape(x.shape[0], -1, x.shape[2])
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=tones[z]).to_event(1), obs=now)

    job = step(model, no_guide, TraceMarkovEnum_ELBO(max_plate_nesting=2), program.x)

    def run() -> float:
        with pyro_backend("contrib.funsor"):
            return job.run()

    K, B, T, tones = program.size
    return Job(run, job.read, _SECONDS * B * T * K * tones)
