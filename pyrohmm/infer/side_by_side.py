"""Several models of one kind as one, whose tables are those of all."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pyrohmm.infer.maximization import PARTS, closed_parts
from pyrohmm.models import HMM


def can_stack(model: HMM) -> bool:
    """Whether all parts are tables with a closed M-step, so that models can be fitted side by side."""
    parts = (part for whole in model.parts for part in whole.modules())
    return len(closed_parts(model)) == len(PARTS) and all(getattr(part, "side_by_side", True) for part in parts)


def stack(models: Sequence[HMM]) -> HMM:
    """R models as one: each table has dims (R, 1, 1) in front. Buffers are those of the first.

    Example:
        >>> from pyrohmm.nn import BernoulliEmission
        >>> both = stack([HMM(BernoulliEmission(2, 3)) for _ in range(5)])
        >>> both.emission.logits.shape
        torch.Size([5, 1, 1, 2, 3])
    """
    both = copy.deepcopy(models[0])
    for name, parameter in models[0].named_parameters():
        tables = torch.stack([model.get_parameter(name).detach() for model in models])[:, None, None]
        owner, _, leaf = name.rpartition(".")
        both.get_submodule(owner)._parameters[leaf] = nn.Parameter(tables, requires_grad=parameter.requires_grad)
    both.side_by_side = True
    return both


def unstack(both: HMM, index: int, model: HMM) -> None:
    """Copy one of the models that `stack` put together into `model`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(both.get_parameter(name)[index, 0, 0])
