"""Triton kernels that add up transition marginals over time and sequences, from what was stored of each step."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyrohmm.ops.grid import PRECISION, Blocks, Memory, launch, power_of_two
from pyrohmm.ops.tiles import finite

# Programs that keep a device busy: time is divided where there are not enough matrices and tiles.
PROGRAMS = 512


def sums_of_scaled(groups: Blocks, lengths: Tensor, passed: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_t left_t(i) right_t(j) over the sequences of each group that has passed, (G, K, K) float64.

    Args:
        groups: one block each; only those with as many members as rows.
        lengths: (B,).
        passed: (G,).
        left: (B, T, K), not read past the lengths.
        right: (B, T, K), not read past the lengths.
    """
    tile, tiles, splits, span, sums = _room(groups, left)
    launch(
        scaled,
        (groups.groups * splits, tiles, tiles),
        *(groups.order, groups.rows, splits, span, lengths, *left.shape[1:], passed, left, right, sums),
        STEPS=32,
        TILE=tile,
        PRECISION=PRECISION,
        num_warps=4,
    )
    return sums.sum(1)


def sums_of_logs(
    groups: Blocks,
    lengths: Tensor,
    passed: Tensor,
    transition: Memory,
    marginals: Tensor,
    totals: Tensor,
    onward: Tensor,
) -> Tensor:
    """sum_t gamma_t(i) exp(A_ij + onward_t+1(j) - total_t(i)) of groups that have not passed; see `sums_of_scaled`."""
    tile, tiles, splits, span, sums = _room(groups, onward)
    launch(
        logs,
        (groups.groups * splits, tiles, tiles),
        *(groups.order, groups.rows, splits, span, lengths, *onward.shape[1:], *transition, passed),
        *(marginals, totals, onward, sums),
        TILE=tile,
        num_warps=4,
    )
    return sums.sum(1)


def _room(groups: Blocks, like: Tensor) -> tuple[int, int, int, int, Tensor]:
    """The side of a tile, how many there are in a row, into how many spans time is cut, their length, room for sums."""
    _, T, K = like.shape
    tile = min(max(16, power_of_two(K)), 32)
    tiles = -(-K // tile)
    splits = max(1, min(-(-T // 64), PROGRAMS // max(1, groups.groups * tiles * tiles)))
    sums = like.new_zeros(groups.groups, splits, K, K, dtype=torch.float64)
    return tile, tiles, splits, -(-T // splits), sums


@triton.jit(do_not_specialize=["members", "splits", "span", "num_steps"])
def scaled(
    order,
    members,
    splits,
    span,
    lengths,
    num_steps,
    K,
    passed,
    left,
    right,
    sums,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum_t left_t(i) right_t(j) over a span of the steps of all members of a group, a tile of the pairs (i, j)."""
    group = tl.program_id(0) // splits
    if tl.load(passed + group) == 0:
        return
    begin = (tl.program_id(0) % splits) * span
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(2) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), dtype=tl.float64)
    for member in range(0, members):
        row = tl.load(order + group * members + member)
        end = tl.minimum(begin + span, tl.load(lengths + row))
        for first in range(begin, end, STEPS):
            t = first + tl.arange(0, STEPS)
            place = (row * num_steps + t)[:, None] * K
            inside = (t < end)[:, None]
            before = tl.load(left + place + i[None, :], inside & (i < K)[None, :], other=0.0)
            after = tl.load(right + place + j[None, :], inside & (j < K)[None, :], other=0.0)
            # float32 adds up a few steps only.
            total += tl.dot(tl.trans(before), after, input_precision=PRECISION).to(tl.float64)
    here = tl.program_id(0).to(tl.int64) * K * K + i[:, None] * K + j[None, :]
    tl.store(sums + here, total, (i < K)[:, None] & (j < K)[None, :])


@triton.jit(do_not_specialize=["members", "splits", "span", "num_steps"])
def logs(
    order,
    members,
    splits,
    span,
    lengths,
    num_steps,
    K,
    transition,
    transition_index,
    transition_step,
    passed,
    marginals,
    totals,
    onward,
    sums,
    TILE: tl.constexpr,
):
    """sum_t gamma_t(i) exp(A_ij + onward_t+1(j) - total_t(i)), as `scaled`."""
    group = tl.program_id(0) // splits
    if tl.load(passed + group) != 0:
        return
    begin = (tl.program_id(0) % splits) * span
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(2) * TILE + tl.arange(0, TILE)
    pair = (i < K)[:, None] & (j < K)[None, :]
    total = tl.zeros((TILE, TILE), dtype=tl.float64)
    for member in range(0, members):
        row = tl.load(order + group * members + member)
        end = tl.minimum(begin + span, tl.load(lengths + row) - 1)
        matrix = transition + tl.load(transition_index + row) + i[:, None] * K + j[None, :]
        for t in range(begin, end):
            place = (row * num_steps + t) * K
            gamma = tl.load(marginals + place + i, i < K, other=0.0)
            norm = tl.load(totals + place + i, i < K, other=0.0)
            after = tl.load(onward + place + K + j, j < K, other=-float("inf"))
            scores = tl.load(matrix + t * transition_step, pair, other=-float("inf")) + after[None, :]
            law = tl.exp(scores - finite(norm)[:, None])
            total += tl.where(gamma[:, None] == 0.0, 0.0, gamma[:, None] * law).to(tl.float64)
    here = tl.program_id(0).to(tl.int64) * K * K + i[:, None] * K + j[None, :]
    tl.store(sums + here, total, pair)
