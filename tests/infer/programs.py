"""A hidden Markov model with latent variables outside of its loop, in plain Pyro, and guides of it."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrohmm
from pyrohmm.data import Sequences

TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)


class FixedNormal(dist.Normal):
    """A normal law that is always drawn by the same noise."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor):
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FixedNormal":
        batch_shape = torch.Size(batch_shape)
        return FixedNormal(*(value.expand(batch_shape) for value in (self.loc, self.scale, self.noise)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise


def make_data(num: int = 6, steps: int = 5, dtype: torch.dtype = torch.float64) -> Sequences:
    """Ragged, the shortest of one step, with missing steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, steps, generator=generator, dtype=dtype)
    lengths = torch.arange(num) % steps + 1
    mask = torch.rand(num, steps, generator=generator) < 0.8
    mask[:, 0] = True
    return Sequences(torch.where(mask, x, torch.nan), lengths, mask=mask)


def latent_model(data: Sequences, vectorized: bool = True) -> None:
    """A level of each sequence, and one slope for all."""
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]).to(data.x))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()).to(data.x), 1.0))
    pyro.factor("prior", -loc.square().sum() / 10)
    with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
        level = pyro.sample("level", dist.Normal(torch.zeros(()).to(data.x), 1.0))
        emit(data, loc, level * slope, vectorized)


def level_model(data: Sequences, vectorized: bool = True) -> None:
    """A level of each sequence."""
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]).to(data.x))
    with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
        emit(data, loc, pyro.sample("level", dist.Normal(torch.zeros(()).to(data.x), 1.0)), vectorized)


def emit(data: Sequences, loc: Tensor, level: Tensor, vectorized: bool) -> None:
    z = None
    for t in pyrohmm.markov("time", data.num_steps, lengths=data.lengths, vectorized=vectorized):
        rows = TRANSITION.to(data.x)
        z = pyro.sample("z", dist.Categorical(rows[0] if z is None else rows[z]))
        with pyro.poutine.mask(mask=data.observed[:, t]):
            pyro.sample("x", dist.Normal(loc[z] + level, 1.0), obs=data.x[:, t])


def level_guide(data: Sequences, noise: Tensor | None = None) -> None:
    """Amortised; with fixed noise (num_total,) of each sequence, if given."""
    weight = pyro.param("weight", torch.tensor(0.3).to(data.x))
    scale = pyro.param("scale", torch.tensor(0.8).to(data.x), constraint=dist.constraints.positive)
    loc = weight * data.x.sum(1, keepdim=True) / data.lengths.unsqueeze(1)
    law = (
        dist.Normal(loc, scale) if noise is None else FixedNormal(loc, scale.expand(loc.shape), noise[data.index, None])
    )
    with pyro.plate("sequences", data.num_total, subsample=data.index, dim=-2):
        pyro.sample("level", law)


def latent_guide(data: Sequences, noise: Tensor | None = None) -> None:
    """Of both sites; with fixed noise (num_total + 1,), the last for the slope."""
    loc = pyro.param("slope_loc", torch.tensor(0.2).to(data.x))
    scale = pyro.param("slope_scale", torch.tensor(0.5).to(data.x), constraint=dist.constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale) if noise is None else FixedNormal(loc, scale, noise[-1]))
    level_guide(data, noise)


def log_likelihood(data: Sequences, loc: Tensor, level: Tensor) -> Tensor:
    """log p(x | level) of each sequence, (N,), step by step in plain torch; `level` is (N,)."""
    log_rows = TRANSITION.to(data.x).log()
    total = []
    for x, mask, length, shift in zip(data.x, data.observed, data.lengths.tolist(), level, strict=True):
        alpha = log_rows[0]
        for t in range(length):
            alpha = alpha if t == 0 else (alpha[:, None] + log_rows).logsumexp(0)
            if mask[t]:
                alpha = alpha + dist.Normal(loc + shift, 1.0).log_prob(x[t])
        total.append(alpha.logsumexp(0))
    return torch.stack(total)
