import pytest
import torch

from pyrohmm import nn
from pyrohmm.checks.monte_carlo import band, derived_seed, p_value, replicates
from pyrohmm.data import Sequences
from pyrohmm.models import HMM


def test_p_values_are_exact_ranks():
    drawn = torch.tensor([[1.0], [2.0], [2.0], [5.0]])
    for observed, upper, both in ((0.0, 1.0, 0.4), (2.0, 0.8, 1.0), (5.0, 0.4, 0.8), (6.0, 0.2, 0.4)):
        value = torch.tensor([observed])
        assert float(p_value(value, drawn)) == pytest.approx(upper)
        assert float(p_value(value, drawn, two_sided=True)) == pytest.approx(both)
    assert float(p_value(torch.tensor(3.0), torch.empty(0))) == 1.0
    assert float(p_value(torch.tensor(torch.nan), torch.arange(9.0))) == 1.0


def test_p_values_of_exchangeable_numbers_keep_their_level():
    numbers = torch.randn(20, 20_000, generator=torch.Generator().manual_seed(0))
    for two_sided in (False, True):
        p = p_value(numbers[0], numbers[1:], two_sided=two_sided)
        for level in (0.05, 0.1, 0.5):
            assert float((p <= level + 1e-9).double().mean()) <= level + 4 * (level / 20_000) ** 0.5
    assert float((p_value(numbers[0], numbers[1:]) <= 0.05 + 1e-9).double().mean()) > 0.04


def test_a_band_holds_as_many_curves_as_it_says():
    curves = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    for level in (0.5, 0.9, 0.99):
        lower, upper = band(curves, level)
        inside = float(((lower <= curves) & (curves <= upper)).all(-1).double().mean())
        assert level <= inside <= level + 0.06
    lower, upper = band(curves[:3], 0.9)
    assert lower.equal(curves[:3].amin(0)) and upper.equal(curves[:3].amax(0))
    assert band(curves[:1], 0.9).lower.equal(curves[0])


def test_ties_are_in_the_band():
    curves = torch.zeros(100, 2)
    curves[:3, 0] = 1.0
    lower, upper = band(curves, 0.95)
    assert lower.tolist() == [0, 0] and upper.tolist() == [0, 0]
    lower, upper = band(curves, 0.98)
    assert upper.tolist() == [1, 0]


def test_replicated_data_looks_like_the_data(monkeypatch):
    model = HMM(nn.PoissonEmission(2, 3, rate=[[2.0] * 3, [9.0] * 3]))
    mask = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    data = Sequences(torch.ones(4, 5, 3), torch.tensor([5, 1, 3, 5]), inputs=torch.zeros(4, 5, 2), mask=mask)
    sets = list(replicates(model, data, 3, seed=0))
    for drawn in sets:
        assert drawn.x.shape == data.x.shape and drawn.lengths.equal(data.lengths) and drawn.mask.equal(data.mask)
        assert (drawn.x[~data.mask] == 0).all() and drawn.labels.equal(drawn.labels.masked_fill(~data.valid, -1))
    assert not sets[0].x.equal(sets[1].x)
    monkeypatch.setattr("pyrohmm.checks.monte_carlo._BLOCK", 1)
    single = list(replicates(model, data, 3, seed=0))
    assert len(single) == 3 and not single[0].x.equal(single[1].x)


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(-2, 20)}
    assert len(seeds) == 20 * 22
