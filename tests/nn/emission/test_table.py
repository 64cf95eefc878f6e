import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroSample
from scipy import stats

from pyrohmm.nn import (
    BernoulliEmission,
    BetaEmission,
    CategoricalEmission,
    ExponentialEmission,
    GammaEmission,
    GaussianEmission,
    LogNormalEmission,
    MultinomialEmission,
    NegativeBinomialEmission,
    PoissonEmission,
    StudentTEmission,
    VonMisesEmission,
    ZeroInflatedNegativeBinomialEmission,
    ZeroInflatedPoissonEmission,
)

K, D, V = 3, 3, 5
COVARIANCES = ["diag", "full", "tied", "spherical"]

PARTS = {
    "categorical": lambda **kwargs: CategoricalEmission(K, V, **kwargs),
    "bernoulli": lambda **kwargs: BernoulliEmission(K, D, **kwargs),
    "poisson": lambda **kwargs: PoissonEmission(K, D, **kwargs),
    **{
        name: lambda name=name, **kwargs: GaussianEmission(K, D, covariance=name, **kwargs)  # type: ignore[misc]
        for name in COVARIANCES
    },
    "negative binomial": lambda **kwargs: NegativeBinomialEmission(K, D, **kwargs),
    "zero-inflated poisson": lambda **kwargs: ZeroInflatedPoissonEmission(K, D, **kwargs),
    "zero-inflated negative binomial": lambda **kwargs: ZeroInflatedNegativeBinomialEmission(K, D, **kwargs),
    "exponential": lambda **kwargs: ExponentialEmission(K, D, **kwargs),
    "gamma": lambda **kwargs: GammaEmission(K, D, **kwargs),
    "log-normal": lambda **kwargs: LogNormalEmission(K, D, **kwargs),
    "beta": lambda **kwargs: BetaEmission(K, D, **kwargs),
    "von mises": lambda **kwargs: VonMisesEmission(K, D, **kwargs),
    "student": lambda **kwargs: StudentTEmission(K, D, **kwargs),
    "multinomial": lambda **kwargs: MultinomialEmission(K, D, **kwargs),
}


@pytest.fixture(params=PARTS)
def make(request):
    return PARTS[request.param]


def randomise(part):
    """Every parameter away from its start, so that no test rests on a symmetric value."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return part


def observations(part, *shape):
    generator = torch.Generator().manual_seed(6)
    if part.event_shape == ():
        return torch.randint(V, shape, generator=generator)
    if isinstance(part, (GammaEmission, LogNormalEmission, BetaEmission)):
        return 0.1 + 0.8 * torch.rand(*shape, D, generator=generator)
    return torch.randint(2, (*shape, D), generator=generator).float()


def test_shapes_with_an_enumerated_state(make):
    part = make()
    law = part(torch.arange(K).reshape(K, 1, 1, 1), torch.zeros(4, 6, 7), torch.zeros(4, 6, 8))
    assert law.batch_shape == (K, 1, 1, 1)
    assert law.event_shape == part.event_shape
    x = observations(part, 4, 6)
    assert law.log_prob(x).shape == (K, 1, 4, 6)
    assert part.num_states == K
    assert part.order == 0
    assert part.event_shape in ((), (D,))
    assert isinstance(law, TorchDistributionMixin)


def test_each_state_has_its_own_law(make):
    part = randomise(make())
    states = torch.randint(K, (4, 6), generator=torch.Generator().manual_seed(0))
    x = observations(part, 4, 6)
    log_prob = part(states).log_prob(x)
    by_state = part(torch.arange(K).reshape(K, 1, 1)).log_prob(x)
    assert len({round(v, 5) for v in by_state[:, 0, 0].tolist()}) == K
    torch.testing.assert_close(log_prob, by_state.gather(0, states.unsqueeze(0)).squeeze(0))
    torch.testing.assert_close(part(torch.tensor(1)).log_prob(x), by_state[1])


def test_categorical_values():
    part = randomise(CategoricalEmission(K, V)).double()
    probs = part.logits.exp() / part.logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(part(torch.arange(K)).log_prob(torch.tensor(3)), probs[:, 3].log())


def test_bernoulli_values():
    part = randomise(BernoulliEmission(K, D)).double()
    p = 1 / (1 + (-part.logits).exp())
    expected = p[:, 0].log() + (1 - p[:, 1]).log() + p[:, 2].log()
    torch.testing.assert_close(part(torch.arange(K)).log_prob(torch.tensor([1.0, 0.0, 1.0]).double()), expected)


def test_poisson_values():
    part = randomise(PoissonEmission(K, D)).double()
    x = np.array([3.0, 0.0, 1.0])
    expected = stats.poisson.logpmf(x, part.log_rate.detach().exp().numpy()).sum(-1)
    np.testing.assert_allclose(part(torch.arange(K)).log_prob(torch.as_tensor(x)).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gaussian_values(covariance):
    part = randomise(GaussianEmission(K, D, covariance)).double()
    raw = dict(part.named_parameters())
    x = np.array([0.3, -1.2, 0.8])
    log_prob = part(torch.arange(K)).log_prob(torch.as_tensor(x)).detach()
    assert part(torch.arange(K)).batch_shape == (K,)
    scale = raw["log_scale"].detach().exp().numpy()
    for k in range(K):
        if covariance in ("diag", "spherical"):
            matrix = np.diag(np.broadcast_to(scale[k], D) ** 2)
        else:
            own = scale[k] if covariance == "full" else scale
            lower = raw["lower"].detach().numpy()
            lower = lower[k] if covariance == "full" else lower
            assert (lower != 0).all()
            unit = np.eye(D)
            unit[1, 0], unit[2, 0], unit[2, 1] = lower
            factor = np.diag(own) @ unit
            matrix = factor @ factor.T
        expected = stats.multivariate_normal(part.loc[k].detach().numpy(), matrix).logpdf(x)
        np.testing.assert_allclose(log_prob[k], expected, rtol=1e-12)


@pytest.mark.parametrize(("covariance", "free"), [("diag", K * D), ("spherical", K), ("full", K * 6), ("tied", 6)])
def test_no_parameter_is_idle(covariance, free):
    """As many numbers as the covariances have degrees of freedom."""
    part = GaussianEmission(K, D, covariance)
    assert sum(parameter.numel() for parameter in part.parameters()) == K * D + free
    assert GaussianEmission(K, 1, covariance)(torch.arange(K)).event_shape == (1,)


def test_starts_given_for_each_state_are_exact():
    probs = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.4, 0.8], [0.5, 0.6, 0.9]])
    torch.testing.assert_close(BernoulliEmission(K, D, probs=probs)(torch.arange(K)).mean, probs)
    torch.testing.assert_close(PoissonEmission(K, D, rate=5 * probs)(torch.arange(K)).mean, 5 * probs)
    weights = torch.rand(K, V) + 0.1
    law = CategoricalEmission(K, V, probs=weights)(torch.arange(K))
    torch.testing.assert_close(law.probs, weights / weights.sum(-1, keepdim=True))
    law = GaussianEmission(K, D, loc=probs, scale=2 * probs)(torch.arange(K))
    torch.testing.assert_close(law.mean, probs)
    torch.testing.assert_close(law.variance, 4 * probs**2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_shared_starts_are_spread_over_the_states(covariance):
    scale = {"spherical": 0.5, "tied": [0.5, 2.0, 1.0]}.get(covariance, np.array([0.5, 2.0, 1.0]))
    part = GaussianEmission(2000, D, covariance, loc=np.array([10.0, -10.0, 0.0]), scale=scale)
    law = part(torch.arange(2000))
    wanted = torch.as_tensor(scale).expand(D).float()
    torch.testing.assert_close(law.variance[7], wanted**2)
    torch.testing.assert_close(part.loc.mean(0), torch.tensor([10.0, -10.0, 0.0]), rtol=0, atol=0.2)
    torch.testing.assert_close(part.loc.std(0) / wanted, torch.ones(D), rtol=0.1, atol=0)
    assert torch.equal(GaussianEmission(4, D, covariance, loc=1.0, noise=0.0).loc, torch.ones(4, D))


@pytest.mark.parametrize("name", ["probs", "rate"])
def test_shared_starts_of_counts_and_bits(name):
    part = (BernoulliEmission if name == "probs" else PoissonEmission)(2000, D, **{name: [0.1, 0.6, 0.5]}, noise=0.1)
    mean = part(torch.arange(2000)).mean
    torch.testing.assert_close(mean.mean(0), torch.tensor([0.1, 0.6, 0.5]), rtol=0.05, atol=0)
    assert (mean.std(0) > 0).all()


def test_generator(make):
    rng = torch.get_rng_state()
    first, second, other = (make(generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), rng)
    x = observations(first, 4)
    state = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(first(state).log_prob(x), second(state).log_prob(x))
    assert not torch.equal(first(state).log_prob(x), other(state).log_prob(x))


def test_gradient_reaches_every_parameter(make):
    part = randomise(make())
    part(torch.arange(K).reshape(K, 1, 1)).log_prob(observations(part, 4, 6)).logsumexp(0).sum().backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_gradcheck(make):
    part = randomise(make()).double()
    x = observations(part, 4)
    x = x.double() if x.is_floating_point() else x
    state = torch.arange(K).reshape(K, 1)
    assert torch.autograd.gradcheck(lambda *_: part(state).log_prob(x), tuple(part.parameters()))


def test_state_dict_deepcopy_double_and_device(make):
    part = randomise(make())
    x, state = observations(part, 4), torch.zeros(4, dtype=torch.int64)
    other = make()
    assert not torch.equal(other(state).log_prob(x), part(state).log_prob(x))
    other.load_state_dict(part.state_dict())
    assert torch.equal(other(state).log_prob(x), part(state).log_prob(x))
    assert torch.equal(copy.deepcopy(part)(state).log_prob(x), part(state).log_prob(x))
    wide = x.double() if x.is_floating_point() else x
    assert part.double()(state).log_prob(wide).dtype == torch.float64
    with pyro.validation_enabled(False):
        assert part.to("meta")(state.to("meta")).log_prob(x.to("meta")).device.type == "meta"


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_priors_with_particles(covariance):
    """Sampled parameters with a batch of their own broadcast against an enumerated state."""
    part = GaussianEmission(K, D, covariance)
    for name, parameter in list(part.named_parameters()):
        shape = parameter.shape
        setattr(part, name, PyroSample(dist.Normal(0.0, 1.0).expand([6, 1, 1, *shape]).to_event(len(shape))))
    with pyro.poutine.trace() as trace:
        law = part(torch.arange(K).reshape(K, 1, 1, 1))
    assert law.batch_shape == (K, 6, 1, 1)
    drawn = {name: node["value"][4, 0, 0] for name, node in trace.trace.nodes.items()}
    alone = GaussianEmission(K, D, covariance)
    alone.load_state_dict(drawn, strict=False)  # what is left out are buffers
    x = torch.randn(D)
    torch.testing.assert_close(law.log_prob(x)[:, 4, 0, 0], alone(torch.arange(K)).log_prob(x))


def test_parts_of_one_name_do_not_share_parameters():
    """Pyro keeps parameters by name; a part that ran before must not lend its own to the next one."""
    state = torch.arange(K)
    for covariance in COVARIANCES:
        first = GaussianEmission(K, D, covariance, scale=2.0)
        second = GaussianEmission(K, D, covariance, scale=3.0)
        torch.testing.assert_close(first(state).variance[0], torch.full((D,), 4.0))
        torch.testing.assert_close(second(state).variance[0], torch.full((D,), 9.0))


def test_errors():
    with pytest.raises(ValueError, match="covariance: expected one of diag, full, tied, spherical, got 'banded'"):
        GaussianEmission(K, D, "banded")
    with pytest.raises(ValueError, match=r"loc: expected a shape that broadcasts to \(3, 3\), got \(4,\)"):
        GaussianEmission(K, D, loc=torch.zeros(4))
    with pytest.raises(ValueError, match=r"scale: expected a shape that broadcasts to \(3,\), got \(2,\)"):
        GaussianEmission(K, D, "spherical", scale=torch.ones(2))
    with pytest.raises(ValueError, match="scale: expected entries strictly between 0 and inf"):
        GaussianEmission(K, D, scale=0.0)
    with pytest.raises(ValueError, match="probs: expected entries strictly between 0 and 1"):
        BernoulliEmission(K, D, probs=1.0)
    with pytest.raises(ValueError, match="rate: expected entries strictly between 0 and inf"):
        PoissonEmission(K, D, rate=-1.0)
    with pytest.raises(ValueError, match="num_symbols: expected at least 1, got 0"):
        CategoricalEmission(K, 0)
    with pytest.raises(TypeError, match="dim: expected an int, got float"):
        BernoulliEmission(K, 2.0)
    with pytest.raises(TypeError, match="state: expected int64"):
        PoissonEmission(K, D)(torch.zeros(3))
