"""Draws of the parameters of a program: from a sampler, from a guide, or none where they are points."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrohmm.checks.monte_carlo import derived_seed
from pyrohmm.models.isolation import own_parameters, seeded

Draws = dict[str, Tensor]


def parameter_draws(
    args: tuple[Any, ...],
    draws: Mapping[str, Tensor] | None,
    guide: Callable[..., Any] | None,
    num_draws: int,
    seed: int,
) -> Draws:
    """The draws of the latent sites of a program, {site: (chains, draws, *shape)}.

    Args:
        args: the program's, for the guide.
        draws: as `mcmc.get_samples(group_by_chain=True)` returns them; None to ask the guide.
        guide: draws the latent sites, in one chain; None for none.
        num_draws: how many draws to take from the guide.
        seed: of the guide's draws.

    Returns:
        Empty if there are neither draws nor latent sites in the guide: the parameters are points.

    Raises:
        TypeError, ValueError: draws that are no tensors, or not of the same chains and draws.
    """
    if draws is not None:
        return _checked(draws)
    if guide is None:
        return {}
    modules = [guide] if isinstance(guide, torch.nn.Module) else []
    found: list[Draws] = []
    for number in range(num_draws):
        with torch.no_grad(), seeded(derived_seed(seed, number), _device(args)), own_parameters(*modules):
            found.append(latent_values(poutine.trace(guide).get_trace(*args)))
        if not found[0]:
            return {}
    return {name: torch.stack([some[name] for some in found]).unsqueeze(0) for name in found[0]}


def given(values: Mapping[str, Tensor]) -> Callable[..., None]:
    """A guide that proposes these values."""

    def guide(*args: Any, **kwargs: Any) -> None:
        for name, value in values.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    return guide


def one(draws: Mapping[str, Tensor], chain: int, draw: int) -> Draws:
    """One of the draws."""
    return {name: value[chain, draw] for name, value in draws.items()}


def latent_values(trace: poutine.Trace) -> Draws:
    """The values of the latent sites of a trace; not those of states that were summed out, or simulated."""
    nodes: Any = trace.nodes
    return {name: node["value"].detach() for name, node in nodes.items() if _is_latent(node)}


def _is_latent(node: Any) -> bool:
    if node["type"] != "sample" or node["is_observed"] or site_is_subsample(node):
        return False
    # What an autoguide draws all sites from is none of them.
    return not (node["infer"] or {}).get("is_auxiliary")


def _device(args: tuple[Any, ...]) -> torch.device:
    for value in args:
        value = getattr(value, "x", value)
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")


def _checked(draws: Mapping[str, Tensor]) -> Draws:
    if not isinstance(draws, Mapping) or not draws:
        raise TypeError(
            "draws: expected tensors by name of site, like mcmc.get_samples(group_by_chain=True), got "
            f"{type(draws).__name__ if not isinstance(draws, Mapping) else 'none'}"
        )
    shape = None
    for name, value in draws.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"draws: expected a tensor for {name!r}, got {type(value).__name__}")
        if value.dim() < 2 or 0 in value.shape[:2] or (shape is not None and value.shape[:2] != shape):
            expected = "(chains, draws, ...)" if shape is None else f"({shape[0]}, {shape[1]}, ...)"
            raise ValueError(f"draws: expected shape {expected} for {name!r}, got {tuple(value.shape)}")
        shape = value.shape[:2]
    return {name: value.detach() for name, value in draws.items()}
