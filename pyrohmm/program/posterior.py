"""The posterior law of the state paths in a program."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrohmm.distributions import MarkovChain
from pyrohmm.program.potentials import StateSite


class Posterior(dict[str, MarkovChain]):
    """The result of `posterior`: loop name -> `MarkovChain` over the paths of its states."""

    def __init__(self, chains: dict[str, MarkovChain], sites: dict[str, tuple[StateSite, ...]]):
        super().__init__(chains)
        self._sites = sites

    def __missing__(self, loop: str) -> MarkovChain:
        raise KeyError(f"no loop of the program is called {loop!r}; its loops are {list(self)}")

    def values_of(self, loop: str, states: Tensor) -> dict[str, Tensor]:
        """The values of each state site of a loop, from states of its chain.

        With several state sites in a body, the chain runs over the product of their supports, the last site varying
        fastest.

        Args:
            loop: name of the loop.
            states: any shape, int64, as the chain's methods return them.

        Returns:
            State site -> values of its support, (*states.shape, *event); -1 where the state is -1.

        Example:
            >>> import pyro, pyro.distributions as dist, pyrohmm, torch
            >>> def model(x):
            ...     for t in pyrohmm.markov("time", len(x)):
            ...         a = pyro.sample("a", dist.Bernoulli(0.5))
            ...         b = pyro.sample("b", dist.Categorical(torch.ones(3)))
            ...         pyro.sample("x", dist.Normal(10 * a + b, 0.1), obs=x[t])
            >>> found = pyrohmm.posterior(model)(torch.tensor([12.0, 1.0]))
            >>> found.values_of("time", found["time"].mode)
            {'a': tensor([1., 0.]), 'b': tensor([2, 1])}
        """
        result, index = {}, states.clamp(min=0)
        for site in reversed(self._sites[loop]):
            size = len(site.support)
            values = site.support[index % size]
            result[site.name] = torch.where((states >= 0)[(..., *(None,) * (values.dim() - states.dim()))], values, -1)
            index = index // size
        return dict(reversed(result.items()))


def posterior(model: Callable[..., Any], guide: Callable[..., Any] | None = None) -> Callable[..., Posterior]:
    """The exact posterior of the states of each `markov` loop, given the data and everything else in the program.

    Args:
        model: a Pyro program with `pyrohmm.markov` loops whose bodies observe data.
        guide: proposes the program's other latent sites: one draw from it is used. Needed if there are any, unless
            they are fixed by `pyro.condition`.

    Returns:
        A function of the program's arguments that returns a `Posterior`: loop name -> `MarkovChain`, whose batch
        shape is that of the plates around the loop. The chain is differentiable in the program's parameters.

    Raises:
        ValueError: (on the call) a latent site that is neither in the guide nor conditioned; no loop with data.

    Example:
        >>> import pyro, pyro.distributions as dist, pyrohmm, torch
        >>> def model(x):
        ...     z = None
        ...     for t in pyrohmm.markov("time", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
        ...         pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x[t])
        >>> pyrohmm.posterior(model)(torch.tensor([0.0, 1.0, 3.0]))["time"].marginals
        tensor([[0.8808, 0.1192],
                [0.5000, 0.5000],
                [0.0180, 0.9820]])
    """

    def conditioned(*args: Any, **kwargs: Any) -> Posterior:
        trace = trace_given(model, guide, *args, **kwargs)
        found = chains_in(trace)
        if not found:
            raise ValueError("model: expected a pyrohmm.markov loop with an observed site, found none")
        return found

    return conditioned


def chains_in(trace: poutine.Trace) -> Posterior:
    """The law of the state paths of each collapsed loop in a program's trace."""
    chains, sites = {}, {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        potentials = (node["infer"] or {}).get("pyrohmm_potentials")
        if potentials is not None:
            potentials = potentials.without_summed_plates()
            chains[name] = MarkovChain.from_potentials(
                potentials.initial, potentials.transition, potentials.observation, lengths=potentials.lengths
            )
            sites[name] = potentials.sites
    return Posterior(chains, sites)


def trace_given(
    model: Callable[..., Any], guide: Callable[..., Any] | None, *args: Any, **kwargs: Any
) -> poutine.Trace:
    """A trace of the model, its latent sites from one draw of the guide.

    Raises:
        ValueError: a latent site that is neither in the guide nor conditioned.
    """
    program, guide_trace = model, poutine.Trace()
    if guide is not None:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        program = poutine.replay(model, trace=guide_trace)
    trace = prune_subsample_sites(poutine.trace(program).get_trace(*args, **kwargs))
    check_proposed(trace, guide_trace)
    return trace


def check_proposed(trace: poutine.Trace, proposed: poutine.Trace) -> None:
    """Raise unless every latent site of the model's trace is in the guide's.

    Raises:
        ValueError: there is one that is not.
    """
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and name not in proposed:
            raise ValueError(
                f"latent site {name!r} is not fixed: pass a guide that proposes it, or pyro.condition the model"
            )
