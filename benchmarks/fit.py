"""What is fitted by expectation maximisation: data and a start, the same for every library, and our own fit of them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import pyrohmm
from benchmarks.problem import Job
from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.models import HMM


class Task(NamedTuple):
    """A model, the size of its data, and how many iterations; `size` is D of Gaussians, or the number of symbols."""

    emission: Literal["diag", "full", "categorical"]
    num_states: int
    size: int
    batch: int
    num_steps: int
    iterations: int

    def __str__(self) -> str:
        sizes = f"{self.num_states}, {self.size}, {self.batch}, {self.num_steps}"
        return f"{self.emission} ({sizes}), {self.iterations} iterations"

    @property
    def edges(self) -> int:
        """The pairs of states that one pass over all sequences visits in each iteration, of all iterations."""
        return self.iterations * self.batch * self.num_steps * self.num_states**2


class Start(NamedTuple):
    """Data and where a fit of them begins, float64; what the emission does not have is None.

    Attributes:
        task: what this is for.
        x: (B, T, D), or symbols (B, T) int64.
        initial, transition: probabilities, (K,) and (K, K).
        loc, scale: means and standard deviations (K, D). Covariances start without correlations.
        probs: of the symbols, (K, V).
    """

    task: Task
    x: Tensor
    initial: Tensor
    transition: Tensor
    loc: Tensor | None = None
    scale: Tensor | None = None
    probs: Tensor | None = None


# A library's way to set a fit up. What is read of its result is the log-likelihood before each iteration.
PrepareFit = Callable[[Start], Job | None]


def random_start(task: Task, seed: int = 0) -> Start:
    """Data of a model that stays in its states for some steps, and another model near by.

    Numbers are rounded to float32, so that the data are the same in both precisions.
    """
    emission, K, size, B, T, _ = task
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def law(*shape: int, spread: float) -> Tensor:
        return (spread * normal(*shape)).softmax(-1)

    transition = (2 * torch.eye(K) + normal(K, K)).softmax(-1)
    states = torch.multinomial(torch.full((K,), 1 / K), B, replacement=True, generator=generator)
    path = [states]
    for _ in range(T - 1):
        path.append(torch.multinomial(transition[path[-1]], 1, generator=generator)[:, 0])
    z = torch.stack(path, 1)
    law_of_states = {"initial": law(K, spread=0.1), "transition": law(K, K, spread=0.1)}
    if emission == "categorical":
        truth = law(K, size, spread=2.0)
        x = torch.multinomial(truth[z].flatten(0, 1), 1, generator=generator).reshape(B, T)
        return Start(task, x, **law_of_states, probs=(truth.log() + normal(K, size)).softmax(-1))
    # States overlap, whatever D: two means are about three standard deviations apart.
    spread = 2 / size**0.5
    loc = spread * normal(K, size)
    mixing = torch.eye(size) + 0.3 * normal(K, size, size) if emission == "full" else torch.eye(size).expand(K, -1, -1)
    x = loc[z] + (mixing[z].to(loc) @ normal(B, T, size, 1))[..., 0]
    start = {"loc": loc + spread * normal(K, size), "scale": torch.full_like(loc, 2.0)}
    return Start(task, x.float().double(), **law_of_states, **start)


def model_at(start: Start, dtype: torch.dtype) -> HMM:
    """Our model with the parameters of the start."""
    emission, K, size, *_ = start.task
    part = nn.CategoricalEmission(K, size) if emission == "categorical" else nn.GaussianEmission(K, size, emission)
    model = HMM(part).to(dtype)
    with torch.no_grad():
        model.initial.logits.copy_(start.initial.log())
        model.transition.logits.copy_(start.transition.log())
        if start.probs is not None:
            part.logits.copy_(start.probs.log())
        else:
            part.loc.copy_(start.loc)
            part.log_scale.copy_(start.scale.log())
    return model


def prepare(start: Start, dtype: torch.dtype = torch.float32, **options: Any) -> Job:
    """`pyrohmm.fit_em` in a precision, with options."""
    model = model_at(start, dtype)
    data = Sequences(start.x if start.probs is not None else start.x.to(dtype))
    parameters = {name: value.clone() for name, value in model.state_dict().items()}

    def run() -> pyrohmm.infer.History:
        model.load_state_dict(parameters)
        steps = start.task.iterations
        return pyrohmm.fit_em(model, data, steps=steps, tolerance=0.0, progress=False, **options)

    def read(history: pyrohmm.infer.History) -> dict[str, Tensor]:
        return {"log_likelihood": -data.num_observed * torch.tensor(history.loss, dtype=torch.float64)}

    return Job(run, read)
