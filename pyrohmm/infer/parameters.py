"""What a fit changes: the state of modules, and the parameters that plain functions declare."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Parameters:
    """Takes and puts back copies of the modules' states (buffers included) and of other parameters.

    Args:
        modules: roots, not parts of another one.
        found: name -> unconstrained tensor of all parameters of the programs, the modules' or not.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> parameters = Parameters([module], dict(module.named_parameters()))
        >>> before = parameters.state()
        >>> _ = module.bias.data.fill_(7.0)
        >>> parameters.load(before)
        >>> module.bias.item() == 7.0
        False
    """

    def __init__(self, modules: Sequence[nn.Module], found: Mapping[str, Tensor]):
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        self.modules = list(modules)
        self.others = {name: parameter for name, parameter in found.items() if id(parameter) not in own}

    def state(self) -> dict[str, Any]:
        """A copy of all of it."""
        return {
            "modules": [copy.deepcopy(module.state_dict()) for module in self.modules],
            "others": {name: parameter.detach().clone() for name, parameter in self.others.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put back what `state` copied, in place.

        Raises:
            ValueError: it is the state of other modules or parameters.
        """
        try:
            for module, values in zip(self.modules, state["modules"], strict=True):
                module.load_state_dict(values)
            if self.others.keys() != state["others"].keys():
                raise ValueError(f"expected the parameters {list(self.others)}, got {list(state['others'])}")
            with torch.no_grad():
                for name, parameter in self.others.items():
                    parameter.copy_(state["others"][name])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the saved parameters are of another model or guide: {error}") from error
