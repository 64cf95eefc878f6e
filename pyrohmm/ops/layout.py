"""A chain as compiled kernels read it: flat memory, and where each sequence begins in it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.simd import Lanes, lanes_for, padded_states


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
    tensor, batch = tensor.detach(), tensor.dim() - dims
    if tensor.is_contiguous():
        memory = tensor.view(-1)
    else:
        dense = 1
        for dim in range(1, max(dims, 2)):
            if tensor.shape[-dim] > 1 and tensor.stride(-dim) != dense:
                tensor = tensor.contiguous()
                break
            dense *= tensor.shape[-dim]
        extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        memory = tensor.as_strided((extent if tensor.numel() else 0,), (1,))
    index = np.zeros(batch_shape, np.int64)
    for dim, (n, stride) in enumerate(zip(tensor.shape[:batch], tensor.stride(), strict=False)):
        if n > 1:
            index += np.arange(0, n * stride, stride).reshape(-1, *(1,) * (batch - dim - 1)) if stride else 0
    step = tensor.stride(-dims) if dims > 1 and tensor.shape[-dims] > 1 else 0
    return Flat(memory.numpy(), index.reshape(-1), step)


def groups(shape: torch.Size, batch_shape: torch.Size) -> np.ndarray:
    """The number, in row-major order, of the entry of a tensor of this shape that each sequence has to do with, (B,).

    Example:
        >>> groups(torch.Size([2, 1]), torch.Size([2, 3]))
        array([0, 0, 0, 1, 1, 1])
    """
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), batch_shape).flatten()


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
        transition = chain.transition.detach()
        # What was expanded (stride zero) is there once.
        for dim in range(transition.dim() - 3):
            if transition.stride(dim) == 0:
                transition = transition.narrow(dim, 0, 1)
        number = groups(transition.shape[:-3], chain.batch_shape)
        if transition.shape[-3] != 1 or chain.num_steps < 2:
            transition = transition[..., :0, :, :]
        return cls(
            transition.reshape(-1, *transition.shape[-2:]),
            transition.shape,
            number,
            lanes_for(chain.num_states, chain.observation.element_size()),
        )

    def pack(self, kernel: Callable[..., Any], *arguments: Any) -> "Packed":
        """The matrices in the panels of columns that products read as a stream, written by a kernel."""
        count, K = self.values.shape[:2]
        size = padded_states(K, self.lanes) * K
        packed = Packed(self.values.new_empty(count * size).numpy(), self.number * size)
        self.run(kernel, *arguments, packed.values, np.arange(count) * size)
        return packed

    def run(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        """Call `kernel(shares, lanes, values, index, K, *arguments)` for shares of the rows of all matrices."""
        count, K = self.values.shape[:2]
        memory, index = self.values.contiguous().view(-1).numpy(), np.arange(count) * (K * K)
        threads.run(kernel, threads.split_evenly(count * K, 10.0 * K), self.lanes, memory, index, K, *arguments)

    def columns(self, steps: int) -> "Packed":
        """The transposed matrices, densely, if they are read often enough in so many steps; else none."""
        K = self.values.shape[-1]
        values = self.values if steps >= K else self.values[:0]
        return Packed(values.mT.contiguous().view(-1).numpy(), self.number * (K * K))


class Packed(NamedTuple):
    """Matrices as kernels multiply by them, one after the other, and where that of each sequence begins, (B,)."""

    values: np.ndarray
    index: np.ndarray


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
        lengths = chain.lengths.detach().contiguous().view(-1).numpy()
        transition = flat(chain.transition, chain.batch_shape, 3)
        work = _work(chain.num_states)
        if chain.lengths.dim() == 0 or not any(chain.lengths.stride()):  # one length for all
            order = transition.index.argsort(kind="stable")
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
