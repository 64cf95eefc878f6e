import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to

from pyrohmm.distributions.sorted import Sorted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_is_that_of_the_draws_in_order(dtype):
    base = dist.StudentT(torch.tensor(3.0, dtype=dtype), 0.5, 2.0).expand([3])
    value = torch.tensor([-1.0, 0.2, 4.0], dtype=dtype)
    expected = base.log_prob(value).sum() + torch.tensor(6.0, dtype=dtype).log()
    torch.testing.assert_close(Sorted(base).log_prob(value), expected)
    assert Sorted(base).log_prob(value.flip(0)) == -torch.inf
    # It integrates to one over the half plane.
    grid = torch.linspace(-8, 8, 321, dtype=dtype)
    pairs = torch.cartesian_prod(grid, grid)
    law = Sorted(dist.Normal(torch.zeros(2, dtype=dtype), 1.0))
    mass = law.log_prob(pairs).exp().sum() * (grid[1] - grid[0]) ** 2
    diagonal = law.log_prob(torch.stack([grid, grid], -1)).exp().sum() * (grid[1] - grid[0]) ** 2
    assert (mass - diagonal / 2).item() == pytest.approx(1.0, abs=1e-4)


def test_draws():
    torch.manual_seed(0)
    law = Sorted(dist.Exponential(torch.ones(2, 3)))
    assert law.batch_shape == (2,) and law.event_shape == (3,) and law.has_rsample
    x = law.sample((4000,))
    assert x.shape == (4000, 2, 3) and (x.diff(dim=-1) >= 0).all()
    # Renyi: the k-th smallest of K exponential variables has the mean 1/K + ... + 1/(K - k + 1).
    means = torch.tensor([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 1])
    torch.testing.assert_close(x.mean((0, 1)), means, rtol=0, atol=0.06)
    assert law.expand((5, 2)).rsample((3,)).shape == (3, 5, 2, 3)


def test_one_draw_and_a_site_of_a_program():
    one = Sorted(dist.Normal(torch.zeros(1), 1.0))
    assert one.log_prob(torch.ones(1)) == dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0))
    assert (biject_to(one.support)(torch.randn(5, 1))).shape == (5, 1)

    def program():
        return pyro.sample("x", Sorted(dist.Normal(torch.zeros(4), 1.0)))

    guide = AutoNormal(program)
    assert (guide()["x"].diff() > 0).all()
    with pyro.plate("draws", 7):
        assert program().shape == (7, 4)


@pytest.mark.parametrize("base", [dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1)])
def test_errors(base):
    with pytest.raises(ValueError, match="base: expected numbers of batch shape"):
        Sorted(base)
