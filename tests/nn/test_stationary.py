import copy
import io
import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from pyro.optim import Adam

from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn import (
    BernoulliEmission,
    NeuralTransition,
    PeriodicTransition,
    StationaryInitial,
    Transition,
    banded,
    left_to_right,
)
from pyrohmm.nn.stationary import stationary_law

K = 4


def by_eigenvector(matrix):
    """The left eigenvector of the eigenvalue 1."""
    values, vectors = torch.linalg.eig(matrix.mT)
    vector = vectors[:, (values - 1).abs().argmin()].real
    return vector / vector.sum()


@pytest.mark.parametrize("mask", [None, banded(K, 1), left_to_right(K, stay=False, cyclic=True)])
def test_is_the_eigenvector(mask):
    transition = Transition(K, mask).double()
    law = StationaryInitial(transition)()
    torch.testing.assert_close(law.exp(), by_eigenvector(transition.log_probs().exp()))
    torch.testing.assert_close(law.logsumexp(-1).item(), 0.0)


def test_states_that_are_left_for_good():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    transition = Transition(K, mask).double()
    law = StationaryInitial(transition)()
    matrix = transition.log_probs().exp()
    torch.testing.assert_close(law.exp() @ matrix, law.exp())
    assert law.isfinite().tolist() == [False, False, True, True]
    law[2:].square().sum().backward()
    assert transition.logits.grad.isfinite().all() and transition.logits.grad.abs().sum() > 0
    assert StationaryInitial(Transition(K, left_to_right(K)))().exp().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_several_sets_of_states_that_are_never_left():
    with pytest.raises(ValueError, match=r"one set of states that is never left.*got several, of the states \[1, 2\]"):
        StationaryInitial(Transition(3, torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]]).bool()))


@pytest.mark.parametrize("mask", [None, banded(K, 1)])
def test_gradcheck(mask):
    transition = Transition(K, mask).double()
    initial = StationaryInitial(transition)
    assert torch.autograd.gradcheck(lambda *_: initial().exp(), tuple(transition.parameters()))
    assert torch.autograd.gradgradcheck(lambda *_: initial().exp(), tuple(transition.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precise_where_states_hardly_change(dtype):
    """Odds of 1e-13 for leaving, which 1 - p cannot tell from 0 in float32: each entry keeps its digits."""
    rare = torch.tensor([[0.0, -30.0, -500.0], [-31.0, 0.0, -30.0], [-500.0, -29.0, 0.0]], dtype=dtype)
    law = stationary_law(rare.log_softmax(-1))
    # Detailed balance between neighbours: pi_i / pi_j = p_ji / p_ij.
    torch.testing.assert_close(law - law[1], torch.tensor([-1.0, 0.0, -1.0], dtype=dtype), rtol=0, atol=1e-5)


def test_never_nan():
    extreme = torch.tensor([[0.0, -3000.0], [-2000.0, 0.0]], requires_grad=True)
    law = stationary_law(extreme.log_softmax(-1))
    torch.testing.assert_close(law, torch.tensor([0.0, -1000.0]))
    law.sum().backward()
    assert extreme.grad.isfinite().all()
    assert stationary_law(torch.zeros(1, 1)).tolist() == [0.0]


def test_inputs_are_those_of_the_first_step():
    inputs = torch.randn(5, 1, 2, dtype=torch.float64)
    inputs[..., 1].round_()
    for transition in (NeuralTransition(K, context=2), PeriodicTransition(K, 3, column=1)):
        initial = StationaryInitial(transition.double())
        law = initial(inputs)
        assert law.shape == (5, 1, K)
        torch.testing.assert_close(law[3, 0].exp(), by_eigenvector(transition.log_probs(inputs)[3, 0].exp()))
        with pytest.raises(ValueError, match="inputs"):
            initial()


def model_of(transition):
    return HMM(BernoulliEmission(K, 2), StationaryInitial(transition), transition)


def test_the_transition_is_one_part_of_the_model():
    model = model_of(Transition(K))
    assert [name for name, _ in model.named_parameters()] == ["transition.logits", "emission.logits"]
    assert list(model.state_dict()) == ["transition.logits", "emission.logits"]
    assert model.num_free_parameters == K * (K - 1) + 2 * K
    assert model.initial.num_states == K and model.initial.num_free_parameters == 0
    buffer = io.BytesIO()
    torch.save(model, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    for other in (copy.deepcopy(model), loaded, copy.deepcopy(model).double()):
        assert other.initial.transition is other.transition
        with torch.no_grad():
            other.transition.logits[0, 1] += 1
        assert not torch.allclose(other.initial().float(), model.initial())
    assert copy.deepcopy(model).double().initial().dtype == torch.float64


def test_it_follows_the_transition_when_relabelled():
    model, order = model_of(Transition(K, banded(K, 1))), [2, 0, 3, 1]
    before = model.initial()
    model.relabel(order)
    torch.testing.assert_close(model.initial(), before[order])
    with pytest.raises(ValueError, match="permutation"):
        model.initial.relabel([0, 0, 1, 2])


def test_transitions_with_a_prior_of_pyro_are_sampled_once():
    model = model_of(Transition(K))
    model.transition.logits = PyroSample(dist.Normal(0.0, 1.0).expand([K, K]).to_event(2))
    data = Sequences(torch.ones(5, 3, 2))
    trace = poutine.trace(model).get_trace(data)
    assert [name for name in trace.stochastic_nodes if "logits" in name] == ["transition.logits"]
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    svi = SVI(model, AutoNormal(model), Adam({"lr": 0.05}), elbo)
    losses = [svi.step(data) for _ in range(20)]
    assert all(math.isfinite(loss) for loss in losses) and sum(losses[-5:]) < sum(losses[:5])


def test_errors():
    with pytest.raises(TypeError, match=r"transition: expected a part with a method log_probs\(inputs\), got Linear"):
        StationaryInitial(torch.nn.Linear(2, 2))
    initial = StationaryInitial(Transition(K))
    for other in (None, Transition(K)):
        with pytest.raises(ValueError, match="initial: expected a law that depends on the model's own transition="):
            HMM(BernoulliEmission(K, 2), initial, other)
