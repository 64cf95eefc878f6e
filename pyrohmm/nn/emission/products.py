"""Densities and sums of Gaussian vectors as products with one table of the data, made once for all steps of EM."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.nn.part import BLOCK, Statistics, weighted_sums
from pyrohmm.ops.memory import empty

# Numbers in a table: what is larger is made anew where it is needed, a block at a time.
_MOST = 2**24


class Products(NamedTuple):
    """1, x and its products, of vectors x about a centre.

    Attributes:
        values: (M, 1 + D + D (D + 1) / 2), float64.
        largest: the largest |x|^2.
    """

    values: Tensor
    largest: float


def products(x: Tensor, centre: Tensor) -> Products | None:
    """The table of vectors x (M, D), in blocks; None if it were large."""
    num, dim = x.shape
    width = 1 + dim + dim * (dim + 1) // 2
    if num * width > _MOST:
        return None
    values = empty(num, width, dtype=torch.float64, device=x.device)
    largest = x.new_zeros((), dtype=torch.float64)
    for block, out in zip(*(tensor.split(BLOCK // width + 1) for tensor in (x, values)), strict=True):
        block = block.double() - centre
        out[:, 0] = 1
        out[:, 1 : dim + 1] = block
        # In the order of `torch.triu_indices`.
        column = dim + 1
        for i in range(dim):
            torch.mul(block[:, i : i + 1], block[:, i:], out=out[:, column : column + dim - i])
            column += dim - i
        largest = torch.maximum(largest, block.square().sum(-1).max())
    return Products(values, largest.item())


def log_density(table: Products, loc: Tensor, precision: Tensor, log_det: Tensor, dtype: torch.dtype) -> Tensor | None:
    r"""The log-density of every row in every state, by one product with P, the inverse of the covariance.

    .. math:: -\tfrac12 \log\det(2 \pi \Sigma) - \tfrac12 \mu' P \mu + (P \mu)' x - \tfrac12 \sum_{ij} P_{ij} x_i x_j

    Args:
        table: of the data.
        loc: (*lead, K, D) about the centre, float64.
        precision: P, (*lead, K, D, D), float64.
        log_det: of the covariance, (*lead, K), float64.
        dtype: of the result.

    Returns:
        (*lead, M, K); None if the difference of large numbers would cost digits that `dtype` has.
    """
    # What is lost is about the rounding of float64 times the size of the terms, in nats.
    size = table.largest * precision.diagonal(dim1=-2, dim2=-1).max()
    if not size * torch.finfo(torch.float64).eps < 1e-3 * torch.finfo(dtype).eps ** 0.5:
        return None
    dim = loc.shape[-1]
    linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
    row, column = torch.triu_indices(dim, dim, device=loc.device)
    quadratic = -precision[..., row, column] * torch.where(row == column, 0.5, 1.0)
    constant = -0.5 * (log_det + (linear * loc).sum(-1) + dim * math.log(2 * math.pi))
    weights = torch.cat([constant.unsqueeze(-1), linear, quadratic], -1).mT
    result = empty(*loc.shape[:-2], len(table.values), loc.shape[-2], dtype=dtype, device=loc.device)
    steps = BLOCK // table.values.shape[1] + 1
    for block, out in zip(table.values.split(steps), result.split(steps, -2), strict=True):
        out.copy_(block @ weights)
    return result


def sums(table: Products, weights: Tensor) -> Statistics:
    """The weighted sums that `GaussianEmission.maximize` takes, of weights (*lead, M, K)."""
    values = table.values
    width = values.shape[1]
    total = weighted_sums(weights, lambda rows: values[rows], width)
    dim = (math.isqrt(8 * width + 1) - 3) // 2
    row, column = torch.triu_indices(dim, dim, device=values.device)
    second = total.new_empty(*total.shape[:-1], dim, dim)
    second[..., row, column] = second[..., column, row] = total[..., dim + 1 :]
    return {"weight": total[..., 0], "first": total[..., 1 : dim + 1], "second": second}
