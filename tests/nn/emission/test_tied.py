import copy

import pytest
import torch
from torch import nn

from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn import AutoregressiveEmission, GaussianEmission, PoissonEmission, TiedEmission
from pyrohmm.nn.part import EMPTY

GROUPS = torch.tensor([1, 0, 1])


def parts():
    rows = GaussianEmission(2, 2, generator=torch.Generator().manual_seed(0)).double()
    return copy.deepcopy(rows), TiedEmission(rows, GROUPS)


def test_each_state_has_the_law_of_its_row():
    rows, tied = parts()
    x = torch.randn(5, 2, dtype=torch.float64)
    expected = rows(torch.arange(2).unsqueeze(-1)).log_prob(x)[GROUPS]
    torch.testing.assert_close(tied(torch.arange(3).unsqueeze(-1)).log_prob(x), expected)
    observed = torch.tensor([True, False])
    expected = rows(torch.arange(2).unsqueeze(-1), observed=observed).log_prob(x)[GROUPS]
    torch.testing.assert_close(tied(torch.arange(3).unsqueeze(-1), observed=observed).log_prob(x), expected)


def test_weights_are_added_up():
    rows, tied = parts()
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(20, 2, dtype=torch.float64, generator=generator), torch.rand(20, 3, generator=generator)
    rows.maximize(rows.expected_statistics(x, torch.stack([weights[:, 1], weights[:, 0] + weights[:, 2]], -1)))
    tied.maximize(tied.expected_statistics(x, weights))
    for name, parameter in rows.named_parameters():
        torch.testing.assert_close(tied.emission.get_parameter(name), parameter)


def test_all_states_of_a_group_are_told():
    _, tied = parts()
    weights = torch.zeros(20, 3)
    weights[:, 1] = 1.0
    events = tied.maximize(tied.expected_statistics(torch.randn(20, 2).double(), weights))
    assert events[EMPTY].tolist() == [True, False, True]
    shared = TiedEmission(GaussianEmission(2, 2, "tied"), GROUPS)
    events = shared.maximize(shared.expected_statistics(torch.randn(20, 2), torch.ones(20, 3)))
    assert not any(states.any() for states in events.values())


def test_earlier_symbols_are_known_as_such():
    """Before the start there is no symbol, which is not symbol 0."""
    net = nn.Linear(2 + 3, 3)
    emission = AutoregressiveEmission(2, net, "categorical", dim=3)
    data = Sequences.from_list([[0, 1, 2, 0]])
    torch.manual_seed(0)
    model = HMM(TiedEmission(emission, [0, 1]))
    other = HMM(emission, copy.deepcopy(model.initial), copy.deepcopy(model.transition))
    torch.testing.assert_close(model.log_prob(data), other.log_prob(data))


def test_in_a_model():
    model = HMM(TiedEmission(PoissonEmission(2, 1, rate=[[1.0], [50.0]]), GROUPS))
    data = model.simulate(3, 10, seed=0)
    log_prob = model.log_prob(data)
    assert ((data.x[..., 0] > 20) == (data.labels != 1)).all()
    log_prob.sum().backward()
    assert model.emission.emission.log_rate.grad.isfinite().all()


def test_errors():
    with pytest.raises(TypeError, match="emission: expected an emission of pyrohmm.nn, got Linear"):
        TiedEmission(nn.Linear(1, 1), [0])
    with pytest.raises(TypeError, match="groups: expected int64, got torch.float32"):
        TiedEmission(PoissonEmission(2, 1), [0.0, 1.0])
    for groups in ([0, 0], [0, 1, 2], [[0, 1]], [-1, 0, 1]):
        with pytest.raises(ValueError, match="groups: expected a vector of the numbers 0 to 1, all of them"):
            TiedEmission(PoissonEmission(2, 1), groups)
