import math

import pytest
import torch
from scipy import special

from pyrohmm.nn.emission._special import LARGE, log_peak, log_rising


def exact_rising(start, count):
    return math.fsum(math.log(start + j) for j in range(count))


@pytest.mark.parametrize("start", [1e-4, 0.3, 5.0, 15.999, 16.0, 16.001, 40.0, 1e3, 1e6])
@pytest.mark.parametrize("count", [0, 1, 2, 50, 3000])
def test_log_rising(start, count):
    exact = exact_rising(start, count)
    got = log_rising(torch.tensor(start, dtype=torch.float64), torch.tensor(count)).item()
    assert got == pytest.approx(exact, rel=1e-12, abs=1e-12)
    # In float32 the differences of logarithms of gammas would be off by 1 and more.
    got = log_rising(torch.tensor(start), torch.tensor(float(count))).item()
    assert got == pytest.approx(exact, rel=2e-6, abs=2e-5)


@pytest.mark.parametrize("z", [1, 2, 10, 15, 16, 17, 100, 20000])
def test_log_peak(z):
    exact = math.fsum([z * math.log(z), -z, *(-math.log(j) for j in range(1, z))])
    assert log_peak(torch.tensor(float(z)).double()).item() == pytest.approx(exact, rel=1e-9)
    assert log_peak(torch.tensor(float(z))).item() == pytest.approx(exact, rel=1e-5)


def test_log_peak_of_any_number():
    z = torch.logspace(-8, 3, 300).double()
    torch.testing.assert_close(
        log_peak(z), z * z.log() - z - torch.as_tensor(special.gammaln(z.numpy())), rtol=1e-11, atol=1e-11
    )
    huge = torch.tensor([1e6, 1e12]).double()
    torch.testing.assert_close(log_peak(huge), 0.5 * (huge / (2 * math.pi)).log() - 1 / (12 * huge), rtol=1e-14, atol=0)


def test_gradients():
    z = torch.tensor([0.01, 3.0, LARGE - 1e-3, LARGE + 1e-3, 1e3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_peak, z)
    count = torch.tensor(7.0).double()
    assert torch.autograd.gradcheck(lambda start: log_rising(start, count), z)
    assert torch.autograd.gradgradcheck(lambda start: log_rising(start, count), z)
