"""The same models in pomegranate: likelihood, forward messages, posteriors, decoding, and EM.

pomegranate's sequences end: after each step the chain ends with a probability of its state, or moves on with the
others, which sum to less than one. A sequence's likelihood includes its end. In ours that is one state more, from which
nothing leads away; each sequence gets one step more, not observed, at which only that state is allowed and before which
it is not. Both are then the same model, with the same M-step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import pyrohmm
from pyrohmm import nn, ops
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
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

hmm = pytest.importorskip("pomegranate.hmm")
distributions = pytest.importorskip("pomegranate.distributions")


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """Some of its sums have torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Case(NamedTuple):
    """An emission in both libraries.

    Attributes:
        ours: our part with K + 1 states, and the values of its parameters for K of them.
        theirs: their distribution in a state.
        x: (N, T, ...), as ours has it.
        read: parameters of ours.
        read_theirs: the same of one of theirs.
    """

    ours: Callable[[], tuple[Any, dict[str, Tensor]]]
    theirs: Callable[[int], Any]
    x: Tensor
    read: Callable[[Any], list[Tensor]]
    read_theirs: Callable[[Any], list[Tensor]]


# To move from state to state, or to end.
MOVES = law(K, K + 1)


def _gaussian(covariance: str, scale: Tensor) -> Callable[[], tuple[Any, dict[str, Tensor]]]:
    def build() -> tuple[Any, dict[str, Tensor]]:
        emission = nn.GaussianEmission(K + 1, D, covariance, least_scale=1e-6)
        return emission, {"loc": START, "log_scale": scale.log()}

    return build


CASES = {
    "full": Case(
        _gaussian("full", SCALE),
        lambda k: distributions.Normal(START[k], SCALE[k].square().diag(), covariance_type="full"),
        REAL,
        lambda emission: [emission.loc[:K], emission(torch.arange(K)).covariance_matrix],
        lambda law: [law.means, law.covs],
    ),
    "diag": Case(
        _gaussian("diag", SCALE),
        lambda k: distributions.Normal(START[k], SCALE[k].square(), covariance_type="diag"),
        REAL,
        lambda emission: [emission.loc[:K], 2 * emission.log_scale[:K]],
        lambda law: [law.means, law.covs.log()],
    ),
    "categorical": Case(
        lambda: (nn.CategoricalEmission(K + 1, V), {"logits": law(K, V).log()}),
        lambda k: distributions.Categorical(law(K, V)[k : k + 1]),
        SYMBOLS,
        lambda emission: [emission.logits[:K].softmax(-1)],
        lambda law: [law.probs[0]],
    ),
    "bernoulli": Case(
        lambda: (nn.BernoulliEmission(K + 1, D), {"logits": START}),
        lambda k: distributions.Bernoulli(START[k].sigmoid()),
        BITS,
        lambda emission: [emission.logits[:K].sigmoid()],
        lambda law: [law.probs],
    ),
    "poisson": Case(
        lambda: (nn.PoissonEmission(K + 1, D), {"log_rate": SCALE.log()}),
        lambda k: distributions.Poisson(SCALE[k]),
        COUNTS,
        lambda emission: [emission.log_rate[:K].exp()],
        lambda law: [law.lambdas],
    ),
}


class Pair(NamedTuple):
    """The same model in both, and the same data."""

    ours: HMM
    data: Sequences
    theirs: Any
    x: Tensor


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def pair(case: Case) -> Pair:
    emission, values = case.ours()
    may_start = torch.arange(K + 1) < K
    may_move = torch.ones(K + 1, K + 1, dtype=torch.bool)
    may_move[K, :K] = False
    ours = HMM(emission, nn.Initial(K + 1, mask=may_start), nn.Transition(K + 1, mask=may_move)).double()
    with torch.no_grad():
        for name, value in values.items():
            getattr(emission, name)[:K] = value
        ours.initial.logits[:K] = law(K).log()
        ours.transition.logits[:K] = MOVES.log()
    x = torch.cat([case.x, case.x[:, -1:]], 1)
    observed = torch.arange(T + 1) < T
    allowed = (torch.arange(K + 1) < K) == observed.unsqueeze(-1)
    data = Sequences(x, mask=observed.expand(N, -1), allowed=allowed.expand(N, -1, -1))
    laws = [case.theirs(k) for k in range(K)]
    theirs = hmm.DenseHMM(laws, edges=MOVES[:, :K], starts=law(K), ends=MOVES[:, K], tol=0.0)
    return Pair(ours, data, theirs, case.x.reshape(N, T, -1))


def _assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-8, atol=1e-8)


def test_likelihood(pair: Pair) -> None:
    _assert_same(pair.ours.log_prob(pair.data), pair.theirs.log_probability(pair.x))


def test_filtered_and_smoothed_states(pair: Pair) -> None:
    posterior = pair.ours.posterior(pair.data)
    _assert_same(posterior.marginals[:, :T, :K], pair.theirs.predict_proba(pair.x))
    filtered = ops.filter(*pair.ours.potentials(pair.data)).log_probs[:, :T, :K]
    _assert_same(filtered, pair.theirs.forward(pair.x).log_softmax(-1))
    moves, _, starts, ends, _ = pair.theirs.forward_backward(pair.x)
    _assert_same(posterior.transition_marginals.sum(1)[:, :K, :K], moves)
    _assert_same(posterior.marginals[:, 0, :K], starts)
    _assert_same(posterior.transition_marginals[:, -1, :K, K], ends)


def test_most_probable_path(pair: Pair) -> None:
    states = pair.ours.posterior(pair.data).viterbi().states
    assert states[:, :T].tolist() == pair.theirs.viterbi(pair.x).tolist()
    assert (states[:, T] == K).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_parameters_after_em(case: Case, pair: Pair, steps: int) -> None:
    pyrohmm.fit_em(pair.ours, pair.data, steps=steps, tolerance=0.0, progress=False)
    for _ in range(steps):
        pair.theirs.summarize(pair.x)
        pair.theirs.from_summaries()
    _assert_same(pair.ours.initial.log_probs()[:K].exp(), pair.theirs.starts.exp())
    moves = torch.cat([pair.theirs.edges, pair.theirs.ends.unsqueeze(-1)], -1).exp()
    _assert_same(pair.ours.transition.log_probs()[:K].exp(), moves)
    theirs = zip(*map(case.read_theirs, pair.theirs.distributions), strict=True)
    for mine, other in zip(case.read(pair.ours.emission), theirs, strict=True):
        _assert_same(mine, torch.stack(other))
