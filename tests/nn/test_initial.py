import copy
import math

import pytest
import torch
from torch import nn

from pyrohmm.nn import Initial


def test_table():
    initial = Initial(4)
    assert initial.logits.shape == (4,)
    assert torch.equal(initial(), initial.logits)
    # Inputs meant for other parts of a model are not read.
    assert torch.equal(initial(torch.full((5, 1, 2), math.nan)), initial.logits)
    torch.testing.assert_close(initial.log_probs().exp().sum().item(), 1.0)


def test_context():
    initial = Initial(4, context=2, hidden=8)
    inputs = torch.randn(5, 1, 2)
    logits = initial(inputs)
    assert logits.shape == (5, 1, 4)
    torch.testing.assert_close(logits, initial.logits + initial.net(inputs))
    torch.testing.assert_close(initial.log_probs(inputs).logsumexp(-1), torch.zeros(5, 1))
    assert not torch.equal(logits[0], logits[1])


def test_own_net():
    net = nn.Linear(2, 4)
    assert Initial(4, context=2, net=net).net is net


def test_mask():
    mask = torch.tensor([True, False, True])
    initial = Initial(3, context=2, mask=mask)
    inputs = torch.randn(5, 2)
    assert torch.equal(initial(inputs) == -math.inf, (~mask).expand(5, 3))
    log_probs = initial.log_probs(inputs)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(5))
    log_probs[:, mask].square().sum().backward()
    assert initial.logits.grad[1] == 0
    assert all(parameter.grad.isfinite().all() for parameter in initial.parameters())
    # A change of the caller's mask does not reach the part.
    mask[:] = True
    assert initial.mask.tolist() == [True, False, True]


def test_generator():
    rng = torch.get_rng_state()
    first, second = (Initial(3, context=2, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    other = Initial(3, context=2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), rng)
    inputs = torch.randn(4, 2)
    assert torch.equal(first(inputs), second(inputs))
    assert not torch.equal(first(inputs), other(inputs))


def test_state_dict_deepcopy_and_double():
    initial = Initial(3, context=2, mask=torch.tensor([True, False, True]))
    inputs = torch.randn(4, 2)
    other = Initial(3, context=2, mask=torch.tensor([True, True, True]))
    other.load_state_dict(initial.state_dict())
    assert torch.equal(other(inputs), initial(inputs))
    assert torch.equal(copy.deepcopy(initial)(inputs), initial(inputs))
    double = initial.double()
    # Inputs of another precision are taken as they are.
    assert double(inputs).dtype == torch.float64
    assert double(inputs.double()).dtype == torch.float64


def test_errors():
    with pytest.raises(ValueError, match="num_states: expected at least 1, got 0"):
        Initial(0)
    with pytest.raises(TypeError, match="num_states: expected an int, got float"):
        Initial(2.0)
    with pytest.raises(ValueError, match=r"mask: expected shape \(3,\), got \(2,\)"):
        Initial(3, mask=torch.tensor([True, False]))
    with pytest.raises(TypeError, match="mask: expected bool"):
        Initial(2, mask=torch.ones(2))
    with pytest.raises(ValueError, match="mask: expected an allowed entry"):
        Initial(2, mask=torch.tensor([False, False]))
    with pytest.raises(ValueError, match="net: expected None since context=0"):
        Initial(2, net=nn.Linear(1, 2))
    with pytest.raises(ValueError, match=r"net: expected output \(\.\.\., 2\) for input \(\.\.\., 3\), got \(1, 4\)"):
        Initial(2, context=3, net=nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., 3\) since context=3, got None"):
        Initial(2, context=3)()
    with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., 3\) since context=3, got \(5, 2\)"):
        Initial(2, context=3)(torch.zeros(5, 2))
