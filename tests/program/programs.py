"""Hidden Markov models as Pyro programs, each written once and run in both forms of the loop.

A case has a model and a guide of the same arguments; `model(..., vectorized=False)` is the sequential form. Parameters
are `pyro.param`s in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor
from torch.distributions import constraints

import pyrohmm

B, T, K, D, C = 3, 5, 3, 2, 2


@dataclass
class Case:
    """A program, its guide, and what else its comparison needs."""

    model: Callable[..., None]
    guide: Callable[..., None]
    args: tuple[Any, ...]
    enumerates_outside: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def empty_guide(*args: Any, **kwargs: Any) -> None:
    """Propose nothing."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def param(name: str, *shape: int, seed: int = 1) -> Tensor:
    return pyro.param(name, lambda: normal(*shape, seed=seed))


LENGTHS = torch.tensor([5, 2, 3])


def ragged(x: Tensor) -> Tensor:
    """The data with NaN past the lengths."""
    valid = torch.arange(T) < LENGTHS.unsqueeze(-1)
    return torch.where(valid.reshape(valid.shape + (1,) * (x.dim() - 2)), x, torch.nan)


def plain(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def marked_for_enumeration(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample(
                "z",
                dist.Categorical(logits=initial if z is None else transition[z]),
                infer={"enumerate": "parallel"},
            )
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def no_plate(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    z = None
    for t in pyrohmm.markov("time", len(x), vectorized=vectorized):
        z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[t])


def time_first(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", x.shape[1], dim=-1):
        z = None
        for t in pyrohmm.markov("time", len(x), dim=-2, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[t])


def ragged_masked(x, lengths, mask, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K, D)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            with poutine.mask(mask=mask[:, t]):
                pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x[:, t])


def masked_states(x, mask, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            with poutine.mask(mask=mask[:, t]):
                z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def scaled(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def bernoulli_tones(x, lengths, vectorized=True):
    initial, transition, tones = param("initial", K), param("transition", K, K), param("tone_logits", K, D)
    tone_plate = pyro.plate("tones", D, dim=-1)
    with pyro.plate("sequences", len(x), dim=-3):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-2, lengths=lengths, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            with tone_plate:
                pyro.sample("x", dist.Bernoulli(logits=tones[z.squeeze(-1)]), obs=x[:, t])


def autoregressive(x, lengths, vectorized=True):
    initial, transition = param("initial", K), param("transition", K, K)
    loc, weight = param("loc", K, D), param("weight", K, D)
    start = param("start", D)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths, vectorized=vectorized):
            before = pyrohmm.previous("x", x, t, initial=start)
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z] + weight[z] * before, 1.0).to_event(1), obs=x[:, t])


def second_order_autoregressive(x, vectorized=True):
    initial, transition = param("initial", K), param("transition", K, K)
    loc, weight = param("loc", K), param("weight", 2, K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            one, two = (pyrohmm.previous("x", x, t, lag=lag) for lag in (1, 2))
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z] + weight[0][z] * one + weight[1][z] * two, 1.0), obs=x[:, t])


def sees_previous_state(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K, K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            before = z
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            mean = loc[0][z] if before is None else loc[before, z]
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, t])


def neural_emission(x, vectorized=True):
    initial, transition = param("initial", K), param("transition", K, K)
    first, second = param("first", K, 4), param("second", 4, D)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(first[z].tanh() @ second, 1.0).to_event(1), obs=x[:, t])


def neural_input_transitions(x, inputs, lengths, vectorized=True):
    initial, loc = param("initial", K), param("loc", K)
    first, second = param("first", C, 4), param("second", 4, K * K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths, vectorized=vectorized):
            if z is None:
                logits = initial
            else:
                matrices = ((inputs[:, t] @ first).tanh() @ second).unflatten(-1, (K, K))
                logits = pyro.ops.indexing.vindex(matrices, (..., z, slice(None)))
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def factorial(x, vectorized=True):
    pa, pb = param("pa", K, K), param("pb", 2)
    loc_a, loc_b = param("loc_a", K), param("loc_b", 2)
    with pyro.plate("sequences", len(x), dim=-2):
        a = b = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            a = pyro.sample("a", dist.Categorical(logits=loc_a if a is None else pa[a]))
            b = pyro.sample("b", dist.Bernoulli(logits=pb[0] if b is None else pb[1] * (2 * b - 1)))
            pyro.sample("x", dist.Normal(loc_a[a] + loc_b[b.long()], 1.0), obs=x[:, t])


def coupled_factorial(x, vectorized=True):
    pa, pb = param("pa", 2, K, K), param("pb", K, 2, 2)
    loc = param("loc", K, 2)
    with pyro.plate("sequences", len(x), dim=-2):
        a = b = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            a = pyro.sample("a", dist.Categorical(logits=loc[:, 0] if a is None else pa[b, a]))
            b = pyro.sample("b", dist.Categorical(logits=loc[a] if b is None else pb[a, b]))
            pyro.sample("x", dist.Normal(loc[a, b], 1.0), obs=x[:, t])


def two_streams(x, y, mask, vectorized=True):
    initial, transition = param("initial", K), param("transition", K, K)
    loc, rate = param("loc", K), param("rate", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])
            with poutine.mask(mask=mask[:, t]):
                pyro.sample("y", dist.Poisson(rate[z].exp()), obs=y[:, t])


def independent_states(x, vectorized=True):
    weights, loc = param("weights", K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=weights))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def chains_in_a_plate(x, vectorized=True):
    """A separate chain for each tone: a plate in the body, around the state."""
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    tone_plate = pyro.plate("tones", D, dim=-1)
    with pyro.plate("sequences", len(x), dim=-3):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-2, vectorized=vectorized):
            with tone_plate:
                z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def plate_left_of_all(x, vectorized=True):
    """An inner plate further left than the loop and the plate around it."""
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    tone_plate = pyro.plate("tones", D, dim=-3)
    with pyro.plate("sequences", x.shape[1], dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[2], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            with tone_plate:
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[..., t])


def global_latent(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        h = pyro.sample("h", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z] + h, 1.0), obs=x[:, t])


def amortised_guide(x, vectorized=True):
    weight, bias = param("guide_weight"), param("guide_bias", 2)
    with pyro.plate("sequences", len(x), dim=-2):
        loc = weight * x.mean(-1, keepdim=True) + bias[0]
        pyro.sample("h", dist.Normal(loc, bias[1].exp()))


def dirichlet_rows(x, vectorized=True):
    loc = param("loc", K)
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(K, dtype=x.dtype)))
    with pyro.plate("rows", K, dim=-1):
        transition = pyro.sample("transition", dist.Dirichlet(2.0 * torch.ones(K, dtype=x.dtype)))
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])


def dirichlet_guide(x, vectorized=True):
    first, rows = (
        pyro.param(name, lambda shape=shape: 2 + normal(*shape).exp(), constraint=constraints.positive)
        for name, shape in (("guide_initial", (K,)), ("guide_rows", (K, K)))
    )
    pyro.sample("initial", dist.Dirichlet(first))
    with pyro.plate("rows", K, dim=-1):
        pyro.sample("transition", dist.Dirichlet(rows))


def mixture(x, lengths, vectorized=True):
    weights = param("weights", 2)
    initial, transition, loc = param("initial", 2, K), param("transition", 2, K, K), param("loc", 2, K)
    with pyro.plate("sequences", len(x), dim=-2):
        c = pyro.sample("c", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial[c] if z is None else transition[c, z]))
            pyro.sample("x", dist.Normal(loc[c, z], 1.0), obs=x[:, t])


def mixture_without_plate(x, vectorized=True):
    weights = param("weights", 2)
    initial, transition, loc = param("initial", 2, K), param("transition", 2, K, K), param("loc", 2, K)
    c = pyro.sample("c", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
    z = None
    for t in pyrohmm.markov("time", len(x), vectorized=vectorized):
        z = pyro.sample("z", dist.Categorical(logits=initial[c] if z is None else transition[c, z]))
        pyro.sample("x", dist.Normal(loc[c, z], 1.0), obs=x[t])


def subsampled(x, lengths, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), subsample_size=2, dim=-2) as index:
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths[index], vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[index][:, t])


def chains_in_a_subsampled_plate(x, vectorized=True):
    """The plate around the states is opened in the body, left of time."""
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    z = None
    for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
        with pyro.plate("sequences", len(x), subsample_size=2, dim=-2) as index:
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[index][:, t])


def mixture_of_chains_in_a_plate(x, vectorized=True):
    """An outer class shared by the chains that a plate in the body holds."""
    weights = param("weights", 2)
    initial, transition, loc = param("initial", 2, K), param("transition", 2, K, K), param("loc", 2, K)
    tone_plate = pyro.plate("tones", D, dim=-1)
    with pyro.plate("sequences", len(x), dim=-3):
        c = pyro.sample("c", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-2, vectorized=vectorized):
            with tone_plate:
                z = pyro.sample("z", dist.Categorical(logits=initial[c] if z is None else transition[c, z]))
                pyro.sample("x", dist.Normal(loc[c, z], 1.0), obs=x[:, t])


def nested_chains_in_a_plate(x, vectorized=True):
    """A loop in a loop, with a plate in the inner body: its chains are separate given the outer state."""
    outer, initial = param("outer", 2, 2), param("initial", 2, K)
    transition, loc = param("transition", 2, K, K), param("loc", K)
    tone_plate = pyro.plate("tones", x.shape[3], dim=-1)
    with pyro.plate("sequences", len(x), dim=-4):
        s = None
        for t in pyrohmm.markov("segments", x.shape[1], dim=-3, vectorized=vectorized):
            s = pyro.sample("s", dist.Categorical(logits=outer[0] if s is None else outer[s]))
            z = None
            for u in pyrohmm.markov("frames", x.shape[2], dim=-2, vectorized=vectorized):
                with tone_plate:
                    z = pyro.sample("z", dist.Categorical(logits=initial[s] if z is None else transition[s, z]))
                    pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t, u])


def one_hot_states(x, lengths, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths, vectorized=vectorized):
            z = pyro.sample("z", dist.OneHotCategorical(logits=initial if z is None else z @ transition))
            pyro.sample("x", dist.Normal(z @ loc, 1.0), obs=x[:, t])


def carried_embedding(x, vectorized=True):
    """A number computed from the state, not the state itself, reaches the next step."""
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        embedded = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            logits = initial if embedded is None else embedded @ transition
            z = pyro.sample("z", dist.Categorical(logits=logits))
            embedded = torch.nn.functional.one_hot(z, K).to(x.dtype)
            pyro.sample("x", dist.Normal(embedded @ loc, 1.0), obs=x[:, t])


def with_factor(x, vectorized=True):
    initial, transition, loc = param("initial", K), param("transition", K, K), param("loc", K)
    with pyro.plate("sequences", len(x), dim=-2):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x[:, t])
            pyro.factor("bonus", torch.where(z == 1, 0.7, 0.0))
            pyro.factor("constant", 0.25 * loc.sum())


def switching(x, lengths, observed, vectorized=True):
    """A switching state space model: a path h whose dynamics, and a site whose transitions, depend on the state."""
    initial, transition, pull = param("initial", K), param("transition", K, K), param("pull", K, D)
    turn, back = 0.5 * param("turn", K, D, D), param("back", D, K)
    with pyro.plate("sequences", x.shape[0], dim=-2):
        z, start = None, torch.zeros(D, dtype=x.dtype)
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, lengths=lengths, vectorized=vectorized):
            before = pyrohmm.previous("h", None, t, initial=start)
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z] + before @ back))
            loc = (turn[z] @ before.unsqueeze(-1)).squeeze(-1) + pull[z]
            h = pyro.sample("h", dist.Normal(loc, 0.8).to_event(1))
            with poutine.mask(mask=observed[:, t]):
                pyro.sample("x", dist.Normal(h.sum(-1), 0.5), obs=x[:, t])


def path_law(*shape):
    return param("path_loc", *shape), param("path_scale", *shape, seed=2).exp()


def guide_with_time_in_the_event(x, *args, vectorized=True):
    with pyro.plate("sequences", x.shape[0], dim=-2):
        pyro.sample("h", dist.Normal(*path_law(len(x), 1, x.shape[1], D)).to_event(2))


def guide_with_time_in_a_plate(x, *args, vectorized=True):
    with pyro.plate("sequences", x.shape[0], dim=-2), IndepMessenger("steps", x.shape[1], -1):
        pyro.sample("h", dist.Normal(*path_law(len(x), x.shape[1], D)).to_event(1))


def guide_with_sequences_on_the_right(x, *args, vectorized=True):
    with pyro.plate("sequences", x.shape[0], dim=-1):
        pyro.sample("h", dist.Normal(*path_law(len(x), x.shape[1], D)).to_event(2))


def switching_time_first(x, vectorized=True):
    initial, transition, pull = param("initial", K), param("transition", K, K), param("pull", K)
    with pyro.plate("sequences", x.shape[1], dim=-1):
        z = None
        for t in pyrohmm.markov("time", len(x), dim=-2, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            lags = [pyrohmm.previous("h", None, t, lag=lag, initial=0.1) for lag in (1, 2)]
            h = pyro.sample("h", dist.Normal(0.9 * lags[0] - 0.3 * lags[1] + pull[z], 0.8))
            pyro.sample("x", dist.Normal(h, 0.5), obs=x[t])


def guide_time_first(x, vectorized=True):
    with pyro.plate("sequences", x.shape[1], dim=-1):
        pyro.sample("h", dist.Normal(*path_law(1, x.shape[1], len(x))).to_event(1))


def switching_subsampled(x, vectorized=True):
    initial, transition, pull = param("initial", K), param("transition", K, K), param("pull", K)
    with pyro.plate("sequences", x.shape[0], subsample=torch.tensor([2, 0]), dim=-2) as index:
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-1, vectorized=vectorized):
            z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
            h = pyro.sample("h", dist.Normal(pull[z], 0.8))
            pyro.sample("x", dist.Normal(h, 0.5), obs=x[index][:, t])


def guide_subsampled(x, vectorized=True):
    loc, scale = path_law(x.shape[0], 1, x.shape[1])
    with pyro.plate("sequences", x.shape[0], subsample=torch.tensor([2, 0]), dim=-2) as index:
        pyro.sample("h", dist.Normal(loc[index], scale[index]).to_event(1))


def switching_in_a_plate(x, vectorized=True):
    """Chains, and their paths, in a plate that the body opens."""
    initial, transition, pull = param("initial", K), param("transition", K, K), param("pull", K)
    with pyro.plate("sequences", x.shape[0], dim=-3):
        z = None
        for t in pyrohmm.markov("time", x.shape[1], dim=-2, vectorized=vectorized):
            with pyro.plate("parts", D, dim=-1):
                z = pyro.sample("z", dist.Categorical(logits=initial if z is None else transition[z]))
                h = pyro.sample("h", dist.Normal(pull[z] + pyrohmm.previous("h", None, t), 0.8))
                pyro.sample("x", dist.Normal(h, 0.5), obs=x[:, t])


def guide_in_a_plate(x, vectorized=True):
    with pyro.plate("sequences", x.shape[0], dim=-3), pyro.plate("parts", D, dim=-1):
        pyro.sample("h", dist.Normal(*path_law(len(x), 1, D, x.shape[1])).to_event(1))


def _batch(model, guide=empty_guide, *extra, event=(), **kwargs) -> Case:
    return Case(model, guide, (normal(B, T, *event), *extra), **kwargs)


MASK = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.6
TONES = (torch.rand(B, T, D, generator=torch.Generator().manual_seed(4)) < 0.5).double()

SWITCHING = (ragged(normal(B, T)), LENGTHS, MASK)

# Where sites are random, both forms must draw the same numbers: no extra run to guess the nesting.
NESTING = {"max_plate_nesting": 2}

CASES: dict[str, Case] = {
    "plain": _batch(plain),
    "marked for enumeration": _batch(marked_for_enumeration),
    "one step": Case(plain, empty_guide, (normal(B, 1),)),
    "two steps": Case(plain, empty_guide, (normal(B, 2),)),
    "no plate": Case(no_plate, empty_guide, (normal(T),)),
    "time first": Case(time_first, empty_guide, (normal(T, B),)),
    "ragged, masked": Case(ragged_masked, empty_guide, (ragged(normal(B, T, D)), LENGTHS, MASK)),
    "masked states": _batch(masked_states, empty_guide, MASK),
    "scaled": _batch(scaled),
    "Bernoulli tones, inner plate": Case(bernoulli_tones, empty_guide, (ragged(TONES), LENGTHS)),
    "autoregressive": Case(autoregressive, empty_guide, (ragged(normal(B, T, D)), LENGTHS)),
    "second-order autoregressive": _batch(second_order_autoregressive),
    "sees the previous state": _batch(sees_previous_state),
    "neural emission": _batch(neural_emission, event=(D,)),
    "neural input-driven transitions": Case(
        neural_input_transitions, empty_guide, (ragged(normal(B, T)), normal(B, T, C, seed=5), LENGTHS)
    ),
    "factorial": _batch(factorial),
    "coupled factorial": _batch(coupled_factorial),
    "two streams": _batch(two_streams, empty_guide, torch.arange(B * T).reshape(B, T).double() % 4, MASK),
    "independent states": _batch(independent_states),
    "chains in a plate": _batch(chains_in_a_plate, event=(D,)),
    "plate left of all": Case(plate_left_of_all, empty_guide, (normal(D, B, T),)),
    "global latent, amortised guide": _batch(global_latent, amortised_guide, options=NESTING),
    "Dirichlet rows": _batch(dirichlet_rows, dirichlet_guide, options=NESTING),
    "mixture": Case(mixture, empty_guide, (ragged(normal(B, T)), LENGTHS), enumerates_outside=True),
    "mixture without a plate": Case(mixture_without_plate, empty_guide, (normal(T),), enumerates_outside=True),
    "subsampled": Case(subsampled, empty_guide, (ragged(normal(B, T)), LENGTHS), options=NESTING),
    "chains in a subsampled plate of the body": _batch(chains_in_a_subsampled_plate, options=NESTING),
    "mixture of chains in a plate": _batch(mixture_of_chains_in_a_plate, event=(D,), enumerates_outside=True),
    "nested, chains in a plate": Case(
        nested_chains_in_a_plate, empty_guide, (normal(2, 3, 2, D),), options={"max_plate_nesting": 4}
    ),
    "one-hot states": Case(one_hot_states, empty_guide, (ragged(normal(B, T)), LENGTHS)),
    "carried embedding": _batch(carried_embedding),
    "with factors": _batch(with_factor),
    "switching, time in the guide's event": Case(switching, guide_with_time_in_the_event, SWITCHING, options=NESTING),
    "switching, time in a plate of the guide": Case(switching, guide_with_time_in_a_plate, SWITCHING, options=NESTING),
    "switching, sequences on the right in the guide": Case(
        switching, guide_with_sequences_on_the_right, SWITCHING, options=NESTING
    ),
    "switching, one step": Case(
        switching, guide_with_time_in_the_event, (normal(B, 1), torch.tensor([1, 1, 0]), MASK[:, :1]), options=NESTING
    ),
    "switching, time first": Case(switching_time_first, guide_time_first, (normal(T, B),), options=NESTING),
    "switching, subsampled": _batch(switching_subsampled, guide_subsampled, options=NESTING),
    "switching, chains in a plate": _batch(
        switching_in_a_plate, guide_in_a_plate, event=(D,), options={"max_plate_nesting": 3}
    ),
    "switching, vectorised particles": Case(
        switching,
        guide_with_time_in_the_event,
        SWITCHING,
        options={"num_particles": 4, "vectorize_particles": True, **NESTING},
    ),
    "vectorised particles": _batch(
        global_latent, amortised_guide, options={"num_particles": 4, "vectorize_particles": True, **NESTING}
    ),
}
