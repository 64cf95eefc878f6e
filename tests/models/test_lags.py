import pyro
import pytest
import torch

from pyrohmm import markov, nn
from pyrohmm.data import Sequences
from pyrohmm.models.lags import before_start, lags_at, lags_of


def cases(order):
    vector = nn.AutoregressiveEmission(2, torch.nn.Linear(2 + 2 * order, 4), "gaussian", dim=2, order=order)
    symbol = nn.AutoregressiveEmission(2, torch.nn.Linear(2 + 3 * order, 3), "categorical", dim=3, order=order)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([4, 1, 2])
    yield vector, Sequences(torch.randn(3, 4, 2, generator=generator), lengths)
    yield symbol, Sequences(torch.randint(3, (3, 4), generator=generator), lengths)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_newest_first_and_filled_up_before_the_start(order):
    for emission, data in cases(order):
        lags = lags_of(emission, data)
        x = data.x.reshape(3, 4, -1)
        for t in range(4):
            for lag in range(1, order + 1):
                expected = x[:, t - lag] if t >= lag else torch.full_like(x[:, 0], before_start(emission))
                width = x.shape[-1]
                assert torch.equal(lags[:, t, (lag - 1) * width : lag * width], expected)


@pytest.mark.parametrize("order", [1, 2])
def test_those_in_the_loop_are_the_same(order):
    for emission, data in cases(order):
        found = []
        with pyro.plate("sequences", 3, dim=-2):
            for t in markov("time", 4, dim=-1, lengths=data.lengths, vectorized=False):
                pyro.sample("z", pyro.distributions.Categorical(torch.ones(2)))
                found.append(lags_at(emission, data, t))
                pyro.sample("x", emission(torch.zeros(3, 1, dtype=torch.int64), None, found[-1]), obs=data.x[:, t])
        lags, valid = lags_of(emission, data), data.valid
        assert torch.equal(torch.cat(found, 1)[valid].to(lags.dtype), lags[valid])


def test_nothing_for_an_order_of_zero():
    data = Sequences(torch.zeros(2, 3, 1))
    emission = nn.GaussianEmission(2, 1)
    assert lags_of(emission, data) is None and lags_at(emission, data, slice(0, 1)) is None
