"""What kernels are told about memory leads to the same numbers as the tensors."""

import itertools
import math

import numpy as np
import pytest
import torch

from pyrohmm.ops import threads
from pyrohmm.ops.chain import Chain, fit_chain
from pyrohmm.ops.layout import Batch, Flat, flat
from pyrohmm.testing import random_chain


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)


def surrounded(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers inside of memory that is NaN otherwise."""
    memory = tensor.new_full([n + 4 for n in tensor.shape], math.nan)
    view = memory[(slice(2, -2),) * tensor.dim()]
    return view.copy_(tensor)


def gathered(found: Flat, shape: tuple[int, ...], dims: int) -> np.ndarray:
    """The tensor again, read as kernels do: from `index` on, `step` from time to time, the rest densely."""
    *batch, here = shape[:-dims], shape[-dims:]
    dense = np.arange(math.prod(here[1:] if dims > 1 else here))
    times = np.arange(here[0] if dims > 1 else 1) * found.step
    assert found.index.dtype == np.int64
    return found.values[found.index[:, None, None] + times[:, None] + dense].reshape(*batch[0], *here)


# Where True, what the kernel reads is the tensor's own memory.
VECTORS = {
    "no batch": (numbered(3), True),
    "dense": (numbered(2, 3), True),
    "one sequence for all": (numbered(3).expand(2, 3), True),
    "part of a batch": (numbered(2, 1, 3), True),
    "batch transposed": (numbered(5, 2, 3).transpose(0, 1), True),
    "every second": (numbered(4, 3)[::2], True),
    "from the middle": (numbered(9, 3)[4:6], True),
    "inside of other numbers": (surrounded(numbered(2, 3)), True),
    "states far apart": (numbered(3, 2).mT, False),
    "one state for all": (numbered(2, 1).expand(2, 3), False),
    "one state": (numbered(3, 2).mT[:, :1], True),
    "asks for a gradient": (numbered(2, 3).requires_grad_(), True),
    "no sequences": (numbered(0, 3), True),
}

SEQUENCES = {
    "no batch": (numbered(5, 3), True),
    "dense": (numbered(2, 5, 3), True),
    "one sequence for all": (numbered(5, 3).expand(2, 5, 3), True),
    "two dimensions of batch": (numbered(4, 1, 5, 3).expand(4, 2, 5, 3), True),
    "time first": (numbered(5, 2, 3).transpose(0, 1), True),
    "every second step": (numbered(2, 10, 3)[:, ::2], True),
    "windows that overlap": (numbered(9, 3).unfold(0, 5, 1).mT, True),
    "one step for all": (numbered(2, 1, 3).expand(2, 5, 3), True),
    "inside of other numbers": (surrounded(numbered(2, 5, 3)), True),
    "states before time": (numbered(2, 3, 5).mT, False),
    "every second state": (numbered(2, 5, 6)[..., ::2], False),
    "one step": (numbered(2, 1, 3), True),
    "no steps": (numbered(2, 0, 3), True),
    "no sequences": (numbered(0, 5, 3), True),
}

TRANSITIONS = {
    "shared": (numbered(1, 3, 3), True),
    "each": (numbered(4, 3, 3), True),
    "batch": (numbered(2, 4, 3, 3), True),
    "time expanded": (numbered(2, 1, 3, 3).expand(2, 4, 3, 3), True),
    "all expanded": (numbered(3, 3).expand(2, 4, 3, 3), True),
    "time first": (numbered(4, 2, 3, 3).transpose(0, 1), True),
    "transposed": (numbered(2, 4, 3, 3).mT, False),
    "rows far apart": (numbered(2, 4, 3, 5)[..., :3], False),
    "inside of other numbers": (surrounded(numbered(2, 4, 3, 3)), False),
    "one state": (numbered(2, 4, 1, 1), True),
    "one state, far apart": (numbered(2, 4, 5, 5)[..., :1, :1], True),
    "no steps": (numbered(2, 0, 3, 3), True),
}

CASES = [
    pytest.param(dims, *case, id=f"{dims} {name}")
    for dims, cases in ((1, VECTORS), (2, SEQUENCES), (3, TRANSITIONS))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("dims", "tensor", "own"), CASES)
def test_flat(dims, tensor, own):
    found = flat(tensor, tensor.shape[:-dims], dims)
    np.testing.assert_array_equal(gathered(found, tensor.shape, dims), tensor.detach().numpy())
    if tensor.numel():
        assert np.shares_memory(found.values, tensor.detach().numpy()) == own


@pytest.mark.parametrize(("dims", "tensor", "own"), CASES)
@pytest.mark.parametrize("before", [(), (3,), (2, 1)])
def test_flat_for_more_sequences(dims, tensor, own, before):
    batch_shape = torch.broadcast_shapes(tensor.shape[:-dims], (*before, *(1,) * len(tensor.shape[:-dims])))
    found = flat(tensor, batch_shape, dims)
    wide = tensor.expand(*batch_shape, *tensor.shape[-dims:])
    np.testing.assert_array_equal(gathered(found, wide.shape, dims), wide.detach().numpy())


def test_sequences_that_share_memory_have_one_number():
    found = flat(numbered(3, 3).expand(4, 5, 3, 3), torch.Size([4]), 3)
    assert found.index.tolist() == [0] * 4 and found.step == 0
    assert flat(numbered(2, 3), torch.Size([3, 2]), 1).index.tolist() == [0, 3] * 3


def as_chain(**kwargs) -> Chain:
    chain = random_chain(**kwargs)
    return fit_chain(*chain.logits, chain.lengths)


def test_those_with_the_same_transitions_go_together_and_the_long_ones_first():
    A = torch.zeros(2, 1, 1, 3, 3)
    lengths = torch.tensor([[2, 4, 1], [4, 0, 3]])
    chain = fit_chain(torch.zeros(3), A, torch.zeros(2, 3, 4, 3), lengths)
    batch = Batch.of(chain)
    assert batch.order.tolist() == [1, 0, 2, 3, 5, 4]
    assert batch.lengths.tolist() == [2, 4, 1, 4, 0, 3]
    assert (batch.num_steps, batch.num_states) == (4, 3)


def test_the_memory_of_a_batch():
    chain = as_chain(num_states=3, batch_shape=(2, 3), transitions="each", broadcast=True, contiguous=False)
    batch = Batch.of(chain)
    for found, tensor, dims in zip(batch[-3:], chain[:3], (1, 3, 2), strict=True):
        wide = tensor.expand(2, 3, *tensor.shape[-dims:])
        np.testing.assert_array_equal(gathered(found, wide.shape, dims), wide.numpy())


def test_shares_of_a_batch_have_the_same_work(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        lengths = torch.arange(200)
        chain = fit_chain(torch.zeros(3), torch.zeros(3, 3), torch.zeros(200, 200, 3), lengths)
        monkeypatch.setattr(threads, "SMALLEST_SHARE", 1)
        batch = Batch.of(chain)
    finally:
        torch.set_num_threads(before)
    assert len(batch.bounds) == 4 and (batch.bounds[0], batch.bounds[-1]) == (0, 200)
    steps = [int(lengths[batch.order[a:b]].sum()) for a, b in itertools.pairwise(batch.bounds)]
    assert max(steps) < 1.1 * sum(steps) / 3


def test_a_part_of_a_batch():
    chain = fit_chain(torch.zeros(3), torch.zeros(3, 3), torch.zeros(4, 5, 3), torch.tensor([1, 3, 5, 2]))
    batch = Batch.of(chain)
    assert batch.where(np.array([True, False, True, True])).order.tolist() == [2, 3, 0]
    assert batch.where(np.array([True, False, True, True])).bounds == [0, 3]
    assert batch.where(np.zeros(4, bool)).bounds == [0, 0]
    assert batch.where(np.ones(4, bool)).order.tolist() == batch.order.tolist()
