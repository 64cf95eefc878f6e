"""Keeping two global things of Pyro and torch apart from a model: the parameter store and the random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.params.param_store import normalize_param_name
from torch import nn


@contextmanager
def own_parameters(*modules: nn.Module) -> Iterator[None]:
    """Inside, the parameters of modules are what the modules hold; none of them stays in Pyro's parameter store.

    Pyro finds parameters by name: when two models have run in one process, the second may be given those of the first
    (see the note in `pyro.nn.PyroModule`). So names of the modules' parameters are taken out of the store for the
    time being and put back afterwards. What plain functions declare by `pyro.param` stays in the store as usual.
    `requires_grad`, which Pyro sets on every parameter, is as before at the end.

    Args:
        modules: a module and its guide, say, as roots: not parts of another one.

    Example:
        >>> from pyrohmm.nn import Initial
        >>> part = Initial(2)
        >>> with own_parameters(part):
        ...     _ = part()
        >>> list(pyro.get_param_store())
        []
    """
    store = pyro.get_param_store()
    hidden, constraints = {}, {}
    for name, parameter in list(store.named_parameters()):
        if any(_names(module, name) for module in modules):
            # Not from get_state(): whoever runs a program still needs what that takes away from each parameter.
            hidden[name], constraints[name] = parameter, store._constraints[name]
            del store[name]
    trained = {parameter: parameter.requires_grad for module in modules for parameter in module.parameters()}
    try:
        yield
    finally:
        # Guides may have made parameters in the meantime.
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        for name, parameter in list(store.named_parameters()):
            if id(parameter) in own:
                del store[name]
        if hidden:
            store.set_state({"params": hidden, "constraints": constraints})
        for parameter, flag in trained.items():
            parameter.requires_grad_(flag)


def _names(module: nn.Module, name: str) -> bool:
    """Whether the store's entry `name` would be taken for a parameter of the module."""
    root = getattr(module, "_pyro_name", "")
    if root:
        return name.startswith(f"{root}.")
    name = normalize_param_name(name)
    return any(name == own.removesuffix("_unconstrained") for own, _ in module.named_parameters())


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Inside, torch's random numbers come from `seed`; afterwards its random state is as it was.

    Args:
        seed: any int; None for the global random numbers as they are.
        device: seeded beside the CPU, if it is a CUDA device.

    Example:
        >>> draws = []
        >>> for _ in range(2):
        ...     with seeded(1, torch.device("cpu")):
        ...         draws.append(torch.rand(()))
        >>> draws[0] == draws[1]
        tensor(True)
    """
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed: it would seed every device, also those that are not put back.
        torch.default_generator.manual_seed(seed)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Torch's random state on the CPU and, if it is a CUDA device, on `device`; for `set_random_state`.

    Example:
        >>> cpu = torch.device("cpu")
        >>> state, first = random_state(cpu), torch.rand(())
        >>> set_random_state(cpu, state)
        >>> torch.rand(()) == first
        tensor(True)
    """
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    """Put back what `random_state` returned for the same kind of device."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
