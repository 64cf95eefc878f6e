"""Packed matrices are the same matrices."""

import math

import numpy as np
import pytest
import torch

from pyrohmm.ops.chain import Chain, fit_chain
from pyrohmm.ops.matrices import Matrices, Packed
from pyrohmm.ops.simd import padded_states


def with_transition(transition: torch.Tensor, num_steps: int = 4, batch_shape: tuple[int, ...] = (2, 3)) -> Chain:
    K = transition.shape[-1]
    observation = torch.zeros(*batch_shape, num_steps, K, dtype=transition.dtype)
    return fit_chain(observation.new_zeros(K), transition, observation)


def unpacked(matrices: Matrices, packed: Packed) -> np.ndarray:
    """(G, K, padded)."""
    count, K = matrices.values.shape[:2]
    padded = padded_states(K, matrices.lanes)
    panel = padded if padded == len(matrices.lanes) else 2 * (len(matrices.lanes) - 1)
    return packed.values.reshape(count, -1, K, panel).swapaxes(1, 2).reshape(count, K, padded)


def test_each_matrix_is_there_once():
    A = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for transition, values, number in (
        (A[0, 0], A[:1, 0], [0] * 6),
        (A[0, 0].expand(2, 3, 1, 5, 5), A[:1, 0], [0] * 6),
        (A[:, :1].unsqueeze(-3), A[:, 0], [0, 0, 0, 1, 1, 1]),
        (A[:, :1].unsqueeze(-3).expand(2, 3, 1, 5, 5), A[:, 0], [0, 0, 0, 1, 1, 1]),
        (A[0].unsqueeze(-3), A[0], [0, 1, 2] * 2),
        (A.unsqueeze(-3), A.flatten(0, 1), range(6)),
        (A.mT.unsqueeze(-3), A.mT.flatten(0, 1), range(6)),
    ):
        found = Matrices.of(with_transition(transition))
        assert torch.equal(found.values, values)
        assert found.number.tolist() == list(number)
        assert torch.equal(
            found.values[found.number.tolist()].view(2, 3, 1, 5, 5),
            with_transition(transition).transition.expand(2, 3, 1, 5, 5),
        )


def test_no_matrix_where_transitions_change_or_nothing_follows():
    assert len(Matrices.of(with_transition(torch.zeros(3, 5, 5))).values) == 0
    assert len(Matrices.of(with_transition(torch.zeros(5, 5), num_steps=1)).values) == 0
    assert len(Matrices.of(with_transition(torch.full((1, 1, 5, 5), math.nan), num_steps=0)).values) == 0
    assert len(Matrices.of(with_transition(torch.zeros(5, 5), num_steps=2)).values) == 1


@pytest.mark.parametrize("num_states", [1, 4, 5, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_matrices(num_states, dtype):
    A = torch.randn(3, num_states, num_states, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = Matrices.of(with_transition(A.unsqueeze(-3), batch_shape=(2, 3)))
    rows = unpacked(found, found.packed())
    assert found.packed().index.tolist() == [n * num_states * rows.shape[-1] for n in (0, 1, 2)] * 2
    np.testing.assert_array_equal(rows[..., :num_states], A)
    assert (rows[..., num_states:] == -np.inf).all()

    scaled, tops, passed = found.scaled(bound=-100.0)
    np.testing.assert_array_equal(tops, A.amax((1, 2)))
    assert passed.all()
    expected = (A - A.amax((1, 2), keepdim=True)).exp()
    tolerance = 4 * torch.finfo(dtype).eps
    np.testing.assert_allclose(unpacked(found, scaled)[..., :num_states], expected, rtol=tolerance)
    assert (unpacked(found, scaled)[..., num_states:] == 0).all()

    np.testing.assert_array_equal(
        unpacked(found, found.transposed(scaled))[..., :num_states],
        unpacked(found, scaled)[..., :num_states].swapaxes(1, 2),
    )


def test_matrices_that_do_not_pass_are_zero():
    A = torch.zeros(5, 2, 2)
    A[0, 0, 1] = -50.5
    A[1, 1, 1] = -math.inf
    A[2, 0, 0] = math.nan
    A[3, 1, 0] = math.inf
    found = Matrices.of(with_transition(A.unsqueeze(-3), batch_shape=(5,)))
    packed, tops, passed = found.scaled(bound=-50.0)
    assert passed.tolist() == [False] * 4 + [True]
    assert tops.tolist() == [math.inf] * 4 + [0.0]
    assert (unpacked(found, packed)[:2] == 0).all() and (unpacked(found, packed)[4, :, :2] == 1).all()
    assert found.scaled(bound=-51.0)[2].tolist() == [True] + [False] * 3 + [True]


def test_counts_are_weighed_by_the_matrices():
    A = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    found = Matrices.of(with_transition(A.unsqueeze(-3)))
    _, tops, _ = found.scaled(bound=-100.0)
    counts = torch.rand(3, 2, 3, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = counts.sum(0) * (A - A.amax((2, 3), keepdim=True)).exp().unsqueeze(-3)
    before = counts.clone()
    torch.testing.assert_close(found.weigh(counts, tops), expected.float())
    assert torch.equal(counts, before)
    alone = expected.float().unsqueeze(0)
    torch.testing.assert_close(found.weigh(counts.sum(0, keepdim=True).float(), tops), alone[0])


def test_what_did_not_pass_weighs_nothing():
    found = Matrices.of(with_transition(torch.full((3, 3), math.nan)))
    _, tops, _ = found.scaled(bound=-100.0)
    assert (found.weigh(torch.ones(1, 1, 3, 3), tops) == 0).all()


def test_columns_only_where_they_are_read_often():
    A = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    matrices = Matrices.of(with_transition(A.unsqueeze(-3)))
    columns = matrices.columns(steps=5)
    np.testing.assert_array_equal(columns.values.reshape(3, 5, 5), A.mT)
    assert columns.index.tolist() == [0, 25, 50] * 2
    assert matrices.columns(steps=4).values.size == 0
