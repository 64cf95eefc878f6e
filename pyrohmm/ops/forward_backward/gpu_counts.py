"""Triton kernels for sums of transition marginals over time, from what was stored of each step."""

import triton
import triton.language as tl


@triton.jit
def products(
    splits,
    span,
    num_steps,
    K,
    left,
    right,
    sums,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum_t left_t(i) right_t(j) over a span of the steps of a sequence, one tile of the pairs (i, j), in float64."""
    sequence = (tl.program_id(0) // splits).to(tl.int64)
    begin = (tl.program_id(0) % splits) * span
    end = tl.minimum(begin + span, num_steps)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(2) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), dtype=tl.float64)
    for first in range(begin, end, STEPS):
        t = first + tl.arange(0, STEPS)
        place = (sequence * num_steps + t)[:, None] * K
        inside = (t < end)[:, None]
        before = tl.load(left + place + i[None, :], inside & (i < K)[None, :], other=0.0)
        after = tl.load(right + place + j[None, :], inside & (j < K)[None, :], other=0.0)
        # float32 adds up a few steps only.
        total += tl.dot(tl.trans(before), after, input_precision=PRECISION).to(tl.float64)
    here = tl.program_id(0).to(tl.int64) * K * K + i[:, None] * K + j[None, :]
    tl.store(sums + here, total, (i < K)[:, None] & (j < K)[None, :])
