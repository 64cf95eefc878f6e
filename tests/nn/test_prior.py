"""The priors of the parts: their densities against those of the laws, each alone in the M-step, and networks."""

import copy
from itertools import pairwise

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrohmm import nn
from pyrohmm.infer import fit_em, fit_svi
from pyrohmm.models import HMM
from tests.nn.emission.cases import GAMMA, INVERSE, INVERSE_WISHART, C, D, K, Packed, draw
from tests.nn.emission.test_maximize import gradient, maximise, objective

WEIGHT = dist.Normal(0.2, 0.5)
DIRECTION = dist.VonMises(torch.tensor([0.5, 0.5, 2.8]), 0.5)


def density_of_mean(law):
    return lambda part: law.log_prob(part.log_mean.exp()).sum()


def variances(part):
    return (2 * part.log_scale).exp()


def normal_inverse_gamma(part):
    variance = variances(part)
    means = dist.Normal(torch.as_tensor(GAMMA.loc), (variance / GAMMA.strength).sqrt()).log_prob(part.loc)
    return (dist.InverseGamma(GAMMA.concentration, GAMMA.rate).log_prob(variance) + means).sum()


def inverse_wishart(part, covariance):
    """By the Wishart law of the inverse and the change of variables, |S|^-(D + 1)."""
    inverse = covariance.inverse()
    law = dist.Wishart(torch.tensor(INVERSE_WISHART.degrees).double(), precision_matrix=INVERSE_WISHART.scale.double())
    return (law.log_prob(inverse) - (D + 1) * covariance.logdet()).sum()


def covariances(part):
    factor = part._scale_tril(part.log_scale.exp())
    return factor @ factor.mT


def linear(covariance, **priors):
    return nn.LinearRegressionEmission(K, D, C, covariance, **priors)


# Each prior alone: the data it is tried on, how the part is made, the log-density of its parameters, M-steps.
ALONE = {
    "negative binomial": (
        lambda: nn.NegativeBinomialEmission(K, D, mean_prior=dist.Gamma(3.0, 2.0)),
        density_of_mean(dist.Gamma(3.0, 2.0)),
        20,
    ),
    "zero-inflated negative binomial": (
        lambda: nn.ZeroInflatedNegativeBinomialEmission(K, D, mean_prior=dist.Gamma(3.0, 2.0)),
        density_of_mean(dist.Gamma(3.0, 2.0)),
        200,
    ),
    "gamma": (lambda: nn.GammaEmission(K, D, mean_prior=INVERSE), density_of_mean(INVERSE), 1),
    "beta": (
        lambda: nn.BetaEmission(K, D, mean_prior=dist.Beta(2.0, 5.0)),
        lambda part: dist.Beta(2.0, 5.0).log_prob(part.mean_logits.sigmoid()).sum(),
        1,
    ),
    "von mises": (
        lambda: nn.VonMisesEmission(K, D, loc_prior=DIRECTION),
        lambda part: DIRECTION.log_prob(part.loc).sum(),
        1,
    ),
    "student": (lambda: nn.StudentTEmission(K, D, loc_prior=GAMMA), normal_inverse_gamma, 300),
    "linear diag": (lambda: linear("diag", bias_prior=WEIGHT), lambda part: WEIGHT.log_prob(part.loc).sum(), 200),
    "linear spherical": (
        lambda: linear("spherical", noise_prior=INVERSE),
        lambda part: INVERSE.log_prob(variances(part).unsqueeze(-1)).sum(),
        1,
    ),
    "linear full": (
        lambda: linear("full", noise_prior=INVERSE_WISHART),
        lambda part: inverse_wishart(part, covariances(part)),
        1,
    ),
    "linear tied": (
        lambda: linear("tied", noise_prior=INVERSE_WISHART),
        lambda part: inverse_wishart(part, covariances(part)),
        1,
    ),
    "logistic": (
        lambda: nn.LogisticRegressionEmission(K, D, C, bias_prior=WEIGHT),
        lambda part: WEIGHT.log_prob(part.bias).sum(),
        60,
    ),
    "poisson regression": (
        lambda: nn.PoissonRegressionEmission(K, D, C, bias_prior=WEIGHT),
        lambda part: WEIGHT.log_prob(part.bias).sum(),
        30,
    ),
    "factor analysis, loc": (
        lambda: nn.FactorAnalysisEmission(K, D, 1, loc_prior=WEIGHT),
        lambda part: WEIGHT.log_prob(part.loc).sum(),
        60,
    ),
    "factor analysis, factors": (
        lambda: nn.FactorAnalysisEmission(K, D, 1, factors_prior=dist.Normal(0.0, 1.0)),
        lambda part: dist.Normal(0.0, 1.0).log_prob(part.factors).sum(),
        40,
    ),
    "factor analysis, noise": (
        lambda: nn.FactorAnalysisEmission(K, D, 1, noise_prior=INVERSE),
        lambda part: INVERSE.log_prob(variances(part)).sum(),
        60,
    ),
}
each_alone = pytest.mark.parametrize("name", ALONE)


def make(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        part = ALONE[name][0]().double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return part


@each_alone
def test_log_prior_is_the_density(name):
    """Of the constrained parameters, up to a constant."""
    parts = [make(name, seed) for seed in range(3)]
    for part in parts:
        assert part.has_prior and part.log_prior().shape == ()
    ours = torch.stack([part.log_prior() for part in parts]).diff()
    theirs = torch.stack([ALONE[name][1](part) for part in parts]).diff()
    # Some laws of torch compute in the single precision of their parameters.
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)
    assert (theirs.abs() > 1e-3).all()


@each_alone
def test_maximum_and_never_falls(name):
    part, (x, weights) = make(name), draw(name.partition(",")[0])
    part = Packed(part, C) if hasattr(part, "context") else part
    values = [objective(part, x, weights)]
    slope = gradient(part, x, weights)
    for _ in range(5):
        maximise(part, x, weights)
        values.append(objective(part, x, weights))
    assert all(new > old - 1e-9 * old.abs() for old, new in pairwise(values))
    maximise(part, x, weights, steps=ALONE[name][2])
    assert gradient(part, x, weights).abs().max() < 1e-6 * slope.abs().max()


def test_a_strong_prior_is_what_comes_out():
    """Data say next to nothing then, and the mode of the prior is known."""
    x, weights = draw("gamma")
    part = nn.GammaEmission(K, D, mean_prior=dist.InverseGamma(1e9, 3e9)).double()
    maximise(part, x, weights)
    torch.testing.assert_close(part.log_mean.exp(), torch.full((K, D), 3.0).double(), rtol=1e-5, atol=0)
    x, weights = draw("von mises")
    part = nn.VonMisesEmission(K, D, loc_prior=dist.VonMises(1.0, 1e9)).double()
    maximise(part, x, weights)
    torch.testing.assert_close(part.loc.detach(), torch.ones(K, D).double(), rtol=1e-5, atol=0)
    x, weights = draw("factor analysis")
    part = nn.FactorAnalysisEmission(K, D, 1, factors_prior=dist.Normal(0.0, 1e-6)).double()
    maximise(part, x, weights)
    assert part.factors.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("make", "argument", "expected"),
    [
        (lambda law: nn.NegativeBinomialEmission(K, D, mean_prior=law), "mean_prior", "Gamma"),
        (lambda law: nn.GammaEmission(K, D, mean_prior=law), "mean_prior", "InverseGamma"),
        (lambda law: nn.BetaEmission(K, D, mean_prior=law), "mean_prior", "Beta"),
        (lambda law: nn.VonMisesEmission(K, D, loc_prior=law), "loc_prior", "VonMises"),
        (lambda law: nn.StudentTEmission(K, D, loc_prior=law), "loc_prior", "NormalInverseGamma"),
        (lambda law: nn.FactorAnalysisEmission(K, D, 1, loc_prior=law), "loc_prior", "Normal"),
        (lambda law: nn.FactorAnalysisEmission(K, D, 1, factors_prior=law), "factors_prior", "Normal"),
        (lambda law: nn.FactorAnalysisEmission(K, D, 1, noise_prior=law), "noise_prior", "InverseGamma"),
        (lambda law: linear("diag", bias_prior=law), "bias_prior", "Normal"),
        (lambda law: linear("spherical", noise_prior=law), "noise_prior", "InverseGamma"),
        (lambda law: linear("tied", noise_prior=law), "noise_prior", "InverseWishart"),
        (lambda law: nn.LogisticRegressionEmission(K, D, C, bias_prior=law), "bias_prior", "Normal"),
        (lambda law: nn.RegressionInitial(K, C, logits_prior=law), "logits_prior", "Normal"),
        (lambda law: nn.NeuralTransition(K, prior=law), "prior", "Normal"),
    ],
)
def test_errors(make, argument, expected):
    with pytest.raises(TypeError, match=rf"{argument}: expected an? {expected}\b.*, got Laplace"):
        make(dist.Laplace(0.0, 1.0))


def test_values_that_do_not_fit():
    with pytest.raises(ValueError, match="mean_prior: expected a concentration of at least 1, got 0.5"):
        nn.NegativeBinomialEmission(K, D, mean_prior=dist.Gamma(0.5, 1.0))
    with pytest.raises(ValueError, match="mean_prior: expected concentrations of at least 1, got 0.5"):
        nn.BetaEmission(K, D, mean_prior=dist.Beta(0.5, 1.0))
    with pytest.raises(ValueError, match=r"factors_prior: expected parameters that broadcast to \(2, 3, 1\)"):
        nn.FactorAnalysisEmission(K, D, 1, factors_prior=dist.Normal(torch.zeros(4, 1), 1.0))
    with pytest.raises(ValueError, match="noise_prior.degrees: expected entries strictly between 2 and inf"):
        linear("full", noise_prior=nn.InverseWishart(2.0, torch.eye(D)))
    with pytest.raises(ValueError, match="noise_prior.scale: expected positive definite matrices"):
        linear("tied", noise_prior=nn.InverseWishart(5.0, -torch.eye(D)))
    with pytest.raises(ValueError, match="loc_prior.strength: expected entries strictly between 0 and inf"):
        nn.StudentTEmission(K, D, loc_prior=GAMMA._replace(strength=0.0))


DECAY = dist.Normal(0.1, 0.5)


def network(num_in, num_out):
    return torch.nn.Sequential(torch.nn.Linear(num_in, 4), torch.nn.Tanh(), torch.nn.Linear(4, num_out))


NETWORKS = {
    "emission": lambda: nn.NeuralEmission(K, network(K, D), "poisson", prior=DECAY),
    "autoregressive": lambda: nn.AutoregressiveEmission(K, network(K + D, D), "poisson", dim=D, prior=DECAY),
    "embeddings": lambda: nn.NeuralTransition(K, hidden=4, embedding=3, prior=DECAY),
    "by inputs": lambda: nn.NeuralTransition(K, C, hidden=4, prior=DECAY),
    "initial": lambda: nn.Initial(K, C, hidden=4, prior=DECAY),
    "regression": lambda: nn.RegressionTransition(K, C, prior=DECAY, logits_prior=DECAY),
    "shared regression": lambda: nn.RegressionTransition(K, C, shared=True, prior=DECAY, logits_prior=DECAY),
    "regression of the first": lambda: nn.RegressionInitial(K, C, prior=DECAY, logits_prior=DECAY),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_a_network(name):
    part = NETWORKS[name]()
    expected = sum((-2 * (parameter - 0.1).square()).sum() for parameter in part.parameters())
    assert part.has_prior and part.prior_has_mode
    torch.testing.assert_close(part.log_prior(), expected)
    part.log_prior().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters())
    other = NETWORKS[name]()
    other.load_state_dict(part.state_dict())
    other.relabel(list(range(K))[::-1])
    torch.testing.assert_close(other.log_prior(), part.log_prior())


def test_logits_that_are_forbidden_have_no_prior():
    mask = torch.tensor([[True, False], [True, True]])
    part = nn.RegressionTransition(2, C, mask=mask, logits_prior=DECAY)
    torch.testing.assert_close(part.log_prior(), -2 * (part.logits - 0.1)[mask].square().sum())


def test_networks_with_priors_in_em_and_svi():
    torch.manual_seed(0)
    model = HMM(
        NETWORKS["emission"](), NETWORKS["initial"](), nn.NeuralTransition(K, C, hidden=4, prior=DECAY)
    ).double()
    data = model.simulate(3, 8, inputs=torch.randn(3, 8, C).double(), seed=0)
    value = -(model.log_prob(data).sum() + model.log_prior()).item() / data.num_observed
    assert model.log_prior() < -1
    history = fit_em(copy.deepcopy(model), data, steps=3, tolerance=0, gradient_steps=2, progress=False)
    assert history.loss[0] == pytest.approx(value)
    assert all(new <= old + 1e-10 for old, new in pairwise(history.loss))
    assert fit_svi(model, data, steps=1, progress=False).loss[0] == pytest.approx(value)


def test_the_factor_of_the_program():
    torch.manual_seed(0)
    model = HMM(NETWORKS["emission"]())
    data = model.simulate(2, 4, seed=0)
    trace = poutine.trace(model).get_trace(data)
    torch.testing.assert_close(trace.nodes["prior"]["fn"].log_factor, model.log_prior())
