import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from pyrohmm.models import HMM
from pyrohmm.nn import (
    LinearAutoregressiveEmission,
    LinearRegressionEmission,
    LogisticRegressionEmission,
    PoissonRegressionEmission,
)
from pyrohmm.nn.part import EMPTY

K, D, C, M = 2, 3, 2, 80
STATE = torch.arange(K).unsqueeze(-1)
COVARIANCES = ["diag", "spherical", "full", "tied"]
GLMS = {"logistic": LogisticRegressionEmission, "poisson": PoissonRegressionEmission}


def inputs_and_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(M, C, generator=generator, dtype=torch.float64)
    return inputs, torch.rand(M, K, generator=generator, dtype=torch.float64)


def data_of(part, inputs, seed=0):
    """Observations in state 0, from parameters away from the start."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in part.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        return part(torch.tensor(0), inputs).sample()


def linear(covariance="diag", **kwargs):
    return LinearRegressionEmission(K, D, C, covariance, generator=torch.Generator().manual_seed(0), **kwargs).double()


def objective(part, x, weights, inputs, observed=None):
    log_prob = part(STATE, inputs, observed=observed).log_prob(x)
    return (weights.mT * log_prob).sum() + part.log_prior()


def fit(part, x, weights, inputs, steps=1, observed=None):
    for _ in range(steps):
        events = part.maximize(part.expected_statistics(x, weights, inputs, observed=observed))
    return events


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_linear_values(covariance):
    part, (inputs, _) = linear(covariance), inputs_and_weights()
    x = data_of(part, inputs)
    log_prob = part(STATE, inputs).log_prob(x).detach()
    for k in range(K):
        law = part(torch.tensor(k), torch.zeros(C).double())
        matrix = law.covariance_matrix if hasattr(law, "covariance_matrix") else law.variance.diag()
        mean = inputs @ part.weight[k].mT + part.loc[k]
        noise = stats.multivariate_normal(np.zeros(D), matrix.detach())
        torch.testing.assert_close(log_prob[k], torch.as_tensor(noise.logpdf((x - mean).detach())))


def test_glm_values():
    inputs, _ = inputs_and_weights()
    for name, make in GLMS.items():
        part = make(K, D, C).double()
        x = data_of(part, inputs)
        log_prob = part(STATE, inputs).log_prob(x).detach()
        eta = (part.weight.unsqueeze(1) @ inputs.unsqueeze(-1)).squeeze(-1) + part.bias.unsqueeze(1)
        eta = eta.detach().numpy()
        law = stats.bernoulli(special.expit(eta)) if name == "logistic" else stats.poisson(np.exp(eta))
        torch.testing.assert_close(log_prob, torch.as_tensor(law.logpmf(x.numpy()).sum(-1)))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_least_squares(covariance):
    part, (inputs, weights) = linear(covariance), inputs_and_weights()
    x = data_of(part, inputs)
    fit(part, x, weights, inputs)
    design = np.concatenate([inputs, np.ones((M, 1))], -1)
    for k in range(K):
        root = weights[:, k].sqrt().numpy()[:, None]
        expected, *_ = np.linalg.lstsq(root * design, root * x.numpy(), rcond=None)
        np.testing.assert_allclose(part.weight[k].detach(), expected[:C].T, rtol=1e-9)
        np.testing.assert_allclose(part.loc[k].detach(), expected[C], rtol=1e-9)


@pytest.mark.parametrize("prior", [None, 0.4])
@pytest.mark.parametrize("name", GLMS)
def test_glm_against_scipy(name, prior):
    inputs, weights = inputs_and_weights()
    part = GLMS[name](K, D, C, prior=None if prior is None else torch.distributions.Normal(0.1, prior)).double()
    x = data_of(copy.deepcopy(part), inputs)
    fit(part, x, weights, inputs, steps=200)
    design = np.concatenate([inputs, np.ones((M, 1))], -1)
    for k in range(K):
        for d in range(D):
            y, w = x[:, d].numpy(), weights[:, k].numpy()

            def loss(beta, y=y, w=w):
                eta = design @ beta
                log_partition = np.logaddexp(0, eta) if name == "logistic" else np.exp(eta)
                penalty = 0.0 if prior is None else 0.5 * (((beta[:C] - 0.1) / prior) ** 2).sum()
                return -(w * (y * eta - log_partition)).sum() + penalty

            best = optimize.minimize(loss, np.zeros(C + 1), tol=1e-12)
            got = torch.cat([part.weight[k, d], part.bias[k, d : d + 1]]).detach().numpy()
            assert loss(got) <= best.fun + 1e-8
            np.testing.assert_allclose(got, best.x, atol=1e-4)


def starts(name, scale):
    generator = torch.Generator().manual_seed(3)
    part = GLMS[name](K, D, C).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return part


@pytest.mark.parametrize("name", GLMS)
@pytest.mark.parametrize("scale", [0.1, 2.0, 6.0])
def test_never_falls_from_far_away(name, scale):
    """Where Newton's own step would overshoot."""
    inputs, weights = inputs_and_weights()
    x = data_of(GLMS[name](K, D, C).double(), inputs)
    part = starts(name, scale)
    values = [objective(part, x, weights, inputs).item()]
    for _ in range(200):
        fit(part, x, weights, inputs)
        values.append(objective(part, x, weights, inputs).item())
    assert all(new >= old - 1e-9 * abs(old) for old, new in pairwise(values))
    near = GLMS[name](K, D, C).double()
    fit(near, x, weights, inputs, steps=200)
    assert values[-1] == pytest.approx(objective(near, x, weights, inputs).item(), rel=1e-6)


@pytest.mark.parametrize("name", [*COVARIANCES, *GLMS])
def test_missing_entries(name):
    inputs, weights = inputs_and_weights()
    part = GLMS[name](K, D, C).double() if name in GLMS else linear(name)
    x = data_of(copy.deepcopy(part), inputs)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    poisoned = torch.where(observed, x, torch.nan)
    fit(
        part, poisoned, weights, inputs, steps=300 if name in GLMS or name in ("full", "tied") else 1, observed=observed
    )
    parameters = list(part.parameters())
    value = objective(part, poisoned, weights, inputs, observed)
    gradient = torch.autograd.grad(value, parameters)
    assert max(grad.abs().max() for grad in gradient) < 1e-4
    if name in ("diag", *GLMS):
        # Entries are independent: each is fitted from the steps at which it was observed.
        for d in range(D):
            rows = observed[:, d]
            alone = GLMS[name](K, 1, C) if name in GLMS else LinearRegressionEmission(K, 1, C)
            fit(alone.double(), x[rows, d : d + 1], weights[rows], inputs[rows], steps=300)
            torch.testing.assert_close(part.weight[:, d], alone.weight[:, 0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [*COVARIANCES, *GLMS])
def test_all_observed_is_no_mask(name):
    inputs, weights = inputs_and_weights()
    part = GLMS[name](K, D, C).double() if name in GLMS else linear(name)
    x = data_of(part, inputs)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    plain = part.expected_statistics(x, weights, inputs)
    for key, value in part.expected_statistics(x, weights, inputs, observed=everywhere).items():
        torch.testing.assert_close(value, plain[key])
    law = part(STATE, inputs, observed=everywhere)
    torch.testing.assert_close(law.log_prob(x), part(STATE, inputs).log_prob(x))


@pytest.mark.parametrize("name", ["diag", "full"])
def test_batches_with_and_without_missing_entries_add_up(name):
    inputs, weights = inputs_and_weights()
    part = linear(name)
    x = data_of(part, inputs)
    observed = torch.ones_like(x, dtype=torch.bool)
    observed[:20, 1] = False
    whole = part.expected_statistics(x, weights, inputs, observed=observed)
    first = part.expected_statistics(x[:40], weights[:40], inputs[:40], observed=observed[:40])
    second = part.expected_statistics(x[40:], weights[40:], inputs[40:], observed=observed[40:])
    for key, value in whole.items():
        torch.testing.assert_close(first[key] + second[key], value)


@pytest.mark.parametrize("name", [*COVARIANCES, *GLMS])
def test_singular_designs(name):
    """Inputs that are copies of each other or do not vary: the fit is that without them, and nothing is infinite."""
    inputs, weights = inputs_and_weights()
    part, alone = (
        GLMS[name](K, D, width) if name in GLMS else LinearRegressionEmission(K, D, width, name) for width in (4, 1)
    )
    part, alone = part.double(), alone.double()
    x = data_of(copy.deepcopy(alone), inputs[:, :1])
    one = inputs[:, :1]
    dependent = torch.cat([one, 1e3 * one, torch.zeros_like(one), torch.full_like(one, 2.0)], -1)
    steps = 200 if name in GLMS else 1
    fit(part, x, weights, dependent, steps)
    fit(alone, x, weights, one, steps)
    assert all(parameter.isfinite().all() for parameter in part.parameters())
    assert part.weight[..., 2].abs().max() < 1e-12
    torch.testing.assert_close(part(STATE, dependent).log_prob(x), alone(STATE, one).log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GLMS)
def test_best_parameters_at_infinity_stay_finite(name):
    """Nothing but zeros, and an input that says exactly where the ones are."""
    inputs, weights = inputs_and_weights()
    x = torch.zeros(M, D, dtype=torch.float64)
    x[:, 1] = (inputs[:, 0] > 0).double()
    part = GLMS[name](K, D, C).double()
    values = []
    for _ in range(500):
        fit(part, x, weights, inputs)
        values.append(objective(part, x, weights, inputs).item())
    assert np.isfinite(values).all()
    assert (np.diff(values) >= -1e-12).all()
    assert all(parameter.abs().max() < 1e3 for parameter in part.parameters())


def test_sums_say_the_same_wherever_the_parameters_are():
    """As online EM needs it, which mixes those of different steps."""
    inputs, weights = inputs_and_weights()
    part = LogisticRegressionEmission(K, D, C).double()
    x = data_of(copy.deepcopy(part), inputs)
    statistics = part.expected_statistics(x, weights, inputs)
    part.maximize(statistics)
    once = part.weight.clone()
    data_of(part, inputs)
    part.maximize(statistics)
    torch.testing.assert_close(part.weight, once)


def test_large_inputs_do_not_overflow():
    inputs, weights = inputs_and_weights()
    part = PoissonRegressionEmission(K, D, C).double()
    x = data_of(copy.deepcopy(part), inputs)
    fit(part, x, weights, inputs, steps=50)
    wide = PoissonRegressionEmission(K, D, C).double()
    fit(wide, x, weights, 1e4 * inputs, steps=50)
    torch.testing.assert_close(1e4 * wide.weight, part.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["diag", "full", *GLMS])
def test_frozen_parts(name):
    """What is left is at its maximum given what is frozen."""
    inputs, weights = inputs_and_weights()
    for frozen in ("weight", "bias"):
        generator = torch.Generator().manual_seed(0)
        part = GLMS[name](K, D, C, generator=generator).double() if name in GLMS else linear(name)
        x = data_of(part, inputs)
        key = "loc" if frozen == "bias" and name not in GLMS else frozen
        part.get_parameter(key).requires_grad_(False)
        before = part.get_parameter(key).clone()
        fit(part, x, weights, inputs, steps=100 if name in GLMS else 1)
        assert torch.equal(part.get_parameter(key), before)
        free = [parameter for parameter in part.parameters() if parameter.requires_grad]
        gradient = torch.autograd.grad(objective(part, x, weights, inputs), free)
        assert max(grad.abs().max() for grad in gradient) < 1e-6


@pytest.mark.parametrize("name", ["diag", *GLMS])
def test_one_state_one_entry_one_step(name):
    make = GLMS.get(name, LinearRegressionEmission)
    part = make(1, 1, 1)
    events = part.maximize(part.expected_statistics(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1)))
    assert not events[EMPTY].any()
    assert all(parameter.isfinite().all() for parameter in part.parameters())
    assert part(torch.tensor(0), torch.ones(1)).log_prob(torch.ones(1)).isfinite()


def test_autoregression_recovers_the_coefficients():
    """A rotation, from one long sequence."""
    turn = 0.95 * torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    truth = HMM(LinearAutoregressiveEmission(1, 2, loc=[[1.0, 0.0]], weight=turn, scale=0.1))
    data = truth.simulate(1, 2000, seed=0)
    x = data.x[0].double()
    previous = torch.cat([torch.zeros(1, 2), x[:-1]]).double()
    part = LinearAutoregressiveEmission(1, 2).double()
    part.maximize(part.expected_statistics(x, torch.ones(2000, 1), previous=previous))
    torch.testing.assert_close(part.weight[0].float(), turn, atol=0.03, rtol=0)
    torch.testing.assert_close(part.log_scale.exp().float(), torch.full((1, 2), 0.1), rtol=0.1, atol=0)


def test_newest_comes_first_and_inputs_last():
    weight = torch.tensor([[[1.0, 10.0, 100.0]]])
    part = LinearAutoregressiveEmission(1, 1, 2, context=1, weight=weight, loc=[[0.0]])
    law = part(torch.tensor(0), torch.tensor([3.0]), torch.tensor([1.0, 2.0]))
    assert law.mean.item() == 1 + 20 + 300


def test_far_offsets_lose_no_digits():
    inputs, _ = inputs_and_weights()
    x = 1e8 + inputs[:, :1] + 0.1 * inputs[:, 1:]
    part = LinearRegressionEmission(1, 1, 1, loc=torch.tensor([[1e8]], dtype=torch.float64)).double()
    fit(part, x, torch.ones(M, 1), inputs[:, :1])
    design = np.stack([inputs[:, 0], np.ones(M)], -1)
    expected, *_ = np.linalg.lstsq(design, (x[:, 0] - 1e8).numpy(), rcond=None)
    residual = (x[:, 0] - 1e8).numpy() - design @ expected
    np.testing.assert_allclose(part.weight.item(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(part.log_scale.exp().item(), residual.std(), rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "autoregressive", *GLMS])
def test_in_a_model(name):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 12, C, generator=generator)
    emission = {
        "linear": lambda: LinearRegressionEmission(K, D, C, weight=0.5),
        "autoregressive": lambda: LinearAutoregressiveEmission(K, D, 2, context=C, weight=0.1),
        "logistic": lambda: LogisticRegressionEmission(K, D, C, weight=0.5),
        "poisson": lambda: PoissonRegressionEmission(K, D, C, weight=0.5),
    }[name]()
    model = HMM(emission)
    data = model.simulate(4, 12, inputs=inputs, seed=0)
    log_prob = model.log_prob(data)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    for key, parameter in emission.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


def test_errors():
    with pytest.raises(ValueError, match="context: expected at least 1, got 0"):
        LinearRegressionEmission(K, D, 0)
    with pytest.raises(ValueError, match=r"weight: expected a shape that broadcasts to \(2, 3, 2\), got \(5,\)"):
        PoissonRegressionEmission(K, D, C, weight=torch.zeros(5))
    with pytest.raises(TypeError, match="prior: expected a Normal, got Gamma"):
        LogisticRegressionEmission(K, D, C, prior=torch.distributions.Gamma(1.0, 1.0))
    with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., 2\) since context=2, got None"):
        linear()(STATE)
    with pytest.raises(ValueError, match=r"previous: expected shape \(\.\.\., 6\), the last 2 observations, got None"):
        LinearAutoregressiveEmission(K, D, 2)(STATE)
    with pytest.raises(TypeError, match="state: expected int64"):
        linear()(STATE.float(), torch.zeros(C))
