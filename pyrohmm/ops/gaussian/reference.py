"""Normal densities and sums in plain torch, for blocks of rows in turn."""

import math

import torch
from torch import Tensor

# Numbers in the largest tensors.
_BLOCK = 2**18


def log_density(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """(..., M, K), of x (M, D) and loc and scale (..., K, D), all of one dtype."""
    constant = -scale.log().sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)
    loc, scale = loc.unsqueeze(-3), scale.unsqueeze(-3)
    found = [-0.5 * ((rows.unsqueeze(-2) - loc) / scale).square().sum(-1) for rows in x.split(_rows(loc.numel()))]
    return torch.cat(found, -2) + constant.unsqueeze(-2)


def moments(x: Tensor, weights: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., K), (..., K, D) and (..., K, D), of x (M, D), weights (..., M, K) and centre (D,) float64."""
    dim = x.shape[-1]
    total = centre.new_zeros(*weights.shape[:-2], weights.shape[-1], 1 + 2 * dim)
    size = _rows(max(1 + 2 * dim, weights.shape[:-2].numel() * weights.shape[-1]))
    for rows, weight in zip(x.split(size), weights.split(size, -2), strict=True):
        off = rows.double() - centre
        total += weight.double().mT @ torch.cat([off.new_ones(len(off), 1), off, off.square()], -1)
    weight, first, second = total.split([1, dim, dim], -1)
    return weight[..., 0], first, second


def _rows(width: int) -> int:
    return _BLOCK // max(width, 1) + 1
