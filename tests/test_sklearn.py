"""The estimator: scikit-learn's own checks, and the numbers of the calls that it stands for."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyrohmm import fit_em, nn
from pyrohmm.data import Sequences
from pyrohmm.infer import criteria
from pyrohmm.models import HMM
from pyrohmm.sklearn import HMMEstimator

LENGTHS = [30, 1, 25, 44]
DEPENDENT = "the rows are steps of one sequence, which depend on each other"


@parametrize_with_checks(
    [HMMEstimator(), HMMEstimator(covariance="full")],
    expected_failed_checks=lambda estimator: {
        "check_methods_subset_invariance": DEPENDENT,
        "check_methods_sample_order_invariance": DEPENDENT,
    },
)
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


def draw(emission="gaussian", seed=0):
    """Rows of several sequences."""
    random = np.random.default_rng(seed)
    states = (np.arange(sum(LENGTHS)) // 5) % 2
    if emission == "gaussian":
        return random.normal(3.0 * states[:, None], 1.0, (len(states), 2))
    if emission == "poisson":
        return random.poisson(1.0 + 6.0 * states[:, None], (len(states), 2))
    if emission == "bernoulli":
        return random.integers(0, 2, (len(states), 3)) | states[:, None]
    return (2 * states + random.integers(0, 2, len(states)))[:, None]


def make(emission):
    parts = {
        "gaussian": lambda: nn.GaussianEmission(2, 2),
        "poisson": lambda: nn.PoissonEmission(2, 2),
        "bernoulli": lambda: nn.BernoulliEmission(2, 3),
        "categorical": lambda: nn.CategoricalEmission(2, 4),
    }
    torch.manual_seed(7)
    return HMM(parts[emission]()).double()


def sequences(X, emission="gaussian", mask=None):
    rows = [torch.as_tensor(part) for part in np.split(X, np.cumsum(LENGTHS)[:-1])]
    rows = [part[:, 0] if emission == "categorical" else part.double() for part in rows]
    return Sequences.from_list(rows, mask=mask, dtype=rows[0].dtype)


@pytest.mark.parametrize("emission", ["gaussian", "poisson", "bernoulli", "categorical"])
def test_numbers_are_those_of_the_direct_calls(emission):
    X = draw(emission)
    estimator = HMMEstimator(2, emission, steps=8, tolerance=0.0, restarts=2, random_state=7).fit(X, lengths=LENGTHS)

    model, data = make(emission), sequences(X, emission)
    history = fit_em(model, data, steps=8, tolerance=0.0, restarts=2, initialization="kmeans", seed=7, progress=False)
    assert estimator.history_.loss == history.loss and estimator.n_iter_ == 8 and not estimator.converged_
    for name, value in model.state_dict().items():
        torch.testing.assert_close(estimator.model_.state_dict()[name], value, rtol=0, atol=0)

    posterior, log_prob = model.posterior(data), model.log_prob(data).detach()
    states = posterior.viterbi().states
    np.testing.assert_array_equal(estimator.predict(X, LENGTHS), states[data.valid])
    np.testing.assert_allclose(estimator.predict_proba(X, LENGTHS), posterior.marginals[data.valid].detach())
    np.testing.assert_allclose(estimator.log_prob(X, LENGTHS), log_prob)
    np.testing.assert_allclose(estimator.score(X, lengths=LENGTHS), log_prob.sum())
    best, path = estimator.decode(X, LENGTHS)
    np.testing.assert_array_equal(path, states[data.valid])
    np.testing.assert_allclose(best, (posterior.viterbi().log_prob + log_prob).sum().item())
    assert estimator.aic(X, LENGTHS) == pytest.approx(criteria(model, data).aic)
    assert estimator.bic(X, LENGTHS) == pytest.approx(criteria(model, data).bic)

    drawn, labels = estimator.sample(20, random_state=3)
    simulated = model.simulate(1, 20, seed=3)
    np.testing.assert_array_equal(drawn, simulated.x[0].reshape(20, -1))
    np.testing.assert_array_equal(labels, simulated.labels[0])
    assert drawn.shape == (20, X.shape[1]) and labels.dtype == np.int64


@pytest.mark.parametrize("covariance", ["diag", "spherical", "full", "tied"])
def test_tables(covariance):
    X = draw()
    estimator = HMMEstimator(2, covariance=covariance, random_state=0).fit(X, lengths=LENGTHS)
    assert estimator.startprob_.shape == (2,) and estimator.transmat_.shape == (2, 2)
    np.testing.assert_allclose(estimator.startprob_.sum(), 1)
    np.testing.assert_allclose(estimator.transmat_.sum(-1), 1)
    assert estimator.covars_.shape == (2, 2, 2)
    law = estimator.model_.emission(torch.arange(2))
    x = torch.randn(2, 2).double()
    expected = dist.MultivariateNormal(torch.tensor(estimator.means_), torch.tensor(estimator.covars_)).log_prob(x)
    torch.testing.assert_close(law.log_prob(x).detach(), expected)


def test_tables_of_other_emissions():
    counts, bits, symbols = (
        HMMEstimator(2, name, random_state=0).fit(draw(name)) for name in ("poisson", "bernoulli", "categorical")
    )
    np.testing.assert_allclose(np.sort(counts.lambdas_, 0), [[1, 1], [7, 7]], atol=1.6)
    assert bits.emissionprob_.shape == (2, 3) and bits.emissionprob_.max() > 0.99
    assert symbols.emissionprob_.shape == (2, 4)
    np.testing.assert_allclose(symbols.emissionprob_.sum(-1), 1)
    # Tables are those of the last fit.
    counts.set_params(emission="gaussian").fit(draw())
    assert hasattr(counts, "means_") and not hasattr(counts, "lambdas_")


def test_lengths():
    X = draw()
    estimator = HMMEstimator(random_state=0)
    loss = estimator.fit(X, lengths=LENGTHS).history_.loss
    # Where hmmlearn has them, and with a y that is one.
    assert estimator.fit(X, LENGTHS).history_.loss == loss
    assert estimator.fit(X, np.zeros(len(X)), LENGTHS).history_.loss == loss
    assert estimator.score(X, LENGTHS) == estimator.score(X, None, LENGTHS) != estimator.score(X)
    one_by_one = [estimator.predict(part) for part in np.split(X, np.cumsum(LENGTHS)[:-1])]
    np.testing.assert_array_equal(estimator.predict(X, LENGTHS), np.concatenate(one_by_one))
    np.testing.assert_allclose(estimator.score(X), estimator.log_prob(X).sum())
    for wrong in ([50, 49], [100, 0], [100.0], [[100]], [101, -1]):
        with pytest.raises(ValueError, match="lengths: expected positive integers that add up to 100"):
            estimator.predict(X, wrong)
    with pytest.raises(ValueError, match="lengths: expected"):
        estimator.fit(X, [1, 2, 3])


@pytest.mark.parametrize("whole_rows", [True, False])
def test_nan_is_missing(whole_rows):
    X = draw()
    X[4 if whole_rows else (4, 1)] = np.nan
    estimator = HMMEstimator(random_state=7, steps=3, tolerance=0.0).fit(X, lengths=LENGTHS)
    model, data = make("gaussian"), sequences(X, mask="nan")
    fit_em(model, data, steps=3, tolerance=0.0, initialization="kmeans", seed=7, progress=False)
    np.testing.assert_allclose(estimator.log_prob(X, LENGTHS), model.log_prob(data).detach())
    assert np.isfinite(estimator.predict_proba(X, LENGTHS)).all()


def test_missing_symbols():
    X = draw("categorical").astype(float)
    X[[3, 50]] = np.nan
    estimator = HMMEstimator(2, "categorical", random_state=0).fit(X, lengths=LENGTHS)
    assert estimator.emissionprob_.shape == (2, 4) and np.isfinite(estimator.score(X, lengths=LENGTHS))


def test_symbols_are_checked():
    X = draw("categorical")
    estimator = HMMEstimator(2, "categorical", random_state=0).fit(X)
    for wrong in (4, -1, 0.5):
        with pytest.raises(ValueError, match=f"X: expected symbols from 0 to 3, .*, got {float(wrong)}"):
            estimator.predict([[wrong]])
    with pytest.raises(ValueError, match="X: expected symbols from 0"):
        HMMEstimator(2, "categorical").fit([[-1], [-2]])
    with pytest.raises(ValueError, match="X: expected one column, .*, got 2"):
        HMMEstimator(2, "categorical").fit(np.zeros((5, 2)))


def test_parts_from_functions():
    """Priors, masks and emissions that have no name."""
    left_to_right = torch.ones(3, 3, dtype=torch.bool).triu()
    estimator = HMMEstimator(
        3,
        lambda num_states, dim: nn.GaussianEmission(num_states, dim, prior=nn.NormalInverseGamma(0.0, 0.1, 2.0, 1.0)),
        initial=lambda num_states: nn.Initial(num_states, mask=torch.tensor([True, False, False])),
        transition=lambda num_states: nn.Transition(num_states, left_to_right),
        random_state=0,
    ).fit(draw(), lengths=LENGTHS)
    np.testing.assert_array_equal(estimator.startprob_, [1, 0, 0])
    np.testing.assert_array_equal(np.tril(estimator.transmat_, -1), 0)
    assert estimator.model_.emission.has_prior


def test_networks():
    def emission(num_states, dim):
        net = torch.nn.Linear(num_states, 2 * dim)
        return nn.NeuralEmission(num_states, net, "gaussian")

    estimator = HMMEstimator(2, emission, initialization=None, steps=2, random_state=0)
    again = clone(estimator)
    X = draw()
    X[3] = np.nan  # a whole row
    assert estimator.fit(X).score(X) == again.fit(X).score(X)
    assert not hasattr(estimator, "means_")


def test_random_state():
    X = draw()

    def fit(random_state, seed):
        np.random.seed(seed)
        estimator = HMMEstimator(2, restarts=2, steps=2, random_state=random_state)
        return estimator.fit(X).history_.loss, estimator.sample(3)[0].tolist()

    assert fit(0, 1) == fit(0, 2)
    assert fit(None, 1) == fit(None, 1) != fit(None, 2)
    assert fit(np.random.RandomState(5), 1) == fit(np.random.RandomState(5), 2)
    # torch's own random numbers are left alone
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    fit(0, 0)
    assert torch.rand(()) == expected


def test_dtype():
    X = draw()
    estimator = HMMEstimator(dtype="float32", random_state=0).fit(X)
    assert estimator.model_.emission.loc.dtype == torch.float32 and estimator.means_.dtype == np.float32
    assert HMMEstimator(random_state=0).fit(X).means_.dtype == np.float64
    with pytest.raises(ValueError, match="dtype: expected"):
        HMMEstimator(dtype="float16").fit(X)


def test_wrong_settings():
    with pytest.raises(ValueError, match="emission: expected 'gaussian', .*, got 'normal'"):
        HMMEstimator(emission="normal").fit(draw())
    with pytest.raises(NotFittedError):
        HMMEstimator().sample()


def test_in_a_pipeline_with_a_frame():
    X = pd.DataFrame(draw(), columns=["a", "b"])
    estimator = HMMEstimator(random_state=0).fit(X, lengths=LENGTHS)
    assert list(estimator.feature_names_in_) == ["a", "b"]
    pipeline = make_pipeline(StandardScaler(), HMMEstimator(random_state=0))
    pipeline.fit(X, hmmestimator__lengths=LENGTHS)
    assert pipeline.predict(X, lengths=LENGTHS).shape == (100,)


def test_pickle():
    X = draw()
    estimator = HMMEstimator(random_state=0).fit(X)
    again = pickle.loads(pickle.dumps(estimator))
    assert again.score(X) == estimator.score(X) and again.history_.loss == estimator.history_.loss


def test_without_scikit_learn(tmp_path):
    code = "import sys; sys.modules['sklearn'] = None; import pyrohmm.sklearn"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ImportError: pyrohmm.sklearn needs scikit-learn: pip install 'pyrohmm[sklearn]'" in done.stderr
