"""The bound itself, and what is compared with it. That it protects from wrong results is shown in `test_scaled.py`."""

import math

import pytest
import torch

from pyrohmm.ops.certificate import log_ratio, smallest_log_ratio

NEVER = -math.inf


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 96), (torch.float64, 962)])
@pytest.mark.parametrize("num_states", [1, 2, 16, 4096])
def test_what_underflows_stays_below_rounding(dtype, bits, num_states):
    """K tau / rho^2 = 2^-30 (2^-60 in float64), where tau = 2^-126 (2^-1022)."""
    rho = smallest_log_ratio(dtype, num_states)
    assert rho == pytest.approx(-(bits - math.log2(num_states)) / 2 * math.log(2), rel=1e-12)


def test_log_ratio_is_between_the_extremes_of_one_matrix():
    matrix = torch.tensor([[-1.0, -7.0], [-0.5, -2.0]])
    assert log_ratio(matrix) == -6.5
    assert log_ratio(matrix - 100) == -6.5
    assert log_ratio(matrix.mT) == -6.5


def test_log_ratio_of_each_matrix_of_a_batch():
    batch = torch.tensor([[[0.0, -1.0], [-2.0, 0.0]], [[50.0, 45.0], [50.0, 48.0]]])
    assert log_ratio(batch).tolist() == [-2.0, -5.0]
    assert log_ratio(batch.unsqueeze(1)).tolist() == [[-2.0], [-5.0]]
    assert log_ratio(batch.expand(3, 2, 2, 2)).tolist() == [[-2.0, -5.0]] * 3


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3, 3)])
def test_log_ratio_of_no_matrix(shape):
    assert log_ratio(torch.empty(shape)).shape == shape[:-2]


def test_log_ratio_of_one_state():
    assert log_ratio(torch.tensor([[-800.0]])) == 0.0


def test_log_ratio_where_something_is_impossible():
    assert log_ratio(torch.tensor([[0.0, NEVER], [-1.0, -1.0]])) == NEVER
    assert log_ratio(torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, NEVER], [0.0, 0.0]]])).tolist() == [0.0, NEVER]


@pytest.mark.parametrize(
    "matrix",
    [
        [[NEVER, NEVER], [NEVER, NEVER]],
        [[math.nan, 0.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, math.nan]],
        [[math.inf, 0.0], [0.0, 0.0]],
        [[math.inf, math.inf], [math.inf, math.inf]],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bound_is_met_by_what_has_no_ratio(matrix, dtype):
    good, bad = torch.zeros(2, 2, dtype=dtype), torch.tensor(matrix, dtype=dtype)
    met = log_ratio(torch.stack([good, bad, good])) >= smallest_log_ratio(dtype, 2)
    assert met.tolist() == [True, False, True]


def test_log_ratio_of_a_parameter():
    assert log_ratio(torch.tensor([[0.0, -3.0], [0.0, 0.0]], requires_grad=True)) == -3.0
