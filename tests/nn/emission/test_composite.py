import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from torch import nn

from pyrohmm.models import HMM
from pyrohmm.nn import (
    AutoregressiveEmission,
    BernoulliEmission,
    CategoricalEmission,
    CompositeEmission,
    GaussianEmission,
    NeuralEmission,
    PoissonEmission,
)
from pyrohmm.nn.emission.composite import Streams
from tests.nn.emission.cases import draw, make

K = 2
STATE = torch.arange(K).unsqueeze(-1)


def alone(part, x, observed=None):
    """The log-densities of the streams of the case, each part by itself on its own entries."""
    gaussian, categorical, bernoulli = part.streams
    cut = (lambda columns: None) if observed is None else (lambda columns: observed[:, columns])
    return (
        gaussian(STATE, observed=cut(slice(0, 2))).log_prob(x[:, :2])
        + categorical(STATE, observed=cut(2)).log_prob(x[:, 2].long())
        + bernoulli(STATE, observed=cut(slice(3, 4))).log_prob(x[:, 3:])
    )


def test_values():
    part, (x, _) = make("composite"), draw("composite")
    torch.testing.assert_close(part(STATE).log_prob(x), alone(part, x))


def test_missing_entries():
    part, (x, weights) = make("composite"), draw("composite")
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    poisoned = torch.where(observed, x, torch.nan)
    torch.testing.assert_close(part(STATE, observed=observed).log_prob(poisoned), alone(part, x, observed))
    statistics = part.expected_statistics(poisoned, weights, observed=observed)
    seen = weights * observed[:, 2:3]
    torch.testing.assert_close(statistics["1.counts"].sum(-1), seen.sum(0))


def test_statistics_are_those_of_the_streams():
    part, (x, weights) = make("composite"), draw("composite")
    statistics = part.expected_statistics(x, weights)
    own = part.streams[0].expected_statistics(x[:, :2], weights)
    for name, value in own.items():
        assert torch.equal(statistics[f"0.{name}"], value)
    assert {name.split(".")[0] for name in statistics} == {"0", "1", "2"}


def test_more_than_ten_streams_keep_their_statistics_apart():
    part = CompositeEmission([PoissonEmission(1, 1) for _ in range(12)])
    x = torch.arange(1.0, 13.0).expand(3, 12)
    part.maximize(part.expected_statistics(x, torch.ones(3, 1)))
    torch.testing.assert_close(part(torch.tensor(0)).mean, x[0])


def test_streams_read_inputs_and_their_own_past():
    net = nn.Linear(K + 2 + 2 * 2, 4)
    streams = [
        CategoricalEmission(K, 3),
        AutoregressiveEmission(K, net, "gaussian", dim=2, order=2, context=2),
        NeuralEmission(K, nn.Linear(K + 2, 1), context=2),
    ]
    part = CompositeEmission(streams)
    assert (part.order, part.event_shape, part.closed_form) == (2, (4,), False)
    inputs, previous = torch.randn(5, 2), torch.randn(5, 8)
    x = torch.cat([torch.tensor([[0.0], [2.0], [1.0], [1.0], [0.0]]), torch.randn(5, 2), torch.ones(5, 1)], -1)
    own_past = torch.cat([previous[:, 1:3], previous[:, 5:7]], -1)
    expected = (
        streams[0](STATE).log_prob(x[:, 0].long())
        + streams[1](STATE, inputs, own_past).log_prob(x[:, 1:3])
        + streams[2](STATE, inputs).log_prob(x[:, 3:])
    )
    torch.testing.assert_close(part(STATE, inputs, previous).log_prob(x), expected)


def test_features_have_unit_spread():
    part, (x, _) = make("composite"), draw("composite")
    x[:, 0] *= 1e4
    features = part.features(x)
    assert features.shape == (len(x), 2 + 5 + 1)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(8).double())
    x[:] = x[:1].clone()
    assert part.features(x).isfinite().all()


def test_a_sampled_parameter_of_a_stream():
    gaussian = GaussianEmission(K, 2)
    part = CompositeEmission([gaussian, PoissonEmission(K, 1)])
    part.streams[0].loc = PyroSample(dist.Normal(0.0, 1.0).expand([K, 2]).to_event(2))
    with pyro.poutine.trace() as trace:
        law = part(torch.arange(K))
    assert torch.equal(law.mean[:, :2], trace.trace.nodes["streams.0.loc"]["value"])
    pyro.clear_param_store()


def test_draws_and_expansion():
    law = Streams([dist.Normal(torch.zeros(3, 1, 2), 1.0).to_event(1), dist.Categorical(torch.ones(4, 5))])
    assert (law.batch_shape, law.event_shape) == ((3, 4), (3,))
    x = law.sample((6,))
    assert (x.shape, x.dtype) == ((6, 3, 4, 3), torch.float32)
    wide = law.expand((2, 3, 4))
    assert wide.sample().shape == (2, 3, 4, 3)
    torch.testing.assert_close(wide.log_prob(x[0]), law.log_prob(x[0]).expand(2, 3, 4))


def test_in_a_model():
    emission = CompositeEmission([GaussianEmission(K, 2), CategoricalEmission(K, 5), BernoulliEmission(K, 1)])
    model = HMM(emission)
    data = model.simulate(3, 10, seed=0)
    assert data.event_shape == (4,)
    log_prob = model.log_prob(data)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in emission.parameters())


def test_errors():
    with pytest.raises(ValueError, match="streams: expected at least one emission, got none"):
        CompositeEmission([])
    with pytest.raises(TypeError, match=r"streams: expected emissions of pyrohmm.nn, got Linear as number 1"):
        CompositeEmission([PoissonEmission(K, 1), nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="streams: expected 2 states, like the first, got 3 in number 1"):
        CompositeEmission([PoissonEmission(2, 1), PoissonEmission(3, 1)])
    symbols = AutoregressiveEmission(K, nn.Linear(K + 3, 3), "categorical", dim=3)
    with pytest.raises(ValueError, match="streams: expected an autoregressive stream to be one of vectors"):
        CompositeEmission([symbols])
