"""Transition matrices that do not change over time, packed as compiled kernels multiply by them."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.memory import empty
from pyrohmm.ops.places import groups, unexpanded
from pyrohmm.ops.simd import (
    Lanes,
    blocks,
    exp_of_difference,
    extremes,
    lanes_for,
    padded_states,
    padded_width,
    panel_width,
    splat,
    store,
    take,
    total,
    width_of,
    zeros,
)
from pyrohmm.ops.threads import in_parallel, kernel


class Packed(NamedTuple):
    """Matrices as kernels multiply by them, one after the other, and where that of each sequence begins, (B,)."""

    values: np.ndarray
    index: np.ndarray


class Matrices(NamedTuple):
    """The transition matrices of a chain in which they do not change over time, each of them once.

    Attributes:
        values: (G, K, K); none if they change over time or if no sequence has a second step.
        shape: (..., 1, K, K), the same with their batch dimensions, such as broadcasts with the chain's.
        number: (B,), which one belongs to each sequence.
        lanes: the vectors.
    """

    values: Tensor
    shape: torch.Size
    number: np.ndarray
    lanes: Lanes

    @classmethod
    def of(cls, chain: Chain) -> "Matrices":
        """The matrices of a chain."""
        transition = unexpanded(chain.transition.detach(), 3)
        number = groups(transition.shape[:-3], chain.batch_shape)
        if transition.shape[-3] != 1 or chain.num_steps < 2:
            transition = transition[..., :0, :, :]
        return cls(
            transition.reshape(-1, *transition.shape[-2:]).contiguous(),
            transition.shape,
            number,
            lanes_for(chain.num_states, chain.observation.element_size()),
        )

    def packed(self) -> Packed:
        """The log-potentials, -inf behind the last column."""
        packed = self._room()
        self._run(_pack_logits, packed.values)
        return packed

    def scaled(self, bound: float) -> tuple[Packed, np.ndarray, np.ndarray]:
        """exp(A - top), where top is the largest entry; top (G,); and whether each entry is above top + bound (G,).

        Where one is not, top is inf, and the packed matrix zero. If there are no matrices, top is zero.
        """
        packed, count = self._room(), math.prod(self.shape[:-3])
        tops, passed = np.zeros(count, packed.values.dtype), np.ones(count, np.bool_)
        if len(self.values):
            self._run(_pack_scaled, bound, tops, passed, packed.values)
        return packed, tops, passed

    def transposed(self, packed: Packed) -> Packed:
        """The packed form of the transposed matrices."""
        transposed = np.zeros_like(packed.values)
        self._run(_transpose, packed.values, transposed)
        return packed._replace(values=transposed)

    def columns(self, steps: int) -> Packed:
        """The transposed matrices, densely, if they are read often enough in so many steps; else none."""
        K = self.values.shape[-1]
        values = self.values if steps >= K else self.values[:0]
        return Packed(values.mT.contiguous().view(-1).numpy(), self.number * (K * K))

    def weigh(self, counts: Tensor, tops: np.ndarray) -> Tensor:
        """Counts times exp(A - top), zero where top is inf.

        Args:
            counts: (n, ..., 1, K, K), of which n copies are to be added up; `shape` broadcasts to the rest.
            tops: from `scaled`.

        Returns:
            (..., 1, K, K), in the dtype of the matrices; the memory of counts, where that is possible.
        """
        out = counts[0] if len(counts) == 1 and counts.dtype == self.values.dtype else None
        out = self.values.new_empty(counts.shape[1:]) if out is None else out
        number = groups(self.shape[:-2], counts.shape[1:-2])
        bounds = threads.split_evenly(len(number) * counts.shape[-1], 10.0 * counts.shape[-1])
        memory = (x.view(-1).numpy() for x in (self.values, counts, out))
        threads.run(_weigh, bounds, self.lanes, counts.shape[-1], *memory, number, tops, len(counts))
        return out

    def _room(self) -> Packed:
        count, K = self.values.shape[:2]
        size = padded_states(K, self.lanes) * K
        return Packed(empty(count * size, dtype=self.values.dtype).numpy(), self.number * size)

    def _run(self, kernel, *arguments) -> None:
        """Call a kernel for shares of the rows of all matrices, one after the other."""
        count, K = self.values.shape[:2]
        bounds = threads.split_evenly(count * K, 10.0 * K)
        threads.run(kernel, bounds, self.lanes, K, self.values.view(-1).numpy(), *arguments, together=True)


@njit(forceinline=True)
def place(i, j, K, panel):
    """Where entry (i, j) of a packed matrix is."""
    return j // panel * panel * K + i * panel + j % panel


@njit
def _survey(share, first, last, lanes, K, values, smallest, highest):
    """The smallest and the largest entry of each row; the largest is NaN if there is a NaN in a row without -inf."""
    real = values.dtype.type
    zero = zeros(lanes, values)
    for row in range(first, last):
        high, low = extremes(values, row * K, K, zero)
        wrong = zero
        for j in range(0, K, width_of(zero)):
            wrong = wrong + take(values, row * K + j, K - j, zero) * zero
        smallest[row] = low
        highest[row] = high + (real(0) if low == -np.inf else total(wrong))


@njit
def _pack(share, first, last, lanes, K, values, tops, packed):
    real = values.dtype.type
    zero = zeros(lanes, values)
    nothing = splat(real(-np.inf), zero)
    padded = padded_width(lanes, K, zero)
    panel = panel_width(padded, zero)
    for row in range(first, last):
        g, i = row // K, row % K
        for j in range(0, padded, width_of(zero)):
            entries = take(values, row * K + j, max(K - j, 0), nothing)
            if tops.size > 0:
                # One matrix for all steps: what rounding did to it would add up.
                entries = exp_of_difference(entries, splat(tops[g], zero))
            store(packed, g * padded * K + place(i, j, K, panel), entries)


@kernel
def _pack_logits(shares, lanes, K, values, packed):
    in_parallel(_pack, shares, (lanes, K, values, values[:0], packed))


@kernel
def _pack_scaled(shares, lanes, K, values, bound, tops, passed, packed):
    smallest, highest = np.empty_like(values[: tops.size * K]), np.empty_like(values[: tops.size * K])
    in_parallel(_survey, shares, (lanes, K, values, smallest, highest))
    for g in range(tops.size):
        low, top = smallest[g * K], highest[g * K]
        for row in range(g * K + 1, (g + 1) * K):
            low = min(low, smallest[row])
            if top == top and not highest[row] <= top:  # a NaN comes to stay
                top = highest[row]
        passed[g] = low - top >= bound
        tops[g] = top if passed[g] else np.inf
    in_parallel(_pack, shares, (lanes, K, values, tops, packed))


@njit
def _transpose_panels(share, first, last, lanes, K, packed, transposed):
    zero = zeros(lanes, packed)
    padded = padded_width(lanes, K, zero)
    panel = panel_width(padded, zero)
    for row in range(first, last):
        g, j = row // K, row % K
        source, target = g * padded * K + place(0, j, K, panel), g * padded * K + j * panel
        for i in range(K):
            transposed[target + i // panel * panel * K + i % panel] = packed[source + i * panel]


@kernel
def _transpose(shares, lanes, K, values, packed, transposed):
    in_parallel(_transpose_panels, shares, (lanes, K, packed, transposed))


@njit
def _weigh_rows(share, first, last, lanes, K, values, counts, out, number, tops, copies):
    zero = zeros(lanes, values)
    nothing = splat(values.dtype.type(-np.inf), zero)
    width = width_of(zero)
    chances = np.zeros(blocks(lanes, K, zero) * width, values.dtype)
    size = counts.size // copies
    for row in range(first, last):
        g, i = number[row // K], row % K
        for block in range(blocks(lanes, K, zero)):
            j = block * width
            # What did not pass may hold anything.
            logits = take(values, (g * K + i) * K + j, K - j, nothing) if tops[g] < np.inf else nothing
            store(chances, j, exp_of_difference(logits, splat(tops[g], zero)))
        for j in range(K):
            amount = counts[row * K + j]
            for copy in range(1, copies):
                amount += counts[copy * size + row * K + j]
            out[row * K + j] = amount * chances[j]


@kernel
def _weigh(shares, lanes, K, values, counts, out, number, tops, copies):
    in_parallel(_weigh_rows, shares, (lanes, K, values, counts, out, number, tops, copies))
