"""The same models in dynamax: likelihood, filtering, smoothing, decoding, and EM with the same priors.

Both in float64. dynamax has priors on everything, and so have ours here: a row of K probabilities
`Dirichlet(concentration)`, Gaussians normal-inverse-gamma or normal-inverse-Wishart. Its conventions:

- `DiagonalGaussianHMM`: strength `emission_prior_mean_concentration`, and the inverse gamma law on each variance.
- `GaussianHMM`: degrees of freedom `emission_dim + emission_prior_extra_df`, strength `emission_prior_concentration`.
- `SharedCovarianceGaussianHMM`: the same, but its M-step counts the term of the prior mean, strength times loc loc^T,
  once, where its own log prior has it for each state. So the prior mean here is zero.
- `SphericalGaussianHMM`: its M-step makes gradient steps, so EM is not compared.
- What `fit_em` returns are log-likelihood plus log prior before each iteration, with constants that we leave out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrohmm
from pyrohmm import nn, ops
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn.priors import NormalInverseGamma, NormalInverseWishart
from tests.interop.sample import (
    BITS,
    COUNTS,
    REAL,
    SCALE,
    START,
    SYMBOLS,
    D,
    K,
    N,
    T,
    V,
    law,
)

jax = pytest.importorskip("jax")
dynamax = pytest.importorskip("dynamax.hidden_markov_model")


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


class Case(NamedTuple):
    """A model in both libraries.

    Attributes:
        ours: its emission part with the same prior.
        theirs: its class, and arguments of the prior.
        start: parameters of their emission, by the names that `initialize` has.
        x: (N, T, ...), as ours has it.
        read: our emission's parameters, in the order of `theirs`' fields.
        closed: whether their M-step is in closed form.
    """

    ours: Callable[[], Any]
    theirs: Callable[..., Any]
    start: dict[str, Tensor]
    x: Tensor
    read: Callable[[Any], list[Tensor]]
    closed: bool = True


CHOLESKY = torch.diag_embed(SCALE) + torch.tensor([[0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)

GAMMA = NormalInverseGamma(loc=0.5, strength=0.25, concentration=1.5, rate=0.75)
WISHART = NormalInverseWishart(loc=0.5, strength=0.25, degrees=2.5, scale=0.75 * torch.eye(D))
_WISHART = {
    "emission_prior_mean": 0.5,
    "emission_prior_concentration": 0.25,
    "emission_prior_scale": 0.75,
    "emission_prior_extra_df": 0.5,
}


def _covariance(emission: nn.GaussianEmission) -> list[Tensor]:
    law = emission(torch.arange(K))
    covariance = law.covariance_matrix
    return [law.mean, covariance[0] if emission.covariance == "tied" else covariance]


def _gaussian(covariance: str, prior: Any, scale: Tensor) -> Callable[[], nn.GaussianEmission]:
    def build() -> nn.GaussianEmission:
        emission = nn.GaussianEmission(K, D, covariance, prior=prior, least_scale=1e-6).double()
        with torch.no_grad():
            emission.loc.copy_(START)
            if covariance in ("full", "tied"):
                deviation = scale.diagonal(dim1=-2, dim2=-1)
                emission.log_scale.copy_(deviation.log())
                emission.lower.copy_((scale / deviation.unsqueeze(-1))[..., 1, :1])
            else:
                emission.log_scale.copy_(scale.log())
        return emission

    return build


def _table(part: Any, name: str, value: Tensor) -> Any:
    part = part.double()
    with torch.no_grad():
        getattr(part, name).copy_(value)
    return part


CASES = {
    "full": Case(
        _gaussian("full", WISHART, CHOLESKY),
        lambda **chain: dynamax.GaussianHMM(K, D, **chain, **_WISHART),
        {"emission_means": START, "emission_covariances": CHOLESKY @ CHOLESKY.mT},
        REAL,
        _covariance,
    ),
    "tied": Case(
        _gaussian("tied", WISHART._replace(loc=0.0), CHOLESKY[0]),
        lambda **chain: dynamax.SharedCovarianceGaussianHMM(K, D, **chain, **_WISHART | {"emission_prior_mean": 0.0}),
        {"emission_means": START, "emission_covariance": CHOLESKY[0] @ CHOLESKY[0].mT},
        REAL,
        _covariance,
    ),
    "diag": Case(
        _gaussian("diag", GAMMA, SCALE),
        lambda **chain: dynamax.DiagonalGaussianHMM(
            *(K, D),
            **chain,
            emission_prior_mean=0.5,
            emission_prior_mean_concentration=0.25,
            emission_prior_concentration=1.5,
            emission_prior_scale=0.75,
        ),
        {"emission_means": START, "emission_scale_diags": SCALE},
        REAL,
        lambda emission: [emission.loc, emission.log_scale.exp()],
    ),
    "spherical": Case(
        _gaussian("spherical", None, SCALE[:, 0]),
        lambda **chain: dynamax.SphericalGaussianHMM(K, D, **chain),
        {"emission_means": START, "emission_scales": SCALE[:, 0]},
        REAL,
        lambda emission: [emission.loc, emission.log_scale.exp()],
        closed=False,
    ),
    "categorical": Case(
        lambda: _table(
            nn.CategoricalEmission(K, V, prior=dist.Dirichlet(torch.full((V,), 1.25))),
            "logits",
            law(K, V).log(),
        ),
        lambda **chain: dynamax.CategoricalHMM(K, 1, V, **chain, emission_prior_concentration=1.25),
        {"emission_probs": law(K, 1, V)},
        SYMBOLS,
        lambda emission: [emission.logits.softmax(-1).unsqueeze(-2)],
    ),
    "bernoulli": Case(
        lambda: _table(
            nn.BernoulliEmission(K, D, prior=dist.Beta(torch.tensor(1.5), torch.tensor(2.25))), "logits", START
        ),
        lambda **chain: dynamax.BernoulliHMM(
            K, D, **chain, emission_prior_concentration1=1.5, emission_prior_concentration0=2.25
        ),
        {"emission_probs": START.sigmoid()},
        BITS,
        lambda emission: [emission.logits.sigmoid()],
    ),
    "poisson": Case(
        lambda: _table(
            nn.PoissonEmission(K, D, prior=dist.Gamma(torch.tensor(1.5), torch.tensor(0.25))), "log_rate", SCALE.log()
        ),
        lambda **chain: dynamax.PoissonHMM(K, D, **chain, emission_prior_concentration=1.5, emission_prior_rate=0.25),
        {"emission_rates": SCALE},
        COUNTS,
        lambda emission: [emission.log_rate.exp()],
    ),
}


class Pair(NamedTuple):
    """The same model in both, and the same data."""

    ours: HMM
    data: Sequences
    theirs: Any
    params: Any
    props: Any
    x: Any


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def pair(case: Case) -> Pair:
    prior = dist.Dirichlet(torch.full((K,), 1.5))
    emission = case.ours()
    ours = HMM(emission, nn.Initial(K, prior=prior), nn.Transition(K, prior=prior)).double()
    with torch.no_grad():
        ours.initial.logits.copy_(law(K).log())
        ours.transition.logits.copy_(law(K, K).log())
    theirs = case.theirs(initial_probs_concentration=1.5, transition_matrix_concentration=1.5)
    start = {"initial_probs": law(K), "transition_matrix": law(K, K), **case.start}
    params, props = theirs.initialize(**{name: _array(value) for name, value in start.items()})
    return Pair(ours, Sequences(case.x), theirs, params, props, _array(case.x.reshape(N, T, -1)))


def _array(tensor: Tensor) -> Any:
    return jax.numpy.asarray(tensor.numpy())


def _assert_same(got: Tensor, expected: Any, tolerance: float = 1e-7) -> None:
    torch.testing.assert_close(got.detach(), torch.tensor(expected.tolist()).to(got), rtol=tolerance, atol=tolerance)


def test_likelihood_posteriors_and_path(pair: Pair) -> None:
    def infer(x: Any) -> tuple[Any, ...]:
        smoothed, filtered = pair.theirs.smoother(pair.params, x), pair.theirs.filter(pair.params, x)
        return smoothed, filtered.filtered_probs, pair.theirs.most_likely_states(pair.params, x)

    smoothed, filtered, path = jax.jit(jax.vmap(infer))(pair.x)
    posterior = pair.ours.posterior(pair.data)
    _assert_same(pair.ours.log_prob(pair.data), smoothed.marginal_loglik)
    _assert_same(posterior.marginals, smoothed.smoothed_probs)
    _assert_same(posterior.transition_marginals.sum(1), smoothed.trans_probs)
    _assert_same(ops.filter(*pair.ours.potentials(pair.data)).log_probs.exp(), filtered)
    assert posterior.viterbi().states.tolist() == path.tolist()


@pytest.mark.parametrize("steps", [1, 5])
def test_parameters_after_em(case: Case, pair: Pair, steps: int) -> None:
    if not case.closed:
        pytest.skip("its M-step makes gradient steps")
    params, objectives = pair.theirs.fit_em(pair.params, pair.props, pair.x, num_iters=steps, verbose=False)
    history = pyrohmm.fit_em(pair.ours, pair.data, steps=steps, tolerance=0.0, progress=False)
    _assert_same(pair.ours.initial.log_probs().exp(), params.initial.probs)
    _assert_same(pair.ours.transition.log_probs().exp(), params.transitions.transition_matrix)
    for mine, other in zip(case.read(pair.ours.emission), params.emissions, strict=True):
        _assert_same(mine, other)
    gains = -N * T * torch.tensor(history.loss, dtype=torch.float64).diff()
    _assert_same(gains, jax.numpy.diff(objectives), tolerance=1e-6)
