import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

from pyrohmm.nn import AutoregressiveEmission, NeuralEmission

K, B, T, C, D = 3, 4, 5, 2, 6
OUTPUTS = {"bernoulli": D, "categorical": D, "gaussian": 2 * D, "poisson": D}
FAMILIES = sorted(OUTPUTS)
STATE = torch.arange(K).reshape(K, 1, 1)


def network(features, outputs, hidden=7):
    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def neural(family, context=C):
    return NeuralEmission(K, network(K + context, OUTPUTS[family]), family, context=context)


def autoregressive(family, context=C, order=2):
    net = network(K + context + order * D, OUTPUTS[family])
    return AutoregressiveEmission(K, net, family, dim=D, order=order, context=context)


def known(family, order=2):
    """Inputs, previous observations and observations of a batch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(B, T, C, generator=generator)
    if family == "categorical":
        return inputs, torch.randint(D, (B, T, order), generator=generator), torch.randint(D, (B, T))
    return inputs, torch.randint(2, (B, T, order * D), generator=generator).float(), torch.ones(B, T, D)


def by_hand(family, params):
    match family:
        case "bernoulli":
            return dist.Bernoulli(params.sigmoid()).to_event(1)
        case "categorical":
            return dist.Categorical(params.softmax(-1))
        case "gaussian":
            return dist.Normal(params[..., :D], params[..., D:].exp()).to_event(1)
        case "poisson":
            return dist.Poisson(params.exp()).to_event(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_neural_emission_by_hand(family):
    part = neural(family)
    inputs, _, x = known(family)
    law = part(STATE, inputs)
    assert law.batch_shape == (K, B, T)
    assert law.event_shape == part.event_shape == (() if family == "categorical" else (D,))
    assert (part.num_states, part.order) == (K, 0)
    log_prob = law.log_prob(x)
    for k in range(K):
        one_hot = torch.zeros(B, T, K)
        one_hot[..., k] = 1
        params = part.net(torch.cat([one_hot, inputs], -1))
        torch.testing.assert_close(log_prob[k], by_hand(family, params).log_prob(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_autoregressive_emission_by_hand(family):
    part = autoregressive(family)
    inputs, previous, x = known(family)
    law = part(STATE.unsqueeze(-1), inputs, previous)
    assert law.batch_shape == (K, 1, B, T)
    assert law.event_shape == part.event_shape
    assert (part.num_states, part.order) == (K, 2)
    features = previous
    if family == "categorical":
        features = torch.cat([nn.functional.one_hot(previous[..., lag], D) for lag in range(2)], -1).float()
    log_prob = law.log_prob(x)
    for k in range(K):
        one_hot = torch.zeros(B, T, K)
        one_hot[..., k] = 1
        params = part.net(torch.cat([one_hot, inputs, features], -1))
        torch.testing.assert_close(log_prob[k, 0], by_hand(family, params).log_prob(x))


def test_without_context_the_network_sees_the_state_only():
    part = neural("bernoulli", context=0)
    law = part(STATE, torch.full((B, T, 9), torch.nan), torch.full((B, T, 9), torch.nan))
    assert law.batch_shape == (K, 1, 1)
    torch.testing.assert_close(law.base_dist.logits[:, 0, 0], part.net(torch.eye(K)))


def test_inputs_and_previous_broadcast():
    part = autoregressive("bernoulli")
    inputs, previous, _ = known("bernoulli")
    law = part(STATE, inputs[:1], previous)
    torch.testing.assert_close(law.mean, part(STATE, inputs[:1].expand(B, T, C), previous).mean)
    assert part(torch.randint(K, (B, T)), inputs, previous).batch_shape == (B, T)
    assert part(torch.tensor(1), inputs[0, 0], previous[0, 0]).batch_shape == ()


class Plain(nn.Module):
    """The same network, which the part cannot take apart."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, features):
        return self.net(features)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", [STATE, torch.tensor(2), torch.arange(B * T).reshape(B, T) % K])
def test_first_layer_taken_apart_gives_the_same(state, bias):
    net = nn.Sequential(nn.Linear(K + C + 2 * D, 7, bias=bias), nn.Tanh(), nn.Linear(7, D)).double()
    apart = AutoregressiveEmission(K, net, dim=D, order=2, context=C)
    plain = AutoregressiveEmission(K, Plain(net), dim=D, order=2, context=C)
    inputs, previous, x = known("bernoulli")
    results = []
    for part in (apart, plain):
        log_prob = part(state, inputs, previous).log_prob(x.double())
        gradient = torch.autograd.grad(log_prob.sin().sum(), tuple(net.parameters()))
        results.append((log_prob, gradient))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("which", ["first layer", "whole"])
def test_hooks_of_the_network_are_called(which, hook):
    part = neural("bernoulli")
    seen = []
    target = part.net if which == "whole" else part.net[0]
    handle = getattr(target, hook)(lambda module, args, *output: seen.append(args[0].shape))
    inputs, *_ = known("bernoulli")
    hooked = part(STATE, inputs).mean
    assert seen == [(K, B, T, K + C)]
    handle.remove()
    torch.testing.assert_close(part(STATE, inputs).mean, hooked)
    assert len(seen) == 1


def test_changed_first_layers_are_not_taken_apart():
    """A reparametrised or a Bayesian first layer does more than its weight says."""
    net = network(K + C, D)
    nn.utils.parametrizations.weight_norm(net[0])
    inputs, *_ = known("bernoulli")
    part = NeuralEmission(K, net, context=C)
    one_hot = torch.eye(K)[STATE].expand(K, B, T, K)
    expected = net(torch.cat([one_hot, inputs.expand(K, B, T, C)], -1)).sigmoid()
    torch.testing.assert_close(part(STATE, inputs).mean, expected)

    bayesian = network(K + C, D)
    to_pyro_module_(bayesian)
    bayesian[0].weight = PyroSample(dist.Normal(0.0, 1.0).expand([7, K + C]).to_event(2))
    part = NeuralEmission(K, bayesian, context=C)
    with pyro.poutine.trace() as trace:
        law = part(STATE, inputs)
    assert law.batch_shape == (K, B, T)
    assert trace.trace.nodes["net.0.weight"]["type"] == "sample"
    pyro.clear_param_store()


def test_no_previous_symbol_is_the_zero_vector():
    part = autoregressive("categorical", context=0, order=1)
    law = part(STATE, previous=torch.tensor([[[-1]], [[3]]]))
    none, third = torch.zeros(D), torch.eye(D)[3]
    for row, features in ((0, none), (1, third)):
        expected = part.net(torch.cat([torch.eye(K), features.expand(K, D)], -1)).softmax(-1)
        torch.testing.assert_close(law.probs[:, row, 0], expected)


def test_a_function_as_family():
    def student(params):
        loc, log_scale, log_df = params.chunk(3, -1)
        return dist.StudentT(1 + log_df.exp(), loc, log_scale.exp()).to_event(1)

    part = AutoregressiveEmission(K, network(K + D, 3 * D), student, dim=D)
    law = part(STATE, previous=torch.zeros(B, T, D))
    assert part.event_shape == (D,)
    assert law.batch_shape == (K, B, T)
    assert law.log_prob(torch.zeros(B, T, D)).isfinite().all()
    scalar = NeuralEmission(K, nn.Linear(K, 1), lambda params: dist.Exponential(params[..., 0].exp()))
    assert scalar.event_shape == ()
    matrix = NeuralEmission(K, nn.Linear(K, 4), lambda params: dist.Delta(params.unflatten(-1, (2, 2)), event_dim=2))
    assert matrix.event_shape == (2, 2)


def test_previous_of_integer_or_bool_is_taken():
    part = autoregressive("bernoulli", context=0, order=1)
    previous = torch.randint(2, (B, T, D))
    expected = part(STATE, previous=previous.float()).mean
    for kind in (torch.bool, torch.uint8, torch.float64):
        torch.testing.assert_close(part(STATE, previous=previous.to(kind)).mean, expected)


@pytest.mark.parametrize("make", [neural, autoregressive])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_every_parameter(make, family):
    part = make(family)
    inputs, previous, x = known(family)
    part(STATE, inputs, previous).log_prob(x).logsumexp(0).sum().backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("make", [neural, autoregressive])
@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_deepcopy_double_and_device(make, family):
    part, other = make(family), make(family)
    inputs, previous, x = known(family)
    log_prob = part(STATE, inputs, previous).log_prob(x)
    other.load_state_dict(part.state_dict())
    assert torch.equal(other(STATE, inputs, previous).log_prob(x), log_prob)
    assert torch.equal(copy.deepcopy(part)(STATE, inputs, previous).log_prob(x), log_prob)
    wide = x if family == "categorical" else x.double()
    double = part.double()(STATE, inputs, previous).log_prob(wide)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), log_prob)
    with pyro.validation_enabled(False):
        law = part.to("meta")(STATE.to("meta"), inputs.to("meta"), previous.to("meta"))
        assert law.log_prob(x.to("meta")).device.type == "meta"


def test_construction_changes_nothing():
    net = nn.Sequential(nn.Linear(K, 4), nn.Dropout(0.5), nn.Linear(4, D))
    rng = torch.get_rng_state()
    part = NeuralEmission(K, net)
    assert torch.equal(torch.get_rng_state(), rng)
    assert part.net is net
    assert net.training
    assert net[1].training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("make", [neural, autoregressive])
@pytest.mark.parametrize("family", FAMILIES)
def test_missing_entries(make, family):
    """Entries are independent: each counts where it was observed, and what stands elsewhere is not read."""
    part = make(family)
    inputs, previous, x = known(family)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    law = part(STATE, inputs, previous)
    everywhere = part(STATE, inputs, previous, torch.ones_like(observed))
    torch.testing.assert_close(everywhere.log_prob(x), law.log_prob(x))
    if family == "categorical":
        expected = torch.where(observed, law.log_prob(x), 0.0)
        torch.testing.assert_close(part(STATE, inputs, previous, observed).log_prob(x), expected)
        return
    expected = torch.where(observed, law.base_dist.log_prob(x), 0.0).sum(-1)
    log_prob = part(STATE, inputs, previous, observed).log_prob(torch.where(observed, x, torch.nan))
    torch.testing.assert_close(log_prob, expected)
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters())


def test_a_function_as_family_has_no_missing_entries():
    part = NeuralEmission(K, nn.Linear(K, D), lambda params: dist.Normal(params, 1.0).to_event(1))
    with pytest.raises(ValueError, match="observed: expected None, since family is a function"):
        part(STATE, observed=torch.ones(B, T, D, dtype=torch.bool))


def test_errors():
    with pytest.raises(ValueError, match=r"net: expected to accept input \(\.\.\., 5\)"):
        NeuralEmission(K, network(K, D), context=2)
    with pytest.raises(ValueError, match=r"net: expected to accept input \(\.\.\., 15\)"):
        AutoregressiveEmission(K, network(K, D), dim=D, order=2)
    with pytest.raises(ValueError, match="family: expected 'bernoulli', 'categorical', .* got 'beta'"):
        NeuralEmission(K, network(K, D), "beta")
    with pytest.raises(ValueError, match="family: .* or a function, got 3"):
        NeuralEmission(K, network(K, D), 3)
    with pytest.raises(TypeError, match="family: expected a function that returns a Pyro distribution, got Tensor"):
        NeuralEmission(K, network(K, D), torch.exp)
    with pytest.raises(ValueError, match=r"family: expected batch shape \(3,\) .* got \(3, 6\); .* needs .to_event"):
        NeuralEmission(K, network(K, D), lambda params: dist.Normal(params, 1.0))
    with pytest.raises(ValueError, match="net: expected 2 D outputs .* got 5"):
        NeuralEmission(K, network(K, 5), "gaussian")
    for family, outputs, size in (("bernoulli", 5, 5), ("categorical", 5, 5), ("gaussian", 10, 5)):
        with pytest.raises(ValueError, match=f"dim: expected {size}, .* got {D}"):
            AutoregressiveEmission(K, network(K + D, outputs), family, dim=D)
    with pytest.raises(ValueError, match="order: expected at least 1, got 0"):
        AutoregressiveEmission(K, network(K, D), dim=D, order=0)
    with pytest.raises(TypeError, match="net: expected a torch.nn.Module, got str"):
        NeuralEmission(K, "net")


def test_forward_errors():
    part = autoregressive("bernoulli")
    inputs, previous, _ = known("bernoulli")
    with pytest.raises(ValueError, match=r"previous: expected shape \(\.\.\., 12\), the last 2 observations, got None"):
        part(STATE, inputs)
    with pytest.raises(ValueError, match=r"previous: expected shape \(\.\.\., 12\), .* got \(4, 5, 6\)"):
        part(STATE, inputs, previous[..., :D])
    with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., 2\) since context=2, got None"):
        part(STATE, previous=previous)
    with pytest.raises(ValueError, match=r"previous: expected shape \(\.\.\., 2\), .* got \(4, 5, 12\)"):
        autoregressive("categorical")(STATE, inputs, previous)
    with pytest.raises(TypeError, match="state: expected int64"):
        part(STATE.float(), inputs, previous)
