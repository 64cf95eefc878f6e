import copy
import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroSample
from torch import nn

from pyrohmm.nn import NeuralTransition, PeriodicTransition, RegressionTransition, TiedTransition, Transition

K, B, T, C = 4, 3, 5, 2

PARTS = {
    "table": lambda **kwargs: Transition(K, **kwargs),
    "inputs": lambda **kwargs: NeuralTransition(K, context=C, hidden=8, **kwargs),
    "regression": lambda **kwargs: RegressionTransition(K, C, **kwargs),
    "shared regression": lambda **kwargs: RegressionTransition(K, C, shared=True, **kwargs),
    "periodic": lambda **kwargs: PeriodicTransition(K, 2, column=C - 1, **kwargs),
    "tied": lambda **kwargs: TiedTransition(K, range(K), **kwargs),
    "embeddings": lambda **kwargs: NeuralTransition(K, hidden=8, embedding=3, **kwargs),
}
LEFT_TO_RIGHT = torch.ones(K, K, dtype=torch.bool).triu()


@pytest.fixture(params=PARTS)
def make(request):
    return PARTS[request.param]


@pytest.fixture
def inputs():
    inputs = torch.randn(B, T, C, generator=torch.Generator().manual_seed(0))
    # Whole numbers, which can be phases of a period.
    inputs[..., -1].round_()
    return inputs


def loss(part, inputs):
    """A scalar that weighs every allowed edge differently."""
    log_probs = part.log_probs(inputs)
    weight = torch.linspace(1, 2, log_probs.numel(), dtype=log_probs.dtype).reshape(log_probs.shape)
    return (weight * log_probs.exp()).sum()


def test_forward_is_the_row_of_the_matrix(make, inputs):
    part = make()
    matrix = part.matrix(inputs)
    batch = matrix.shape[:-2]
    assert batch in ((), (B, T))
    enumerated = torch.arange(K).reshape(K, 1, 1)
    logits = part(enumerated, inputs)
    assert logits.shape == (K, B, T, K) if batch else logits.shape == (K, 1, 1, K)
    for state in range(K):
        assert torch.equal(logits[state].expand(B, T, K), matrix[..., state, :].expand(B, T, K))
    observed = torch.randint(K, (B, T))
    logits = part(observed, inputs)
    assert logits.shape == (B, T, K)
    for b in range(B):
        for t in range(T):
            assert torch.equal(logits[b, t], matrix.expand(B, T, K, K)[b, t, observed[b, t]])


def test_log_probs_are_normalised_rows(make, inputs):
    part = make()
    log_probs = part.log_probs(inputs)
    torch.testing.assert_close(log_probs, part.matrix(inputs) - part.matrix(inputs).logsumexp(-1, keepdim=True))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:-1]))


def test_matrix_by_hand(inputs):
    table = Transition(K)
    assert torch.equal(table.matrix(), table.logits)
    by_inputs = NeuralTransition(K, context=C)
    expected = by_inputs.logits + by_inputs.net(inputs[1, 2]).reshape(K, K)
    torch.testing.assert_close(by_inputs.matrix(inputs)[1, 2], expected)
    by_state = NeuralTransition(K, embedding=3)
    moved = by_state.net(by_state.source)
    matrix = by_state.matrix()
    for i in range(K):
        for j in range(K):
            expected = moved[i] @ by_state.target[j] + by_state.bias[j] + (by_state.stay[i] if i == j else 0)
            torch.testing.assert_close(matrix[i, j], expected)


def test_sticky_start(make, inputs):
    """`sticky` is what the diagonal has over the same start without it."""

    def started(sticky):
        return make(sticky=sticky, generator=torch.Generator().manual_seed(0)).matrix(inputs)

    torch.testing.assert_close(started(3.0) - started(0.0), (3 * torch.eye(K)).expand_as(started(0.0)))
    off_diagonal = started(0.0)
    assert 0 < off_diagonal.std() < 1


def test_mask(make, inputs):
    part = make(mask=LEFT_TO_RIGHT)
    enumerated = torch.arange(K).reshape(K, 1, 1)
    forbidden = ~LEFT_TO_RIGHT
    assert torch.equal(part.matrix(inputs) == -math.inf, forbidden.expand_as(part.matrix(inputs)))
    assert torch.equal(part(enumerated, inputs)[2, 0, 0] == -math.inf, forbidden[2])
    log_probs = part.log_probs(inputs)
    assert not log_probs.isnan().any()
    # The last state has one edge only, to itself.
    assert (log_probs[..., -1, -1] == 0).all()
    loss(part, inputs).backward()
    for parameter in part.parameters():
        assert parameter.grad.isfinite().all()
    if hasattr(part, "logits"):
        assert (part.logits.grad[..., forbidden] == 0).all()
        assert (part.logits.grad[..., LEFT_TO_RIGHT & (torch.arange(K) < K - 1).unsqueeze(-1)] != 0).all()


def test_mask_keeps_forbidden_edges_after_training(make, inputs):
    part = make(mask=LEFT_TO_RIGHT)
    optimiser = torch.optim.Adam(part.parameters(), lr=0.1)
    first = loss(part, inputs).item()
    for _ in range(5):
        optimiser.zero_grad()
        value = loss(part, inputs)
        value.backward()
        optimiser.step()
    assert value.item() < first
    assert torch.equal(part.matrix(inputs) == -math.inf, (~LEFT_TO_RIGHT).expand_as(part.matrix(inputs)))


def test_gradient_reaches_every_parameter(make, inputs):
    part = make()
    loss(part, inputs).backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_gradcheck(make, inputs):
    part = make(mask=LEFT_TO_RIGHT).double()
    state = torch.arange(K).reshape(K, 1, 1)

    def f(*_):
        return part(state, inputs.double()).log_softmax(-1).exp()

    assert torch.autograd.gradcheck(f, tuple(part.parameters()))


def test_generator(make, inputs):
    rng = torch.get_rng_state()
    first, second = (make(generator=torch.Generator().manual_seed(0)) for _ in range(2))
    other = make(generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(first.matrix(inputs), second.matrix(inputs))
    assert not torch.equal(first.matrix(inputs), other.matrix(inputs))
    torch.manual_seed(3)
    by_global = make().matrix(inputs)
    torch.manual_seed(3)
    assert torch.equal(make().matrix(inputs), by_global)


def test_state_dict_deepcopy_and_double(make, inputs):
    part = make(mask=LEFT_TO_RIGHT)
    other = make(mask=torch.ones(K, K, dtype=torch.bool))
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.matrix(inputs), part.matrix(inputs))
    copied = copy.deepcopy(part)
    assert torch.equal(copied.matrix(inputs), part.matrix(inputs))
    with torch.no_grad():
        next(iter(copied.parameters())).add_(1)
    assert not torch.equal(copied.matrix(inputs), part.matrix(inputs))
    part.double()
    assert part(torch.arange(K), inputs[0, :K].double()).dtype == torch.float64
    assert part(torch.arange(K), inputs[0, :K]).dtype == torch.float64


def test_everything_made_inside_follows_the_device(make, inputs):
    part = make(mask=LEFT_TO_RIGHT).to("meta")
    logits = part(torch.arange(K, device="meta").reshape(K, 1, 1), inputs.to("meta"))
    assert logits.device.type == "meta"


def test_own_net(inputs):
    net = nn.Sequential(nn.Linear(C, 2), nn.ReLU(), nn.Linear(2, K * K))
    by_inputs = NeuralTransition(K, context=C, net=net)
    assert by_inputs.net is net
    torch.testing.assert_close(by_inputs.matrix(inputs), by_inputs.logits + net(inputs).reshape(B, T, K, K))
    by_state = NeuralTransition(K, embedding=3, net=nn.Identity())
    expected = by_state.source @ by_state.target.T + torch.eye(K)
    torch.testing.assert_close(by_state.matrix(), expected)


def test_prior_on_a_table_with_particles():
    """A sampled table with a batch of its own broadcasts against an enumerated state."""
    part = Transition(K)
    part.logits = PyroSample(dist.Normal(0.0, 1.0).expand([6, 1, 1, K, K]).to_event(2))
    state = torch.arange(K).reshape(K, 1, 1, 1)
    with poutine.trace() as trace:
        logits = part(state)
    value = trace.trace.nodes["logits"]["value"]
    assert logits.shape == (K, 6, 1, 1, K)
    assert torch.equal(logits[2, 4, 0, 0], value[4, 0, 0, 2])


def test_errors():
    with pytest.raises(ValueError, match=r"mask: expected an allowed entry in every row, got none in row\(s\) \[1\]"):
        Transition(2, mask=torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 2\), got \(2,\)"):
        Transition(2, mask=torch.tensor([True, True]))
    with pytest.raises(TypeError, match="mask: expected bool"):
        NeuralTransition(2, mask=torch.ones(2, 2))
    with pytest.raises(ValueError, match="context: expected at least 0, got -1"):
        NeuralTransition(2, context=-1)
    with pytest.raises(ValueError, match="hidden: expected at least 1"):
        NeuralTransition(2, context=1, hidden=0)
    with pytest.raises(ValueError, match="embedding: expected at least 1"):
        NeuralTransition(2, embedding=0)
    with pytest.raises(ValueError, match=r"net: expected output \(\.\.\., 4\) for input \(\.\.\., 3\), got \(1, 2\)"):
        NeuralTransition(2, context=3, net=nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"net: expected output \(\.\.\., 16\) for input \(\.\.\., 16\), got \(1, 2\)"):
        NeuralTransition(2, net=nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., 3\) since context=3, got None"):
        NeuralTransition(2, context=3)(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(TypeError, match="state: expected int64"):
        Transition(2)(torch.zeros(1))
