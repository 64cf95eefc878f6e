"""hmmlearn's variational models make the same updates: posterior parameters, and the bound at every iteration.

- Their fit begins with a law of the parameters, ours with parameters; here theirs begins with ours after one step. Each
  of their bounds is that of the law before the update, as is ours after the step before.
- Their degrees of freedom are ours; with one dimension "diag" and "spherical" are theirs halved, as are the scales. In
  more dimensions "diag" and "spherical" differ: they take one Wishart law of D dimensions for what is here a law for
  each dimension.
- They leave out log(2 pi) / 2 of each number.
"""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrohmm import fit_vb, nn
from pyrohmm.data import Sequences
from pyrohmm.models import HMM

vhmm = pytest.importorskip("hmmlearn.vhmm")

K, V, STEPS = 3, 4, 12
LENGTHS = [40, 1, 25, 70, 2]
START = torch.tensor([0.5, 1.0, 1.5])
ROWS = 0.3 + torch.eye(K)
SCATTER = torch.tensor([[1.5, 0.5], [0.5, 1.0]])


def draw(dim):
    """Rows and sequences."""
    random = np.random.default_rng(0)
    states = (np.arange(sum(LENGTHS)) // 7) % K
    if dim == 0:
        X = ((states + (random.random(len(states)) < 0.3)) % V)[:, None]
    else:
        X = random.normal(2.5 * states[:, None] - 2.0, 1.0, (len(states), dim))
    parts = [torch.tensor(part) for part in np.split(X, np.cumsum(LENGTHS)[:-1])]
    parts = [part[:, 0] if dim == 0 else part for part in parts]
    return X, Sequences.from_list(parts, dtype=parts[0].dtype)


def ours(emission, data, steps):
    """Our fit, from a start that is always the same."""
    torch.manual_seed(3)
    priors = dist.Dirichlet(START), dist.Dirichlet(ROWS)
    model = HMM(emission(), nn.Initial(K, prior=priors[0]), nn.Transition(K, prior=priors[1])).double()
    return fit_vb(model, data, steps=steps, tolerance=0.0, progress=False)


def theirs(kind, **options):
    return kind(K, n_iter=STEPS, tol=-np.inf, init_params="", random_state=0, **options)


def compare(model, emission, X, data, names, constant=0.0):
    """Begin with our law after one step, and compare all that follows.

    Args:
        model: theirs.
        emission: makes ours.
        X: the rows.
        data: the same.
        names: name of theirs -> what it is of the law of ours.
        constant: that they leave out.
    """
    first, last = (ours(emission, data, steps) for steps in (1, STEPS + 1))
    names = {
        "startprob": lambda found: found.initial.concentration,
        "transmat": lambda found: found.transition.concentration,
        **names,
    }
    model.startprob_prior_, model.transmat_prior_ = START.double().numpy(), ROWS.double().numpy()
    for name, read in names.items():
        value = read(first)
        setattr(model, f"{name}_posterior_", value.numpy() if isinstance(value, torch.Tensor) else value)
    model.fit(X, LENGTHS)
    bounds = np.array(last.lower_bounds[:-1]) + constant
    np.testing.assert_allclose(model.monitor_.history, bounds, rtol=1e-10)
    assert len(bounds) == STEPS and (np.diff(bounds) > 0).all()
    for name, read in names.items():
        np.testing.assert_allclose(getattr(model, f"{name}_posterior_"), read(last), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gaussian(covariance):
    wishart = covariance in ("full", "tied")
    dim = 2 if wishart else 1
    X, data = draw(dim)
    scatter = SCATTER if wishart else torch.ones(1, 1)
    prior = nn.NormalInverseWishart(0.5, 0.2, 4.0, scatter) if wishart else nn.NormalInverseGamma(0.5, 0.2, 2.0, 0.5)
    model = theirs(vhmm.VariationalGaussianHMM, covariance_type=covariance)
    model.n_features = dim
    model.means_prior_, model.beta_prior_ = np.full((K, dim), 0.5), np.full(K, float(torch.tensor(0.2)))
    model.dof_prior_ = 4.0 if covariance == "tied" else np.full(K, 4.0)
    scales = {"full": SCATTER.expand(K, 2, 2), "tied": SCATTER, "diag": torch.ones(K, 1), "spherical": torch.ones(K)}
    model.scale_prior_ = scales[covariance].double().numpy()

    def dof(found):
        return found.emission.degrees if wishart else 2 * found.emission.concentration.reshape(K)

    names = {
        "means": lambda found: found.emission.loc,
        "beta": lambda found: found.emission.strength[:, 0],
        "dof": dof,
        "scale": lambda found: found.emission.scale if wishart else 2 * found.emission.rate,
    }
    if covariance == "tied":
        names["dof"] = lambda found: dof(found).item()  # they ask for a plain number
    constant = 0.5 * math.log(2 * math.pi) * X.size
    compare(model, lambda: nn.GaussianEmission(K, dim, covariance, prior=prior), X, data, names, constant)


def test_categorical():
    X, data = draw(0)
    prior = torch.tensor([0.5, 1.0, 0.25, 2.0])
    model = theirs(vhmm.VariationalCategoricalHMM, n_features=V)
    model.emissionprob_prior_ = np.tile(prior.double().numpy(), (K, 1))
    names = {"emissionprob": lambda found: found.emission.concentration}
    compare(model, lambda: nn.CategoricalEmission(K, V, prior=dist.Dirichlet(prior)), X, data, names)
