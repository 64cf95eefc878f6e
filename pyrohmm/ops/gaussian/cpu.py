"""Normal densities and sums compiled for the CPU: what they read is read once, and nothing is kept between."""

import math

import torch
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.gaussian import cpu_kernels
from pyrohmm.ops.memory import empty
from pyrohmm.ops.simd import lanes_for, padded_states


def log_density(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Arguments as in the reference."""
    (num, dim), (*lead, K, _) = x.shape, loc.shape
    constant = -scale.log().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    lanes = lanes_for(K, x.element_size())
    out = empty(*lead, num, K, dtype=x.dtype)
    threads.run(
        cpu_kernels.log_density,
        threads.split_evenly(math.prod(lead) * num, 4.0 * dim * K),
        lanes,
        *(num, dim, K),
        x.contiguous().view(-1).numpy(),
        *(_packed(table, lanes) for table in (loc.mT, scale.reciprocal().mT, constant)),
        out.view(-1).numpy(),
    )
    return out


def moments(x: Tensor, weights: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in the reference."""
    (num, dim), (*lead, _, K) = x.shape, weights.shape
    lanes = lanes_for(K, x.element_size())
    bounds = threads.split_evenly(math.prod(lead) * num, 6.0 * dim * K)
    total = centre.new_zeros(len(bounds) - 1, math.prod(lead), 1 + 2 * dim, padded_states(K, lanes))
    threads.run(
        cpu_kernels.moments,
        bounds,
        lanes,
        *(math.prod(lead), num, dim, K),
        x.contiguous().view(-1).numpy(),
        weights.contiguous().view(-1).numpy(),
        centre.contiguous().numpy(),
        total.view(-1).numpy(),
    )
    found = total.sum(0)[..., :K].mT.reshape(*lead, K, 1 + 2 * dim)
    weight, first, second = found.split([1, dim, dim], -1)
    return weight[..., 0], first, second


def _packed(table: Tensor, lanes):
    """(..., K) in rows of whole vectors, flat."""
    missing = padded_states(table.shape[-1], lanes) - table.shape[-1]
    return (torch.nn.functional.pad(table, (0, missing)) if missing else table).contiguous().view(-1).numpy()
