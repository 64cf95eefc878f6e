import numpy as np
import pytest
import torch
from scipy import optimize, special

from pyrohmm.nn.emission._roots import falling_root


@pytest.mark.parametrize("start", [-20.0, 0.0, 3.3, 20.0])
def test_is_that_of_scipy(start):
    """log c - digamma(c) = gap, in log c, over ten orders of magnitude."""
    gap = torch.logspace(-6, 3, 50, dtype=torch.float64)

    def function(log_c):
        c = log_c.exp()
        return log_c - c.digamma() - gap, 1 - c * torch.polygamma(1, c)

    found = falling_root(function, -20.0, 20.0, torch.full_like(gap, start))
    expected = [
        optimize.brentq(lambda t, g=g: t - special.digamma(np.exp(t)) - g, -20, 20, xtol=1e-14) for g in gap.numpy()
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_newton_that_would_run_away():
    """Flat far out, where a plain Newton step overshoots without end."""
    shift = torch.tensor([-5.0, 0.3, 7.0], dtype=torch.float64)
    found = falling_root(lambda x: (-(x - shift).atan(), -1 / (1 + (x - shift) ** 2)), -50.0, 50.0, torch.zeros(3) + 40)
    torch.testing.assert_close(found.double(), shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, 1.0, float("nan"), float("inf")])
def test_a_useless_derivative_costs_only_time(wrong):
    start = torch.zeros(2, dtype=torch.float64)
    found = falling_root(lambda x: (2 - x, torch.full_like(x, wrong)), -1.0, 100.0, start)
    torch.testing.assert_close(found, start + 2)


def test_no_zero_inside_is_the_nearer_end():
    start = torch.zeros(2, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = falling_root(lambda x: (sign * x.exp(), sign * x.exp()), -3.0, 5.0, start)
    torch.testing.assert_close(found, torch.tensor([5.0, -3.0]).double())
    assert ((found <= 5) & (found >= -3)).all()


def test_a_function_that_is_never_a_number_ends():
    start = torch.zeros(1, dtype=torch.float64)
    assert falling_root(lambda x: (x * torch.nan, x), -1.0, 2.0, start).isfinite().all()
