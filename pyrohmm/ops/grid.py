"""A chain as Triton kernels read it: memory on its device, where each sequence begins in it, blocks of sequences."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops.certificate import log_ratio, smallest_log_ratio
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.places import dense, groups, places, unexpanded

# Products of matrices as accurate as float32, on tensor cores; TF32 alone never.
PRECISION = "tf32x3"


class Memory(NamedTuple):
    """A tensor and where to find the part of each sequence.

    Attributes:
        values: its first number in memory is that of the tensor.
        index: (B,) int64, where each sequence begins.
        step: distance from one step of time to the next, zero where one serves all.
    """

    values: Tensor
    index: Tensor
    step: int


class Blocks(NamedTuple):
    """Sequences that one program takes together: they share their transition matrix.

    Attributes:
        order: (groups * each * rows,) int64, the sequences of each block, filled up with -1.
        groups: number of matrices.
        each: number of blocks of each group.
        rows: number of sequences of a block.
    """

    order: Tensor
    groups: int
    each: int
    rows: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.groups * self.each


class Grid(NamedTuple):
    """A chain in the memory of its device.

    Attributes:
        lengths: (B,) int64.
        starts: (B,) int64, the number of each sequence's first step in results of shape (B, T, ...).
        num_steps, num_states: T, K.
        initial, transition, observation: where the potentials are.
    """

    lengths: Tensor
    starts: Tensor
    num_steps: int
    num_states: int
    initial: Memory
    transition: Memory
    observation: Memory

    @classmethod
    def of(cls, chain: Chain) -> "Grid":
        """The memory of a chain; nothing is copied unless the last dimensions are scattered."""
        batch_shape, device = chain.batch_shape, chain.observation.device
        return cls(
            chain.lengths.clamp(0, chain.num_steps).reshape(-1),  # no kernel reads beyond the end
            starts(math.prod(batch_shape), chain.num_steps, device),
            chain.num_steps,
            chain.num_states,
            memory(chain.initial, batch_shape, 1),
            memory(chain.transition, batch_shape, 3),
            memory(chain.observation, batch_shape, 2),
        )


class Matrices(NamedTuple):
    """Transition matrices that do not change over time, each of them once.

    Attributes:
        shape: of their batch dimensions; broadcasts with the chain's.
        chances: (G, K, K), exp(A - top).
        tops: (G,), top, the largest entry of each; zero where that is not finite.
        passed: (G,) int32, whether scaled space is exact for it.
    """

    shape: torch.Size
    chances: Tensor
    tops: Tensor
    passed: Tensor

    @classmethod
    def of(cls, chain: Chain) -> "Matrices | None":
        """The matrices of a chain, None if they change over time."""
        if chain.transition.shape[-3] > 1:
            return None
        transition = unexpanded(chain.transition, 3)
        if chain.transition.shape[-3] == 0 or chain.num_steps < 2:  # what there is may hold anything
            transition = transition.new_zeros(*transition.shape[:-3], 1, *transition.shape[-2:])
        values = transition.reshape(-1, *transition.shape[-2:]).contiguous()
        passed = log_ratio(values) >= smallest_log_ratio(values.dtype, chain.num_states)
        tops = torch.where(passed, values.flatten(1).amax(1), 0.0)
        # What rounding the difference does to a matrix is the same in every step.
        chances = (values.double() - tops[:, None, None]).exp().to(values.dtype)
        return cls(transition.shape[:-3], chances, tops, passed.int())


def memory(tensor: Tensor, batch_shape: torch.Size, dims: int) -> Memory:
    """Where a tensor (..., *rest) is, of which rest are the last `dims` dimensions."""
    tensor = dense(tensor, dims)
    return Memory(tensor, *_places(tensor.shape, tensor.stride(), batch_shape, dims, tensor.device))


def blocks(shape: torch.Size, batch_shape: torch.Size, rows: int, device: torch.device) -> Blocks:
    """Blocks of at most so many sequences which share their entry of a tensor with batch dimensions `shape`."""
    return Blocks(*_blocks(shape, batch_shape, rows, device), rows)


def per_sequence(chain: Chain, value: Tensor) -> Tensor:
    """A value for each sequence, (B,)."""
    return value.detach().expand(chain.batch_shape).contiguous().view(-1)


def nothing_of(chain: Chain, *, each: bool, reduce: bool) -> tuple[Tensor, Tensor]:
    """State and transition marginals where there are no sequences; see `smooth` of the reference."""
    batch, (T, K) = chain.batch_shape, chain.observation.shape[-2:]
    shape = chain.transition.shape if reduce else (*batch, *((max(T - 1, 0),) if each else ()), K, K)
    return chain.observation.new_zeros(*batch, T, K), chain.observation.new_zeros(shape)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller.

    Example:
        >>> [power_of_two(n) for n in (1, 2, 3, 64, 65)]
        [1, 2, 4, 64, 128]
    """
    return 1 << (number - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on a grid of programs, on the device of its tensors, unless the grid is empty."""
    if math.prod(grid):
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device_of(first):
            kernel[grid](*arguments, **options)


# Copies to a device wait for it. What is remembered is never written to.
@lru_cache(maxsize=64)
def _places(
    shape: torch.Size, strides: tuple[int, ...], batch_shape: torch.Size, dims: int, device: torch.device
) -> tuple[Tensor, int]:
    index, step, _ = places(shape, strides, batch_shape, dims)
    return torch.tensor(index, device=device), step


@lru_cache(maxsize=64)
def starts(sequences: int, extent: int, device: torch.device) -> Tensor:
    """Where each of so many sequences begins in a result that has so many numbers of each, (B,) int64."""
    # Not computed on the device: another stream than this one may be the next to read it.
    return torch.tensor(np.arange(sequences) * extent, device=device)


@lru_cache(maxsize=64)
def numbers(shape: torch.Size, batch_shape: torch.Size, device: torch.device) -> Tensor:
    """The number of the entry of a tensor with batch dimensions `shape` that each sequence has to do with, (B,)."""
    return torch.tensor(groups(shape, batch_shape), device=device)


@lru_cache(maxsize=64)
def _blocks(shape: torch.Size, batch_shape: torch.Size, rows: int, device: torch.device) -> tuple[Tensor, int, int]:
    number = groups(shape, batch_shape)
    count = math.prod(shape)
    # Broadcasting gives each entry equally many sequences.
    members = number.argsort(kind="stable").reshape(count, -1) if count else np.empty((0, 0), np.int64)
    each = -(-members.shape[1] // rows)
    order = np.full((count, each * rows), -1)
    order[:, : members.shape[1]] = members
    return torch.tensor(order.reshape(-1), device=device), count, each
