"""One step of stochastic variational inference on a hidden Markov model of Bernoulli tones, written in several ways."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import pyrohmm
from benchmarks.problem import Job
from pyrohmm import data, models, nn
from pyrohmm.infer.elbo import UnreadELBO
from pyrohmm.infer.optimizer import ClippedAdam


class Size(NamedTuple):
    """K states, B sequences of T steps, D tones that sound or not at each step."""

    num_states: int = 16
    batch: int = 229
    num_steps: int = 129
    tones: int = 51


class Tones:
    """The model's tables, as logits, and the programs that use them; all are the same model of x (B, T, D)."""

    def __init__(self, size: Size, seed: int = 0, device: torch.device | str = "cpu"):
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self.initial = torch.randn(size.num_states, generator=generator).to(device)
        self.transition = torch.randn(size.num_states, size.num_states, generator=generator).to(device)
        self.tones = torch.randn(size.num_states, size.tones, generator=generator).to(device)
        self.x = torch.rand(size.batch, size.num_steps, size.tones, generator=generator).round().to(device)

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tables as Pyro parameters, the same ones in every program."""
        initial = pyro.param("initial_logits", self.initial)
        return initial, pyro.param("transition_logits", self.transition), pyro.param("tone_logits", self.tones)

    def loop(self, x: Tensor, vectorized: bool = True) -> None:
        """The enumerated program: with `vectorized` False, Pyro's own sequential `markov`."""
        initial, transition, tones = self.parameters()
        with pyro.plate("sequences", x.shape[0], dim=-2):
            z = None
            for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
                z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
                pyro.sample("x", dist.Bernoulli(logits=tones[z]).to_event(1), obs=x[:, t])

    def sequential(self, x: Tensor) -> None:
        """The loop as Pyro runs it by itself."""
        self.loop(x, vectorized=False)

    def discrete_hmm(self, x: Tensor) -> None:
        """The likelihood as one distribution, whose first transition leads to the first observation."""
        initial, transition, tones = self.parameters()
        K, steps = self.size.num_states, x.shape[1]
        transitions = torch.cat([initial.expand(1, K, K), transition.expand(steps - 1, K, K)])
        emission = dist.Bernoulli(logits=tones).to_event(1)
        hmm = dist.DiscreteHMM(initial, transitions, emission, duration=steps)
        with pyro.plate("sequences", x.shape[0]):
            pyro.sample("x", hmm, obs=x)

    def ready_model(self) -> models.HMM:
        """`pyrohmm.models.HMM` with the same tables."""
        K, D = self.tones.shape
        model = models.HMM(nn.BernoulliEmission(K, D), nn.Initial(K), nn.Transition(K)).to(self.x.device)
        tables = (model.initial, self.initial), (model.transition, self.transition), (model.emission, self.tones)
        with torch.no_grad():
            for part, table in tables:
                part.logits.copy_(table)
        return model


def no_guide(*args: object) -> None:
    """Nothing is latent but the states."""


def prepare_steps(size: Size, device: torch.device | str = "cpu") -> dict[str, Job | None]:
    """A step of each way, with the learning rate 0 so that every step is the same; None where not installed."""
    program = Tones(size, device=device)
    model = program.ready_model()
    sequences = data.Sequences(program.x)
    trace = Trace_ELBO()
    enumerate_sites = TraceEnum_ELBO(max_plate_nesting=2)
    jobs: dict[str, Job | None] = {
        "pyrohmm loop": step(program.loop, no_guide, trace, program.x),
        "pyrohmm models.HMM": step(model.model, model.guide, trace, sequences),
        "TraceEnum_ELBO": step(program.sequential, no_guide, enumerate_sites, program.x),
        "DiscreteHMM": step(program.discrete_hmm, no_guide, trace, program.x),
        "TraceMarkovEnum_ELBO": None,
    }
    if find_spec("funsor"):
        from benchmarks.peers import funsor

        jobs["TraceMarkovEnum_ELBO"] = funsor.prepare_step(program)
    return jobs


def step(program, guide, elbo, x) -> Job:
    """One `SVI.step` with Adam."""
    svi = SVI(program, guide, pyro.optim.Adam({"lr": 0.0}), elbo)
    return Job(lambda: svi.step(x), lambda loss: {"loss": torch.tensor(loss)})


def prepare_unread_steps(size: Size, device: torch.device | str = "cpu") -> dict[str, Callable[[], Tensor]]:
    """Our steps again, as `fit_svi` makes them: the loss, which they return, stays on the device.

    `SVI.step` waits for it as a number.
    """
    program = Tones(size, device=device)
    model = program.ready_model()
    return {
        "pyrohmm loop": unread_step(program.loop, program.x),
        "pyrohmm models.HMM": unread_step(model.model, data.Sequences(program.x)),
    }


def unread_step(program, x) -> Callable[[], Tensor]:
    """One step of `fit_svi`, without its minibatches."""
    elbo = UnreadELBO()
    with poutine.trace(param_only=True) as capture:
        elbo.loss(program, no_guide, x)
    sites: dict[str, Any] = dict(capture.trace.nodes)
    parameters = {name: site["value"].unconstrained() for name, site in sites.items()}
    adam = ClippedAdam(parameters, learning_rate=0.0, clip_norm=10.0)
    return lambda: adam.step(elbo.loss_and_grads(program, no_guide, x)).numbers[0]
