"""What Triton kernels are told about memory leads to the same numbers as the tensors."""

import math

import pytest
import torch

from pyrohmm.ops.certificate import smallest_log_ratio
from pyrohmm.ops.chain import fit_chain
from pyrohmm.ops.grid import Grid, Matrices, Memory, blocks, launch, numbers, per_sequence
from pyrohmm.testing import random_chain
from tests.ops.cases import AWKWARD

CPU = torch.device("cpu")


def gathered(found: Memory, sequences: int, num_steps: int, size: int) -> torch.Tensor:
    """(B, T, size), read as kernels do: from the tensor's first number on."""
    places = found.index[:, None, None] + found.step * torch.arange(num_steps)[:, None] + torch.arange(size)
    places = places.flatten() + found.values.storage_offset()
    storage = found.values.as_strided((found.values.untyped_storage().nbytes() // found.values.itemsize,), (1,), 0)
    return storage[places].view(sequences, num_steps, size)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_chain(name):
    chain = fit_chain(*AWKWARD[name].logits, AWKWARD[name].lengths)
    grid = Grid.of(chain)
    B, T, K = len(grid.lengths), chain.num_steps, chain.num_states
    assert B == math.prod(chain.batch_shape) and torch.equal(grid.lengths, chain.lengths.reshape(-1))
    for found, tensor, steps, size in (
        (grid.initial, chain.initial.unsqueeze(-2), 1, K),
        (grid.transition, chain.transition.flatten(-2), max(T - 1, 0), K * K),
        (grid.observation, chain.observation, T, K),
    ):
        expected = tensor.expand(*chain.batch_shape, steps, size).reshape(B, steps, size)
        torch.testing.assert_close(gathered(found, B, steps, size), expected, equal_nan=True, rtol=0, atol=0)


def test_lengths_outside_of_time_are_never_read():
    chain = fit_chain(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 4, 2))
    assert Grid.of(chain._replace(lengths=torch.tensor([-1, 5, 2]))).lengths.tolist() == [0, 4, 2]


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1), (2, 3), (4, 1, 1), (4, 2, 3)])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_blocks_hold_each_sequence_once_with_those_that_share_its_matrix(shape, rows):
    shape, batch_shape = torch.Size(shape), torch.Size([4, 2, 3])
    found = blocks(shape, batch_shape, rows, CPU)
    order = found.order.view(found.groups, found.each, rows)
    assert found.groups == math.prod(shape) and found.count == found.groups * found.each
    assert sorted(order[order >= 0].tolist()) == list(range(24))
    assert (order[:, :, 0] >= 0).all()  # no block is empty
    number = numbers(shape, batch_shape, CPU)
    for group in range(found.groups):
        members = order[group][order[group] >= 0]
        assert (number[members] == group).all()


def test_no_sequences_have_no_blocks():
    assert blocks(torch.Size(), torch.Size([0]), 16, CPU).count == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices(dtype):
    chain = random_chain(3, 4, (2,), transitions="constant").to(dtype)
    bound = smallest_log_ratio(dtype, 3)
    chain.transition_logits[1, 0, 0, 1] = chain.transition_logits[1].max() + 1.01 * bound
    found = Matrices.of(fit_chain(*chain.logits))
    assert found is not None and found.shape == (2,)
    assert found.passed.tolist() == [1, 0]
    first = chain.transition_logits[0, 0]
    torch.testing.assert_close(found.chances[0].log() + found.tops[0], first)
    assert found.chances[0].max() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_matrix_with_what_is_no_number_has_not_passed(value):
    chain = random_chain(3, 4)
    chain.transition_logits[0, 1] = value
    found = Matrices.of(fit_chain(*chain.logits))
    assert found is not None and not found.passed.any()


def test_matrices_that_change_are_none():
    assert Matrices.of(fit_chain(*random_chain(3, 4, transitions="each").logits)) is None


def test_a_value_for_each_sequence():
    chain = fit_chain(*random_chain(2, 3, (2, 3)).logits)
    assert per_sequence(chain, torch.tensor([[1.0], [2.0]])).tolist() == [1, 1, 1, 2, 2, 2]


def test_an_empty_grid_is_not_launched():
    launch(None, (0, 3), torch.zeros(2))
