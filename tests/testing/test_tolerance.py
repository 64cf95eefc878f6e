import math

import pytest
import torch

from pyrohmm.testing import assert_close_to_oracle, assert_within_budget

EXACT = torch.tensor([0.25, -3.0, -math.inf], dtype=torch.float64)
REFERENCE = EXACT.float() + 1e-5


def test_oracle_tolerance_is_relative_above_one_and_absolute_below():
    expected = torch.tensor([1e-3, 1e6], dtype=torch.float64)
    assert_close_to_oracle(expected + torch.tensor([9e-11, 9e-5]).double(), expected)
    with pytest.raises(AssertionError):
        assert_close_to_oracle(expected + torch.tensor([2e-10, 0.0]).double(), expected)
    with pytest.raises(AssertionError):
        assert_close_to_oracle(expected + torch.tensor([0.0, 2e-4]).double(), expected)


@pytest.mark.parametrize(
    "actual", [EXACT.float(), EXACT[:2], EXACT.nan_to_num(), EXACT.masked_fill(EXACT == -3.0, math.nan), -EXACT]
)
def test_oracle_sees_dtype_shape_infinities_and_nan(actual):
    with pytest.raises(AssertionError):
        assert_close_to_oracle(actual, EXACT)


def test_nan_is_not_close_to_nan():
    nan = torch.tensor([math.nan], dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_close_to_oracle(nan, nan)


def test_budget_is_the_factor_times_the_error_of_the_reference():
    assert_within_budget(EXACT.float() - 1.9e-5, REFERENCE, EXACT)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        assert_within_budget(EXACT.float() - 2.4e-5, REFERENCE, EXACT)
    assert_within_budget(EXACT.float() - 2.4e-5, REFERENCE, EXACT, factor=3.0)


def test_budget_allows_rounding_even_if_the_reference_is_lucky():
    eps = torch.finfo(torch.float32).eps
    assert_within_budget(EXACT.float() * (1 + 2 * eps), EXACT.float(), EXACT)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        assert_within_budget(EXACT.float() * (1 + 9 * eps), EXACT.float(), EXACT)


@pytest.mark.parametrize("which", ["actual", "reference"])
@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([math.nan, -3.0, -math.inf]),
        torch.tensor([0.25, -3.0, math.nan]),
        torch.tensor([0.25, -3.0, math.inf]),
        torch.tensor([0.25, -math.inf, -math.inf]),
        torch.tensor([0.25, -3.0, -1e30]),
    ],
)
def test_budget_sees_nan_and_infinities(which, wrong):
    arguments = {"actual": REFERENCE, "reference": REFERENCE, "exact": EXACT} | {which: wrong}
    with pytest.raises(AssertionError, match=f"{which} is .* at "):
        assert_within_budget(**arguments)


def test_budget_sees_shapes_and_dtypes():
    with pytest.raises(AssertionError, match=r"actual has shape \(2,\), but exact \(3,\)"):
        assert_within_budget(REFERENCE[:2], REFERENCE, EXACT)
    with pytest.raises(AssertionError, match=r"actual is torch.float64 but reference is torch.float32"):
        assert_within_budget(EXACT, REFERENCE, EXACT)
    with pytest.raises(AssertionError, match="exact must be float64"):
        assert_within_budget(REFERENCE, REFERENCE, REFERENCE)


def test_budget_of_nothing_finite():
    nothing = torch.full((2,), -math.inf, dtype=torch.float64)
    assert_within_budget(nothing.float(), nothing.float(), nothing)
    with pytest.raises(AssertionError, match="actual is 0"):
        assert_within_budget(torch.zeros(2), nothing.float(), nothing)
