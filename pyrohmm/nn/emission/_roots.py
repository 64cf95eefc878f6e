"""Where functions are zero, for whole tables at once."""

from collections.abc import Callable

import torch
from torch import Tensor

# Each step halves either the bracket or the last step, so that these reach the rounding error from any start.
STEPS = 150
TOLERANCE = 1e-14


def falling_root(function: Callable[[Tensor], tuple[Tensor, Tensor]], low: float, high: float, start: Tensor) -> Tensor:
    """Where a function crosses zero from above, in [low, high]; the nearer end where it does not.

    Newton's method inside of a bracket, with a bisection wherever it would leave it or converges slowly.

    Args:
        function: value and derivative, elementwise; positive below its only zero and negative above.
        low: where the first bracket begins.
        high: where it ends.
        start: float64, a first guess.

    Returns:
        Of the shape of `start`.

    Reference:
        Press et al. (2007), "Numerical Recipes", section 9.4.

    >>> falling_root(lambda x: (2 - x**3, -3 * x**2), 0.0, 10.0, torch.ones(1).double())
    tensor([1.2599], dtype=torch.float64)
    """
    lower, upper = torch.full_like(start, low), torch.full_like(start, high)
    at, last = start.clamp(low, high), upper - lower
    for _ in range(STEPS):
        value, slope = function(at)
        lower, upper = torch.where(value >= 0, at, lower), torch.where(value <= 0, at, upper)
        step = -value / slope
        newton = (at + step >= lower) & (at + step <= upper) & (step.abs() <= 0.5 * last.abs()) & slope.isfinite()
        step = torch.where(newton, step, 0.5 * (lower + upper) - at)
        last = torch.where(newton, step, upper - lower)
        at = at + step
        if (step.abs() <= TOLERANCE * (1 + at.abs())).all():
            break
    return at
