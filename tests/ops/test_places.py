"""Places in memory; `test_layout.py` reads from them."""

import math

import pytest
import torch

from pyrohmm.ops.places import dense, groups, unexpanded


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3), (1, 1, 1), (4, 1, 3), (4, 2, 1), (4, 2, 3)])
@pytest.mark.parametrize("batch_shape", [(4, 2, 3), (0, 4, 2, 3)])
def test_groups(shape, batch_shape):
    numbers = torch.arange(math.prod(shape)).reshape(shape).expand(batch_shape)
    assert groups(torch.Size(shape), torch.Size(batch_shape)).tolist() == numbers.flatten().tolist()


def test_only_what_is_scattered_is_copied():
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    for view in (tensor, tensor[:, ::2], tensor.transpose(0, 1), tensor[:1].expand(5, 3, 4)):
        assert dense(view, 2).data_ptr() == view.data_ptr()
    assert dense(tensor.mT, 2).is_contiguous() and torch.equal(dense(tensor.mT, 2), tensor.mT)
    assert not dense(tensor.clone().requires_grad_(), 2).requires_grad


def test_what_was_expanded_is_there_once():
    matrix = torch.zeros(3, 3)
    assert unexpanded(matrix.expand(5, 2, 1, 3, 3), 3).shape == (1, 1, 1, 3, 3)
    assert unexpanded(torch.zeros(5, 1, 1, 3, 3).expand(5, 2, 1, 3, 3), 3).shape == (5, 1, 1, 3, 3)
    # The last dimensions stay.
    assert unexpanded(matrix[:, :1].expand(4, 3, 3, 3), 3).shape == (1, 3, 3, 3)
