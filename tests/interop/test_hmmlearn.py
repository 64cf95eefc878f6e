"""hmmlearn gives the same numbers: likelihoods, posteriors, paths and steps of EM, on ragged data."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrohmm import fit_em, nn, ops
from pyrohmm.data import Sequences
from pyrohmm.infer import criteria
from pyrohmm.models import HMM

hmmlearn = pytest.importorskip("hmmlearn.hmm")

K, D = 3, 2
LENGTHS = [40, 1, 25, 70, 2]
CLASSES = ["diag", "full", "tied", "spherical", "categorical", "poisson"]


def spread_covariances(random):
    root = random.normal(size=(K, D, D))
    return root @ root.mT + 0.5 * np.eye(D)


def parameters(name, random):
    """Of the emissions, by hmmlearn's names."""
    if name == "categorical":
        return {"emissionprob_": random.dirichlet(np.ones(4), K)}
    if name == "poisson":
        return {"lambdas_": random.gamma(4.0, 1.0, (K, D))}
    covariances = spread_covariances(random)
    covars = {
        "diag": covariances.diagonal(axis1=1, axis2=2),
        "full": covariances,
        "tied": covariances[0],
        "spherical": covariances[:, 0, 0],
    }[name]
    return {"means_": 2 * random.normal(size=(K, D)), "covars_": covars}


def theirs(name, implementation, start, transition, emission, steps=1, **priors):
    """With all that is drawn at the start given, and no other priors than these."""
    options = {
        "n_components": K,
        "init_params": "",
        "n_iter": steps,
        "tol": -np.inf,
        "implementation": implementation,
        "random_state": 0,
        "covars_prior": 0.0,
        **priors,
    }
    if name in ("categorical", "poisson"):
        del options["covars_prior"]
    if name == "categorical":
        model = hmmlearn.CategoricalHMM(**options, n_features=4)
    elif name == "poisson":
        model = hmmlearn.PoissonHMM(**options)
    else:
        model = hmmlearn.GaussianHMM(**options, covariance_type=name)
        model.n_features = D
    model.startprob_, model.transmat_ = start, transition
    for key, value in emission.items():
        setattr(model, key, value)
    return model


def ours(name, start, transition, emission, initial_prior=None, transition_prior=None, prior=None):
    tables = {key: torch.tensor(np.array(value)) for key, value in emission.items()}
    if name == "categorical":
        part = nn.CategoricalEmission(K, 4, prior=prior)
        values = {"logits": tables["emissionprob_"].log()}
    elif name == "poisson":
        part = nn.PoissonEmission(K, D, prior=prior)
        values = {"log_rate": tables["lambdas_"].log()}
    else:
        part = nn.GaussianEmission(K, D, name, prior=prior)
        values = {"loc": tables["means_"]}
        if name in ("full", "tied"):
            factor = torch.linalg.cholesky(tables["covars_"])
            scale = factor.diagonal(dim1=-2, dim2=-1)
            row, column = torch.tril_indices(D, D, -1)
            values |= {"log_scale": scale.log(), "lower": (factor / scale.unsqueeze(-1))[..., row, column]}
        else:
            values |= {"log_scale": tables["covars_"].sqrt().log()}
    model = HMM(part, nn.Initial(K, prior=initial_prior), nn.Transition(K, prior=transition_prior)).double()
    with torch.no_grad():
        model.initial.logits.copy_(torch.tensor(start).log())
        model.transition.logits.copy_(torch.tensor(transition).log())
        for key, value in values.items():
            getattr(part, key).copy_(value)
    return model


def read(name, model):
    """The parameters of ours by hmmlearn's names, covariances as matrices."""
    with torch.no_grad():
        found = {"startprob_": model.initial.log_probs().exp(), "transmat_": model.transition.log_probs().exp()}
        law = model.emission(torch.arange(K))
        if name == "categorical":
            found["emissionprob_"] = law.probs
        elif name == "poisson":
            found["lambdas_"] = law.mean
        else:
            found["means_"] = law.mean
            found["covars_"] = law.covariance_matrix if name in ("full", "tied") else law.variance.diag_embed()
    return found


def draw(name, random):
    """Rows and sequences, of a law that is not that of the models."""
    states = (np.arange(sum(LENGTHS)) // 7) % K
    if name == "categorical":
        X = ((states + (random.random(len(states)) < 0.3)) % 4)[:, None]
    elif name == "poisson":
        X = random.poisson(np.array([1.0, 4.0, 9.0])[states, None], (len(states), D))
    else:
        X = random.normal(2.5 * states[:, None] - 2.0, 1.0, (len(states), D))
    parts = [torch.tensor(part) for part in np.split(X, np.cumsum(LENGTHS)[:-1])]
    parts = [part[:, 0] if name == "categorical" else part.double() for part in parts]
    return X, Sequences.from_list(parts, dtype=parts[0].dtype)


@pytest.fixture(params=CLASSES)
def problem(request):
    random = np.random.default_rng(5)
    start, transition = random.dirichlet(np.ones(K)), random.dirichlet(np.ones(K), K)
    values = (start, transition, parameters(request.param, random))
    return request.param, values, *draw(request.param, random)


every_implementation = pytest.mark.parametrize("implementation", ["log", "scaling"])


@every_implementation
def test_inference(problem, implementation):
    name, values, X, data = problem
    their, model = theirs(name, implementation, *values), ours(name, *values)
    with torch.no_grad():
        potentials = model.potentials(data)
        marginals = ops.smooth(*potentials, lengths=data.lengths).state_marginals[data.valid]
        best = ops.viterbi(*potentials, lengths=data.lengths)
        log_likelihood, posteriors = their.score_samples(X, LENGTHS)
        assert model.log_prob(data).sum().item() == pytest.approx(log_likelihood, rel=1e-12)
    found = criteria(model, data)
    assert (found.aic, found.bic) == pytest.approx((their.aic(X, LENGTHS), their.bic(X, LENGTHS)), rel=1e-12)
    np.testing.assert_allclose(marginals, posteriors, rtol=0, atol=1e-12)
    log_prob, states = their.decode(X, LENGTHS)
    np.testing.assert_array_equal(best.states[data.valid], states)
    assert best.log_prob.sum().item() == pytest.approx(log_prob, rel=1e-12)


@every_implementation
@pytest.mark.parametrize("steps", [1, 10])
def test_em(problem, steps, implementation):
    name, values, X, data = problem
    their, model = theirs(name, implementation, *values, steps=steps), ours(name, *values)
    their.fit(X, LENGTHS)
    history = fit_em(model, data, steps=steps, tolerance=0.0, progress=False)
    assert history.num_steps == steps and not history.notes
    np.testing.assert_allclose(-np.array(history.loss) * data.num_observed, their.monitor_.history, rtol=1e-11)
    same_parameters(name, model, their)


def same_parameters(name, model, their):
    for key, value in read(name, model).items():
        expected = getattr(their, key)
        if name == "spherical" and key == "covars_":
            # After a fit they have a column for each dimension.
            expected = their._covars_[:, :, None] * np.eye(D)
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-10, err_msg=key)


# What docs/migration.md says of priors. Not of rates: hmmlearn counts the steps of all states in the M-step of each.
SCATTER = torch.tensor([[1.5, 0.5], [0.5, 1.0]])
PRIORS = {
    "diag": (
        {"covars_prior": 1.5, "covars_weight": 7.0},
        nn.NormalInverseGamma(0.5, 2.0, concentration=(7.0 - 4) / 2, rate=1.5 / 2),
    ),
    "spherical": (
        {"covars_prior": 1.5, "covars_weight": 7.0},
        nn.NormalInverseGamma(0.5, 2.0, concentration=D * (7.0 - 2) / 2 - 1, rate=D * 1.5 / 2),
    ),
    "full": (
        {"covars_prior": SCATTER.numpy(), "covars_weight": 9.0},
        nn.NormalInverseWishart(0.5, 2.0, degrees=9.0 - 2 * D - 2, scale=SCATTER),
    ),
    "tied": (
        {"covars_prior": SCATTER.numpy(), "covars_weight": 12.0},
        nn.NormalInverseWishart(0.5, 2.0, degrees=12.0 - 2 * D - 1 - K, scale=SCATTER),
    ),
    "categorical": ({"emissionprob_prior": 3.0}, dist.Dirichlet(torch.full((4,), 3.0))),
}


def test_em_with_priors(problem):
    name, values, X, data = problem
    if name not in PRIORS:
        pytest.skip("its priors mean something else")
    options, prior = PRIORS[name]
    if "covars_prior" in options:
        options = {**options, "means_prior": 0.5, "means_weight": 2.0}
    rows = 1 + np.eye(K)
    their = theirs(name, "log", *values, steps=10, startprob_prior=1.5, transmat_prior=rows, **options)
    their.fit(X, LENGTHS)
    priors = dist.Dirichlet(torch.full((K,), 1.5)), dist.Dirichlet(torch.tensor(rows)), prior
    model = ours(name, *values, *priors)
    fit_em(model, data, steps=10, tolerance=0.0, progress=False)
    same_parameters(name, model, their)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_gaussian_mixtures(covariance):
    random, M = np.random.default_rng(0), 2
    x = torch.as_tensor(random.normal(size=(sum(LENGTHS), D)) * 2)
    model = hmmlearn.GMMHMM(K, M, covariance_type=covariance, init_params="", n_iter=1, tol=-np.inf, random_state=0)
    model.startprob_, model.transmat_ = random.dirichlet(np.ones(K)), random.dirichlet(np.ones(K), K)
    model.weights_, model.means_ = random.dirichlet(np.ones(M), K), 2 * random.normal(size=(K, M, D))
    root = random.normal(size=(K, M, D, D))
    covariances = root @ root.mT + 0.5 * np.eye(D)
    model.covars_ = covariances if covariance == "full" else covariances.diagonal(axis1=2, axis2=3).copy()

    part = nn.GaussianMixtureEmission(K, D, M, covariance)
    ours = HMM(part).double()
    with torch.no_grad():
        ours.initial.logits.copy_(torch.as_tensor(model.startprob_).log())
        ours.transition.logits.copy_(torch.as_tensor(model.transmat_).log())
        part.mixture_logits.copy_(torch.as_tensor(model.weights_).log())
        part.components.loc.copy_(torch.as_tensor(model.means_).reshape(K * M, D))
        factor = torch.linalg.cholesky(torch.as_tensor(covariances).reshape(K * M, D, D))
        if covariance == "full":
            scale = factor.diagonal(dim1=-2, dim2=-1)
            part.components.log_scale.copy_(scale.log())
            part.components.lower.copy_((factor / scale.unsqueeze(-1))[:, [1], [0]])
        else:
            part.components.log_scale.copy_(0.5 * torch.as_tensor(model.covars_).log().reshape(K * M, D))
    data = Sequences.from_list(list(x.split(LENGTHS)), dtype=torch.float64)

    score, posteriors = model.score_samples(x.numpy(), LENGTHS)
    assert ours.log_prob(data).sum().item() == pytest.approx(score, rel=1e-12)
    marginals = ours.posterior(data).marginals[data.valid].detach()
    torch.testing.assert_close(marginals, torch.as_tensor(posteriors), rtol=0, atol=1e-10)
    states = ours.posterior(data).viterbi().states[data.valid]
    assert states.tolist() == model.predict(x.numpy(), LENGTHS).tolist()

    # A step of EM: transitions, and means and weights of the components (it has priors on the covariances).
    model.fit(x.numpy(), LENGTHS)
    fit_em(ours, data, steps=1, progress=False)
    for actual, expected in (
        (ours.transition.log_probs().exp(), model.transmat_),
        (part.mixture_logits.softmax(-1), model.weights_),
        (part.components.loc.reshape(K, M, D), model.means_),
    ):
        torch.testing.assert_close(actual.detach(), torch.as_tensor(expected), rtol=1e-6, atol=1e-8)
