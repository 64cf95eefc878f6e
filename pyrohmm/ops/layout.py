"""A chain as compiled kernels read it: flat memory, and where each sequence begins in it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.places import dense, places
from pyrohmm.ops.simd import Lanes, lanes_for


class Flat(NamedTuple):
    """A tensor's own memory and where to find the part of each sequence.

    Attributes:
        values: the memory, one-dimensional.
        index: (B,) int64, where each sequence begins; sequences that share a part have the same number.
        step: distance from one step of time to the next, zero where one serves all.
    """

    values: np.ndarray
    index: np.ndarray
    step: int


def flat(tensor: Tensor, batch_shape: torch.Size, dims: int) -> Flat:
    """The memory of (..., *rest), where rest are the last `dims` dimensions; copied only where it is scattered.

    The batch and, before other dimensions, time may have any strides; the rest must be dense.

    Args:
        tensor: (..., K), (..., T, K) or (..., T, K, K), on the CPU.
        batch_shape: what the leading dimensions broadcast to.
        dims: 1, 2 or 3.

    Example:
        >>> flat(torch.zeros(5, 4, 3)[:, ::2], torch.Size([2, 5]), 2)[1:]
        (array([ 0, 12, 24, 36, 48,  0, 12, 24, 36, 48]), 6)
    """
    tensor = dense(tensor, dims)
    index, step, extent = places(tensor.shape, tensor.stride(), batch_shape, dims)
    return Flat(tensor.as_strided((extent,), (1,)).numpy(), index, step)


@lru_cache(maxsize=16)
def _order(shape: torch.Size, strides: tuple[int, ...], batch_shape: torch.Size) -> np.ndarray:
    """The sequences, those that share a matrix together, where all have the same length."""
    return places(shape, strides, batch_shape, 3)[0].argsort(kind="stable")


class Batch(NamedTuple):
    """A chain as kernels read it, cut into shares for threads.

    Attributes:
        bounds: where in `order` the share of each thread begins, and the end.
        lanes: the vectors.
        order: (B,), the sequences in the order in which they are worked on: those with the same transitions together,
            long ones first.
        lengths: (B,).
        num_steps, num_states: T, K.
        initial, transition, observation: their memory.
    """

    bounds: list[int]
    lanes: Lanes
    order: np.ndarray
    lengths: np.ndarray
    num_steps: int
    num_states: int
    initial: Flat
    transition: Flat
    observation: Flat

    @classmethod
    def of(cls, chain: Chain) -> "Batch":
        """The memory of a chain."""
        lengths = chain.lengths.contiguous().view(-1).numpy()
        matrices = dense(chain.transition, 3)
        transition = flat(matrices, chain.batch_shape, 3)
        work = _work(chain.num_states)
        if chain.lengths.dim() == 0 or not any(chain.lengths.stride()):  # one length for all
            order = _order(matrices.shape, matrices.stride(), chain.batch_shape)
            bounds = threads.split_evenly(len(lengths), work * chain.num_steps, align=8)
        else:
            order = np.lexsort((-lengths, transition.index))
            bounds = threads.split(work * lengths[order], align=8)
        return cls(
            bounds,
            lanes_for(chain.num_states, chain.observation.element_size()),
            order,
            lengths,
            chain.num_steps,
            chain.num_states,
            flat(chain.initial, chain.batch_shape, 1),
            transition,
            flat(chain.observation, chain.batch_shape, 2),
        )

    def where(self, mask: np.ndarray) -> "Batch":
        """The part of the sequences for which the mask (B,) is true."""
        if mask.all():
            return self
        order = self.order[mask[self.order]]
        work = _work(self.num_states) * self.lengths[order]
        return self._replace(order=order, bounds=threads.split(work, align=8))

    def run(self, kernel: Callable[..., Any], *arguments: Any, lengths: np.ndarray | None = None) -> None:
        """Call `kernel(share, first, last, lanes, order, lengths, T, K, *arguments)` for each share."""
        lengths = self.lengths if lengths is None else lengths
        common = (self.lanes, self.order, lengths, self.num_steps, self.num_states)
        threads.run(kernel, self.bounds, *common, *arguments)


def _work(num_states: int) -> float:
    """Operations of a step: K^2, and what it takes to find them."""
    return float(num_states * (num_states + 20))
