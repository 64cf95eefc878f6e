"""Functions of the gamma function without the differences of large numbers in which float32 loses its digits."""

import math

import torch
from torch import Tensor

# From here on Stirling's series with five terms is exact to rounding in float64.
LARGE = 16.0


def _stirling_rest(z: Tensor) -> Tensor:
    """log Gamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2), for z >= LARGE."""
    inverse = 1 / z
    square = inverse.square()
    series = 1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))
    return inverse * (1 / 12 - square * series)


def log_peak(z: Tensor) -> Tensor:
    """z log z - z - log Gamma(z), of positive numbers: about log(z / 2 pi) / 2.

    The logarithm of the largest value of x^z e^-x / Gamma(z).
    """
    small, large = z.clamp_max(LARGE), z.clamp_min(LARGE)
    by_series = 0.5 * (large / (2 * math.pi)).log() - _stirling_rest(large)
    return torch.where(z < LARGE, small * small.log() - small - small.lgamma(), by_series)


def log_rising(start: Tensor, count: Tensor) -> Tensor:
    """log Gamma(start + count) - log Gamma(start), of start > 0 and count >= 0."""
    small, large = start.clamp_max(LARGE), start.clamp_min(LARGE)
    growth = (large + count - 0.5) * (count / large).log1p() - count
    by_series = count * large.log() + growth + _stirling_rest(large + count) - _stirling_rest(large)
    return torch.where(start < LARGE, (small + count).lgamma() - small.lgamma(), by_series)
