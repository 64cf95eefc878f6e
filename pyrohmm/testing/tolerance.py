"""How near is near enough: error budgets that come from measurement instead of being tuned by hand.

In float64 a result must agree with the oracle to 1e-10. In float32 no fixed tolerance is fair: what can be asked
depends on the chain. So the error of a float32 result, measured against float64, is compared with the error that a
plain float32 log-space computation makes on the same chain.
"""

import torch
from torch import Tensor


def assert_close_to_oracle(actual: Tensor, expected: Tensor, *, tolerance: float = 1e-10) -> None:
    """Assert |actual - expected| <= tolerance * (1 + |expected|) in every entry, infinities equal, NaN never.

    Both must have the same shape and dtype. Named tuples of tensors are compared field by field.

    Raises:
        AssertionError: if not, naming the entry that is furthest off.

    >>> expected = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    >>> assert_close_to_oracle(expected + 1e-12, expected)
    """
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_within_budget(
    actual: Tensor, reference: Tensor, exact: Tensor, *, factor: float = 2.0, rounding: float = 4.0
) -> None:
    """Assert that `actual` errs at most `factor` times as much as `reference`, both measured against `exact`.

    max |actual - exact| <= factor * max |reference - exact| + rounding * eps * max(1, max |exact|)

    with the maxima over the finite entries of `exact`, and eps that of the dtype of `actual`. The last term is the
    error that even a perfect result has for being rounded to the dtype. Infinite entries must be equal.

    Args:
        actual: the result to judge, e.g. of a fast float32 kernel.
        reference: the same quantity by the plain method in the same dtype.
        exact: the same quantity in float64.
        factor: how much worse than the reference `actual` may be.
        rounding: how many eps an error may be in any case.

    Raises:
        AssertionError: if the budget is exceeded, or shapes, dtypes or infinities differ, or `actual` has a NaN.

    >>> exact = torch.tensor([0.1, 0.2], dtype=torch.float64)
    >>> assert_within_budget(exact.float() + 1e-6, exact.float() + 1e-6, exact)
    >>> assert_within_budget(exact.float() + 1e-5, exact.float() + 1e-6, exact)
    Traceback (most recent call last):
        ...
    AssertionError: error 1e-05 exceeds the budget 2.48e-06: 2.0 x the reference's error 1e-06 + rounding 4.77e-07
    """
    assert actual.dtype == reference.dtype, f"actual is {actual.dtype} but reference is {reference.dtype}"
    assert exact.dtype == torch.float64, f"exact must be float64, but it is {exact.dtype}"
    finite = exact.isfinite()
    for name, values in (("actual", actual), ("reference", reference)):
        assert values.shape == exact.shape, f"{name} has shape {tuple(values.shape)}, but exact {tuple(exact.shape)}"
        same = torch.where(finite, values.isfinite(), values.double() == exact)
        assert same.all(), f"{name} is {values[~same][0]} at {(~same).nonzero()[0].tolist()}, not {exact[~same][0]}"
    if not finite.any():
        return
    error, allowed = (float((values.double() - exact)[finite].abs().max()) for values in (actual, reference))
    floor = rounding * torch.finfo(actual.dtype).eps * max(1.0, float(exact[finite].abs().max()))
    assert error <= factor * allowed + floor, (
        f"error {error:.3g} exceeds the budget {factor * allowed + floor:.3g}: "
        f"{factor} x the reference's error {allowed:.3g} + rounding {floor:.3g}"
    )
