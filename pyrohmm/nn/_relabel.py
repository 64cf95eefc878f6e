"""Another order of the states: what the `relabel` methods of the parts share."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyrohmm.nn._common import select


def as_permutation(permutation: Sequence[int] | Tensor, num_states: int) -> Tensor:
    """`permutation` as a new int64 tensor (K,); ValueError if it has not each state once.

    >>> as_permutation([2, 0, 1], 3)
    tensor([2, 0, 1])
    """
    values = torch.as_tensor(permutation)
    integer = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if not integer or values.dim() != 1 or values.sort().values.tolist() != list(range(num_states)):
        raise ValueError(f"permutation: expected each of 0, ..., {num_states - 1} once, got {values.tolist()}")
    return values.to(torch.int64, copy=True)


@torch.no_grad()
def permute(module: PyroModule, permutation: Tensor, names: Iterable[str], dims: Sequence[int] = (0,)) -> None:
    """Permute parameters and buffers of `module` in place along `dims`: entry i is then the old permutation[i].

    Args:
        module: whose own tensors they are.
        permutation: from `as_permutation`.
        names: of the tensors; those that are None are left out.
        dims: the ones that run over states.

    Raises:
        ValueError: one of them has a `PyroSample` prior, and so no value.
    """
    for name in names:
        if name in module._pyro_samples:
            raise ValueError(f"{name}: expected a parameter or a buffer, got a PyroSample prior, which has no order")
        old: Any = getattr(module, name)
        if old is None:
            continue
        new = old
        for dim in dims:
            new = new.index_select(dim, permutation.to(new.device))
        if name in module._pyro_params:
            setattr(module, name, new)  # Pyro takes a constrained parameter back to where it is stored
        else:
            old.copy_(new)


class Ordered(PyroModule):
    """A part with a network that has its own order of the states: state k is the network's state_order[k]; None for k.

    The order is a buffer, in the state dict where it is not None. So any network can be relabelled, its weights as
    they are, and one that never was costs nothing.
    """

    state_order: Tensor | None

    def __init__(self):
        super().__init__()
        self.register_buffer("state_order", None)

    def _reorder(self, permutation: Tensor) -> None:
        """Let state k be the old state permutation[k] to the network."""
        device = next(self.parameters(), permutation).device
        permutation = permutation.to(device)
        self.state_order = permutation if self.state_order is None else self.state_order[permutation]

    def _in_network_order(self, state: Tensor) -> Tensor:
        """The network's numbers of states."""
        return state if self.state_order is None else select(self.state_order, state, 0)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # One of the two may have an order and the other none, for which torch has no rule.
        saved = state_dict.get(f"{prefix}state_order")
        if saved is not None:
            self.state_order = saved.to(next(self.parameters(), saved).device, copy=True)
        elif any(key.startswith(prefix) for key in state_dict):
            self.state_order = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
