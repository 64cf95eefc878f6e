"""Families of independent entries, and counts: densities and maximum likelihood against scipy, draws, and programs."""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy import optimize, stats

from pyrohmm import nn
from pyrohmm.data import Sequences
from pyrohmm.infer import fit_em
from pyrohmm.models import HMM
from tests.nn.emission.cases import ALONE, CASES, K, draw, make

every_case = pytest.mark.parametrize("name", ALONE)


def inflated(logpmf, gate):
    return lambda x: np.where(x == 0, np.log(gate + (1 - gate) * np.exp(logpmf(0))), np.log1p(-gate) + logpmf(x))


class Family(NamedTuple):
    """How to make a part with one state, and scipy's log-density of its constrained parameters."""

    part: type
    truth: dict
    logpdf: object


FAMILIES = {
    "negative binomial": Family(
        nn.NegativeBinomialEmission,
        {"mean": 6.0, "concentration": 2.5},
        lambda x, mean, concentration: stats.nbinom.logpmf(x, concentration, concentration / (concentration + mean)),
    ),
    "zero-inflated poisson": Family(
        nn.ZeroInflatedPoissonEmission,
        {"rate": 3.0, "gate": 0.4},
        lambda x, rate, gate: inflated(lambda x: stats.poisson.logpmf(x, rate), gate)(x),
    ),
    "zero-inflated negative binomial": Family(
        nn.ZeroInflatedNegativeBinomialEmission,
        {"mean": 6.0, "concentration": 2.5, "gate": 0.3},
        lambda x, mean, concentration, gate: inflated(
            lambda x: stats.nbinom.logpmf(x, concentration, concentration / (concentration + mean)), gate
        )(x),
    ),
    "exponential": Family(nn.ExponentialEmission, {"rate": 2.0}, lambda x, rate: stats.expon.logpdf(x, scale=1 / rate)),
    "gamma": Family(
        nn.GammaEmission,
        {"mean": 5.0, "concentration": 3.0},
        lambda x, mean, concentration: stats.gamma.logpdf(x, concentration, scale=mean / concentration),
    ),
    "log-normal": Family(
        nn.LogNormalEmission,
        {"loc": 1.0, "scale": 0.5},
        lambda x, loc, scale: stats.lognorm.logpdf(x, scale, scale=np.exp(loc)),
    ),
    "beta": Family(
        nn.BetaEmission,
        {"mean": 0.3, "concentration": 4.0},
        lambda x, mean, concentration: stats.beta.logpdf(x, concentration * mean, concentration * (1 - mean)),
    ),
    "von mises": Family(
        nn.VonMisesEmission,
        {"loc": 2.0, "concentration": 1.7},
        lambda x, loc, concentration: stats.vonmises.logpdf(x, concentration, loc=loc),
    ),
    "student": Family(
        nn.StudentTEmission,
        {"loc": 2.0, "scale": 3.0, "degrees": 4.0},
        lambda x, loc, scale, degrees: stats.t.logpdf(x, degrees, loc, scale),
    ),
}
every_family = pytest.mark.parametrize("name", FAMILIES)

# Where a parameter is stored, and how it is read.
STORED = {
    "mean": ("log_mean", torch.exp),
    "concentration": ("log_concentration", torch.exp),
    "rate": ("log_rate", torch.exp),
    "gate": ("gate_logits", torch.sigmoid),
    "loc": ("loc", torch.Tensor.double),
    "scale": ("log_scale", torch.exp),
    "degrees": ("log_degrees", torch.exp),
}


def constrained(part):
    """The parameters of a part with one state and one entry, by the names of its arguments."""
    found = {}
    for name, (stored, read) in STORED.items():
        if isinstance(part, nn.BetaEmission) and name == "mean":
            stored, read = "mean_logits", torch.sigmoid
        if hasattr(part, stored):
            found[name] = read(getattr(part, stored).detach()).item()
    return found


def true_part(name, dim=1):
    family = FAMILIES[name]
    values = {key: torch.full((1, dim), value).double() for key, value in family.truth.items()}
    return family.part(1, dim, **values).double()


def sample(name, num, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return true_part(name)(torch.tensor(0)).sample((num,))


def fit(part, x, steps):
    for _ in range(steps):
        part.maximize(part.expected_statistics(x, torch.ones(len(x), 1)))
    return constrained(part)


@every_family
def test_density_is_that_of_scipy(name):
    x = sample(name, 200)
    expected = FAMILIES[name].logpdf(x[:, 0].numpy(), **FAMILIES[name].truth)
    log_prob = true_part(name)(torch.tensor(0)).log_prob(x).detach()
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6, atol=1e-6)


@every_family
def test_maximum_likelihood(name):
    """No simplex search around the result finds anything better."""
    x = sample(name, 300)
    part = FAMILIES[name].part(1, 1, generator=torch.Generator().manual_seed(1)).double()
    found = fit(part, x, 300)

    def loss(values):
        with np.errstate(all="ignore"):
            return -FAMILIES[name].logpdf(x[:, 0].numpy(), **dict(zip(found, values, strict=True))).mean()

    start = np.array(list(found.values()))
    best = optimize.minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    np.testing.assert_allclose(start, best.x, rtol=2e-5)
    assert loss(start) <= best.fun + 1e-11


@every_family
def test_recovers_what_it_drew(name):
    x = sample(name, 20000)
    found = fit(FAMILIES[name].part(1, 1, noise=0.0).double(), x, 100)
    for key, value in FAMILIES[name].truth.items():
        assert found[key] == pytest.approx(value, rel=0.1), key


def test_fits_of_scipy():
    x = sample("gamma", 500)
    found = fit(nn.GammaEmission(1, 1).double(), x, 1)
    shape, _, scale = stats.gamma.fit(x.numpy(), floc=0)
    assert found == pytest.approx({"mean": shape * scale, "concentration": shape}, rel=1e-6)
    x = sample("beta", 500)
    found = fit(nn.BetaEmission(1, 1).double(), x, 1)
    a, b, _, _ = stats.beta.fit(x.numpy(), floc=0, fscale=1)
    assert found == pytest.approx({"mean": a / (a + b), "concentration": a + b}, rel=1e-6)
    x = sample("von mises", 500)
    found = fit(nn.VonMisesEmission(1, 1).double(), x, 1)
    concentration, loc, _ = stats.vonmises.fit(x.numpy(), fscale=1)
    assert found == pytest.approx({"loc": loc, "concentration": concentration}, rel=1e-6)
    x = sample("student", 500)
    found = fit(nn.StudentTEmission(1, 1).double(), x, 300)
    degrees, loc, scale = stats.t.fit(x.numpy())
    assert found == pytest.approx({"loc": loc, "scale": scale, "degrees": degrees}, rel=1e-3)


@every_case
def test_data_of_one_kind_only(name):
    """Whatever a state claims, nothing is infinite or NaN, in float32 too."""
    if name == "categorical":
        pytest.skip("a symbol is a symbol")
    x, weights = draw(name)
    for value in (x[0], x[:1].expand(2, -1), torch.zeros_like(x[:2]), torch.ones_like(x[:2])):
        steps = value.reshape(-1, x.shape[-1])
        part = make(name).float()
        for _ in range(3):
            part.maximize(part.expected_statistics(steps.float(), weights[: len(steps)].float()))
        assert all(parameter.isfinite().all() for parameter in part.parameters())
        support = part(torch.tensor(0)).support
        if support.check(steps.float()).all():
            assert part(torch.arange(K).unsqueeze(-1)).log_prob(steps.float()).isfinite().all()


@every_case
def test_in_a_program(name):
    """What a model simulates has a finite probability, with a finite gradient for every parameter."""
    model = HMM(make(name).float())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        data = model.simulate(4, 6)
    assert isinstance(data, Sequences)
    log_prob = model.log_prob(data)
    assert log_prob.shape == (4,) and log_prob.isfinite().all()
    log_prob.sum().backward()
    for key, parameter in model.emission.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


@every_case
def test_collapsed_elbo_and_gradient_equal_the_sequential_ones(name):
    x, _ = draw(name, 12)
    data = Sequences(x.reshape(3, 4, *x.shape[1:]), torch.tensor([4, 1, 3]))
    found = []
    for elbo, vectorized in ((Trace_ELBO(), True), (TraceEnum_ELBO(max_plate_nesting=2), False)):
        model = HMM(make(name), generator=torch.Generator().manual_seed(0)).double()
        pyro.clear_param_store()
        loss = elbo.loss_and_grads(partial(model.model, vectorized=vectorized), model.guide, data)
        found.append([torch.tensor(loss), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_inflation_at_the_extremes(dtype):
    """Gates that are as good as shut or open, rates so small or large that a zero is sure or impossible."""
    logits = torch.tensor([-30.0, -1.0, 30.0], dtype=dtype).reshape(3, 1, 1)
    rate = torch.tensor([1e-10, 1.0, 1e5], dtype=dtype).reshape(3, 1)
    x = torch.tensor([0.0, 1.0, 20.0], dtype=dtype)
    part = nn.ZeroInflatedPoissonEmission(9, 1).to(dtype)
    with torch.no_grad():
        part.gate_logits.copy_(logits.expand(3, 3, 1).reshape(9, 1))
        part.log_rate.copy_(rate.log().expand(3, 3, 1).reshape(9, 1))
    log_prob = part(torch.arange(9).reshape(9, 1)).log_prob(x.reshape(3, 1)).reshape(3, 3, 3)
    logits, rate, counts = (value.double().numpy() for value in (logits, rate, x))
    plain = -np.logaddexp(0, logits) + stats.poisson.logpmf(counts, rate)
    expected = np.where(counts == 0, np.logaddexp(-np.logaddexp(0, -logits), plain), plain)
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-8, atol=1e-6)
    log_prob.sum().backward()
    assert part.gate_logits.grad.isfinite().all() and part.log_rate.grad.isfinite().all()


@every_case
def test_em_of_a_model_never_falls(name):
    truth, model = HMM(make(name)).double(), HMM(make(name, seed=1)).double()
    history = fit_em(model, truth.simulate(5, 20, seed=0), steps=6, tolerance=0, restarts=2, progress=False)
    assert len(history.loss) == 6
    assert all(new <= old + 1e-9 for old, new in pairwise(history.loss))


@pytest.mark.parametrize("name", ["negative binomial", "zero-inflated negative binomial", "student"])
def test_online_em_of_hidden_parts(name):
    """Its statistics are of earlier parameters, not only of the present ones."""
    x = sample(name, 4000).reshape(40, 100, 1)
    losses = []
    for options in ({"steps": 100}, {"steps": 150, "batch_size": 4, "step_size": lambda step: (step + 1) ** -0.6}):
        model = HMM(FAMILIES[name].part(1, 1, noise=0.0)).double()
        fit_em(model, Sequences(x), progress=False, **options)
        losses.append(-model.log_prob(Sequences(x)).sum().item() / x.numel())
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@every_case
def test_another_order_of_the_states(name):
    part, (x, _) = make(name, prior=True), draw(name)
    states, order = torch.arange(K).unsqueeze(-1), torch.arange(K).roll(1)
    before, prior = part(states).log_prob(x), part.log_prior()
    part.relabel(order)
    assert part.has_prior == (CASES[name].prior is not None)
    torch.testing.assert_close(part(states).log_prob(x), before[order])
    torch.testing.assert_close(part.log_prior(), prior)


@pytest.mark.parametrize("name", ["student", "log-normal"])
def test_the_centre_changes_no_result(name):
    """It is there for the digits; nothing of what is missing is read."""
    parts = [make(name), make(name)]
    x, weights = draw(name)
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    parts[1].prepare(torch.where(observed, x, torch.nan), observed)
    assert parts[1].centre.isfinite().all() and not torch.equal(parts[0].centre, parts[1].centre)
    for part in parts:
        part.maximize(part.expected_statistics(x, weights))
    for one, other in zip(*(part.parameters() for part in parts), strict=True):
        torch.testing.assert_close(one, other)


@every_case
def test_features(name):
    part, (x, _) = make(name), draw(name)
    features = part.features(x)
    assert features.shape[0] == len(x) and features.dim() == 2
    assert features.isfinite().all()
