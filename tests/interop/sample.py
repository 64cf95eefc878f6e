"""Data and starts that every other library is given: overlapping states, whatever the emission."""

import torch
from torch import Tensor

K, D, V, N, T = 3, 2, 4, 6, 30


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def law(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).softmax(-1)


STATES = law(N, T, K, seed=1).argmax(-1)
LOC = 2 * normal(K, D, seed=2)
REAL = LOC[STATES] + normal(N, T, D, seed=3) @ torch.tensor([[1.0, 0.5], [0.0, 0.75]], dtype=torch.float64)
UNIFORM = torch.rand(N, T, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
BITS = (UNIFORM < LOC.sigmoid()[STATES]).double()
COUNTS = (UNIFORM * 8 * LOC.sigmoid()[STATES]).floor()
SYMBOLS = (UNIFORM[..., 0] * V).long()
START = LOC + 0.5 * normal(K, D, seed=5)
SCALE = 1 + 0.25 * torch.arange(K * D, dtype=torch.float64).reshape(K, D)
