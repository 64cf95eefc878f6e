"""What stands in for an observation that nobody may read."""

import pyro.distributions as dist
import pytest
import torch
from torch import nan

from pyrohmm.distributions import padding
from pyrohmm.distributions.padding import fill_unread


def test_read_values_stay_and_the_others_are_finite():
    value = torch.tensor([[nan, 1.0, 2.0], [nan, nan, nan]])
    read = torch.tensor([[False, True, True], [False, False, False]])
    filled = fill_unread(value, read, dist.Normal(0.0, 1.0))
    assert filled.tolist() == [[1.0, 1.0, 2.0], [1.0, 1.0, 1.0]]


def test_nothing_unread_is_the_value_itself():
    value = torch.randn(2, 3)
    assert fill_unread(value, torch.tensor(True), dist.Normal(0.0, 1.0)).data_ptr() == value.data_ptr()
    assert fill_unread(value[:0], torch.tensor(False), dist.Normal(0.0, 1.0)).shape == (0, 3)


def test_events_are_replaced_whole():
    value = torch.tensor([[nan, nan], [1.0, 2.0], [nan, 3.0]])
    read = torch.tensor([False, True, False])
    filled = fill_unread(value, read, dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
    assert filled.tolist() == [[1.0, 2.0]] * 3


def test_mask_and_value_broadcast():
    read = torch.tensor([[True, False, True], [False, True, True]])
    filled = fill_unread(torch.tensor([4.0, 5.0, 6.0]), read, dist.Normal(0.0, 1.0))
    assert filled.tolist() == [[4.0, 4.0, 6.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (dist.Normal(torch.zeros(3), 1.0), torch.full((3,), nan)),
        (dist.Cauchy(torch.zeros(3), 1.0), torch.full((3,), nan)),
        (dist.LogNormal(torch.zeros(3), 1.0), torch.full((3,), nan)),
        (dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2)), torch.full((3, 2), nan)),
        (dist.AffineBeta(torch.ones(3), 2.0, 5.0, 1.0), torch.full((3,), nan)),
        (dist.Poisson(torch.full((3,), 2.5)), torch.full((3,), -1.0)),
        (dist.Binomial(torch.full((3,), 7.0), 0.5), torch.full((3,), nan)),
        (dist.Gamma(torch.ones(3), 1.0), torch.full((3,), nan)),
        (dist.Categorical(torch.ones(4)), torch.tensor([-1, -1, -1])),
        (dist.Dirichlet(torch.ones(2)), torch.full((3, 2), nan)),
        (dist.Bernoulli(torch.full((3, 2), 0.5)).to_event(1), torch.full((3, 2), nan)),
    ],
)
def test_without_any_data_the_support_gives_a_value(fn, value, waits, monkeypatch):
    monkeypatch.setattr(padding, "waits", lambda tensor: waits)
    filled = fill_unread(value, torch.zeros(3, dtype=torch.bool), fn)
    assert filled.dtype == value.dtype
    assert filled.shape == value.shape
    assert fn.support.check(filled).all()


def test_support_that_differs_between_entries():
    # 7 of 9 is fine where it was seen. Of at most 0 or 5 it is not: what is there stays.
    fn = dist.Binomial(torch.tensor([9.0, 0.0, 5.0, 8.0]), torch.tensor(0.5))
    value, read = torch.tensor([7.0, 0.0, 4.0, -1.0]), torch.tensor([True, False, False, False])
    assert fill_unread(value, read, fn).tolist() == [7.0, 0.0, 4.0, 7.0]
    # Against the states of a leftmost enumeration dimension, an entry must suit all of them.
    fn = dist.Binomial(torch.tensor([[9.0, 9.0, 9.0, 9.0], [9.0, 9.0, 5.0, 9.0]]), torch.tensor(0.5))
    assert fill_unread(value, read, fn).tolist() == [7.0, 7.0, 4.0, 7.0]


def test_gradient_is_zero_not_nan():
    loc = torch.zeros(3, requires_grad=True)
    read = torch.tensor([True, False, False])
    fn = dist.Normal(loc, 1.0)
    value = fill_unread(torch.tensor([1.0, nan, torch.inf]), read, fn)
    torch.where(read, fn.log_prob(value), 0.0).sum().backward()
    assert loc.grad.tolist() == [1.0, 0.0, 0.0]
