"""Why a loss is not finite: the first sites, and the sequences, where a program's numbers break."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.models.isolation import random_state, set_random_state

_MOST = 5  # that are told of: sites, or sequences


def find_not_finite(
    model: Callable[..., Any], guide: Callable[..., Any], data: Sequences, num_particles: int = 1
) -> list[str]:
    """What is not finite in a run of the guide and then the model: parameters, values, log-probabilities.

    The programs run twice with the same random numbers, those that an ELBO uses which draws one particle after the
    other: without Pyro's validation, to see how far the numbers go, and with it, for what it refuses.

    Args:
        model: a Pyro program of the data.
        guide: a Pyro program of the data.
        data: N sequences.
        num_particles: runs, of which the first with anything not finite is told of.

    Returns:
        Sentences, in the order of the programs; empty if all is finite.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(data):
        ...     with pyro.plate("sequences", data.num_total, subsample=data.index):
        ...         pyro.sample("x", dist.Uniform(0.0, 1.0, validate_args=False), obs=data.x[:, 0])
        >>> find_not_finite(model, lambda data: None, Sequences(torch.tensor([[0.1], [2.0], [3.0]])))
        ["site 'x' of the model has a log-probability of -inf, in the sequences [1, 2]"]
    """
    state, found = random_state(data.x.device), []
    for validated in (False, True):
        set_random_state(data.x.device, state)
        with torch.no_grad(), pyro.validation_enabled(validated), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The second run says again what the first one found, in so far as it gets there.
            found += [text for text in _find(model, guide, data, num_particles) if text not in found]
    return found


def _find(model: Callable[..., Any], guide: Callable[..., Any], data: Sequences, num_particles: int) -> list[str]:
    for _ in range(num_particles):
        guide_trace, found = _run("guide", guide, data)
        if not found:
            _, found = _run("model", poutine.replay(model, trace=guide_trace), data)
        if found:
            return found
    return []


def _run(program: str, fn: Callable[..., Any], data: Sequences) -> tuple[Trace, list[str]]:
    """The trace, up to an error if there is one, and what is not finite in it."""
    ending = []
    with poutine.trace() as tracer:
        try:
            fn(data)
        except Exception as error:  # whatever it is, it is told of
            sites = [name for name, site in tracer.trace.nodes.items() if _has_density(site)]
            after = f", after its site {sites[-1]!r}," if sites else ""
            ending = [f"the {program}{after} raises {type(error).__name__}: {_first_line(error)}"]
    return tracer.trace, in_trace(program, tracer.trace, data) + ending


def in_trace(program: str, trace: Trace, data: Sequences) -> list[str]:
    """What is not finite in a trace of "the model" or "the guide"; see `find_not_finite`."""
    found = []
    for name, site in trace.nodes.items():
        if site["type"] != "param" and not _has_density(site):
            continue
        fn: Any = site["fn"]
        kind, what, value, event_dim = "site", "value", site["value"], 0
        if site["type"] == "param":
            kind = "parameter"
        elif isinstance(value, Tensor) and not value.isfinite().all():
            event_dim = len(fn.event_shape)
        else:
            try:
                trace.compute_log_prob(site_filter=lambda other, _, name=name: other == name)
            except ValueError as error:
                found.append(f"site {name!r} of the {program} has no log-probability: {_first_line(error)}")
                continue
            what, value = "log-probability", site["log_prob"]
        if isinstance(value, Tensor) and not (finite := value.isfinite()).all():
            where = _sequences(~finite, site, event_dim, data)
            found.append(f"{kind} {name!r} of the {program} has a {what} of {value[~finite][0].item()}{where}")
    return found[:_MOST]


def _has_density(site: Any) -> bool:
    return site["type"] == "sample" and not isinstance(site["fn"], _Subsample)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()


def _sequences(bad: Tensor, site: Any, event_dim: int, data: Sequences) -> str:
    """Which sequences, if the site is in a plate of the sequences of the data."""
    for frame in site["cond_indep_stack"]:
        axis = bad.dim() + (frame.dim or 0) - event_dim
        if frame.dim is not None and axis >= 0 and frame.size == bad.shape[axis] == len(data):
            rows = bad.movedim(axis, 0).flatten(1).any(1) if bad.dim() > 1 else bad
            names = data.index[rows].tolist()
            more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
            return f", in the sequences {names[:_MOST]}{more}"
    return ""
