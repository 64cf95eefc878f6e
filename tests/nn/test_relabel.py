"""Each part relabelled: the new state i is the old state permutation[i]."""

import copy

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam, PyroSample
from torch import Tensor

from pyrohmm import nn
from pyrohmm.nn._relabel import as_permutation
from tests.models.cases import net

K, D, C, V = 3, 3, 2, 4  # as many states as entries: what all states share must be told by more than its size
ORDER = torch.tensor([2, 0, 1])
X = torch.tensor([[1.0, 0.0, 1.0]])


class Twisted(torch.nn.Module):
    """A network of one's own, in which nothing is a last linear layer."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.inner = net(num_in, num_out)

    def forward(self, features: Tensor) -> Tensor:
        return self.inner(features).sin() * 2


EMISSIONS = {
    "categorical": lambda: nn.CategoricalEmission(K, V),
    "bernoulli": lambda: nn.BernoulliEmission(K, D),
    "poisson": lambda: nn.PoissonEmission(K, D),
    **{
        f"gaussian {covariance}": lambda covariance=covariance: nn.GaussianEmission(
            K, D, covariance, scale=torch.tensor([1.0, 2.0, 3.0])
        )
        for covariance in ("diag", "full", "tied", "spherical")
    },
    "mixture": lambda: nn.GaussianMixtureEmission(K, D, 2, "full"),
    "mixture tied": lambda: nn.GaussianMixtureEmission(K, D, 2, "tied"),
    "factor analysis": lambda: nn.FactorAnalysisEmission(K, D, 1),
    "composite": lambda: nn.CompositeEmission(
        [nn.GaussianEmission(K, 1), nn.CategoricalEmission(K, V), nn.NeuralEmission(K, net(K, 1), "poisson")]
    ),
    "tied": lambda: nn.TiedEmission(nn.PoissonEmission(2, D), [0, 1, 0]),
    "linear": lambda: nn.LinearRegressionEmission(K, D, C, "tied"),
    "linear autoregressive": lambda: nn.LinearAutoregressiveEmission(K, D, context=C),
    "logistic": lambda: nn.LogisticRegressionEmission(K, D, C),
    "poisson regression": lambda: nn.PoissonRegressionEmission(K, D, C),
    "neural": lambda: nn.NeuralEmission(K, net(K + C, D), "poisson", context=C),
    "neural without inputs": lambda: nn.NeuralEmission(K, net(K, D), "poisson"),
    "neural of one's own": lambda: nn.NeuralEmission(K, Twisted(K + C, 2 * D), "gaussian", context=C),
    "autoregressive": lambda: nn.AutoregressiveEmission(K, net(K + D, D), "poisson", dim=D),
}
TRANSITIONS = {
    "table": lambda: nn.Transition(K),
    "masked": lambda: nn.Transition(K, torch.ones(K, K).triu().bool()),
    "embedded": lambda: nn.NeuralTransition(K, hidden=4, embedding=3),
    "inputs": lambda: nn.NeuralTransition(K, context=C, hidden=4, mask=torch.ones(K, K).triu().bool()),
    "regression": lambda: nn.RegressionTransition(K, C, mask=nn.left_to_right(K)),
    "shared regression": lambda: nn.RegressionTransition(K, C, shared=True),
    "periodic": lambda: nn.PeriodicTransition(K, 2, column=1, mask=nn.left_to_right(K)),
    "tied": lambda: nn.TiedTransition(K, [1, 0, 1]),
    "tied moves": lambda: nn.TiedTransition(K, [0, 0, 1], nn.left_to_right(K), relative=True),
    "net of one's own": lambda: nn.NeuralTransition(K, context=C, net=Twisted(C, K * K)),
}
INITIALS = {
    "table": lambda: nn.Initial(K),
    "masked": lambda: nn.Initial(K, mask=torch.tensor([True, True, False])),
    "inputs": lambda: nn.Initial(K, context=C, hidden=4, mask=torch.tensor([True, True, False])),
    "regression": lambda: nn.RegressionInitial(K, C, mask=torch.tensor([True, True, False])),
    "net of one's own": lambda: nn.Initial(K, context=C, net=Twisted(C, K)),
}


def randomize(part: torch.nn.Module) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape))


def table_of(kind: str, part: torch.nn.Module) -> Tensor:
    """What a part says of each state, states in the dims in front (of transitions: the two last)."""
    with torch.no_grad():
        inputs = torch.linspace(-1, 1, 5 * C).reshape(5, C)
        inputs[:, -1].round_()
        if kind == "emission":
            x = torch.tensor([[2]]) if part.event_shape == () else X
            previous = X.expand(5, -1) if part.order else None
            return part(torch.arange(K).reshape(K, 1), inputs, previous).log_prob(x)
        return part.log_probs(inputs)


def reordered(kind: str, table: Tensor) -> Tensor:
    match kind:
        case "emission":
            return table[ORDER]
        case "transition":
            return table[..., ORDER[:, None], ORDER]
        case _:
            return table[..., ORDER]


PARTS = [
    (kind, name, builds[name])
    for kind, builds in (("emission", EMISSIONS), ("transition", TRANSITIONS), ("initial", INITIALS))
    for name in builds
]


@pytest.mark.parametrize(("kind", "name", "build"), PARTS)
def test_relabel_reorders_what_the_part_says(kind, name, build):
    part = build()
    randomize(part)
    before = table_of(kind, part)
    ids = [id(parameter) for parameter in part.parameters()]
    assert part.relabel(ORDER.tolist()) is None
    once = reordered(kind, before)
    assert not torch.equal(once, before)
    torch.testing.assert_close(table_of(kind, part), once)
    assert [id(parameter) for parameter in part.parameters()] == ids  # an optimiser has these
    part.relabel(ORDER)
    torch.testing.assert_close(table_of(kind, part), reordered(kind, once))
    part.relabel(ORDER)
    torch.testing.assert_close(table_of(kind, part), before)


@pytest.mark.parametrize(("kind", "name", "build"), PARTS)
def test_the_order_is_in_the_state_dict(kind, name, build):
    part, fresh = build(), build()
    untouched = copy.deepcopy(part.state_dict())
    before = table_of(kind, part)
    part.relabel(ORDER)
    assert not any(key.endswith("state_order") for key in untouched)
    saved = copy.deepcopy(part.state_dict())
    fresh.load_state_dict(saved)
    assert torch.equal(table_of(kind, fresh), table_of(kind, part))
    fresh.relabel(ORDER)  # the saved one is not shared
    part.load_state_dict(saved)
    torch.testing.assert_close(table_of(kind, part), reordered(kind, before))
    part.load_state_dict(untouched)  # of a part that was never relabelled
    torch.testing.assert_close(table_of(kind, part), before)


def test_a_relabelled_part_of_a_model_keeps_its_order_when_other_parts_are_loaded():
    both = torch.nn.ModuleDict({"a": EMISSIONS["neural"](), "b": TRANSITIONS["table"]()})
    both["a"].relabel(ORDER)
    both.load_state_dict({"b.logits": torch.zeros(K, K)}, strict=False)
    assert both["a"].state_order.tolist() == ORDER.tolist()


PRIORS = {
    "mixture": lambda: nn.GaussianMixtureEmission(
        K,
        D,
        2,
        prior=nn.NormalInverseGamma(torch.rand(2 * K, D), *(torch.rand(2 * K, size) for size in (1, D, D))),
        mixture_prior=dist.Dirichlet(torch.rand(K, 2) + 1),
    ),
    "composite": lambda: nn.CompositeEmission(
        [nn.GaussianEmission(K, 1), nn.CategoricalEmission(K, V, prior=dist.Dirichlet(torch.rand(K, V) + 1))]
    ),
    "linear": lambda: nn.LinearRegressionEmission(
        K,
        D,
        C,
        prior=dist.Normal(torch.rand(K, D, C), torch.rand(K, D, C) + 0.1),
        bias_prior=dist.Normal(torch.rand(K, D), 1.0),
        noise_prior=dist.InverseGamma(torch.rand(K, D) + 1, torch.rand(K, D)),
    ),
    "linear tied": lambda: nn.LinearRegressionEmission(
        K, D, C, "tied", noise_prior=nn.InverseWishart(3.5, torch.diag(torch.rand(D)))
    ),
    "factor analysis": lambda: nn.FactorAnalysisEmission(
        K,
        D,
        1,
        loc_prior=dist.Normal(torch.rand(K, D), 1.0),
        factors_prior=dist.Normal(torch.rand(K, D, 1), 1.0),
        noise_prior=dist.InverseGamma(torch.rand(K, D) + 1, 1.0),
    ),
    "negative binomial": lambda: nn.NegativeBinomialEmission(K, D, mean_prior=dist.Gamma(1 + torch.rand(K, D), 1.0)),
    "gamma": lambda: nn.GammaEmission(K, D, mean_prior=dist.InverseGamma(1 + torch.rand(K, D), 1.0)),
    "beta": lambda: nn.BetaEmission(K, D, mean_prior=dist.Beta(1 + torch.rand(K, D), 2.0)),
    "von mises": lambda: nn.VonMisesEmission(K, D, loc_prior=dist.VonMises(torch.rand(K, D), 1 + torch.rand(K, D))),
    "student": lambda: nn.StudentTEmission(
        K, D, loc_prior=nn.NormalInverseGamma(torch.rand(K, D), torch.rand(K, 1), torch.rand(K, D), torch.rand(K, D))
    ),
    "tied rows": lambda: nn.TiedTransition(K, [1, 0, 1], prior=dist.Dirichlet(torch.rand(2, K) + 1)),
    "initial": lambda: nn.Initial(K, prior=dist.Dirichlet(torch.rand(K) + 1)),
    "transition": lambda: nn.Transition(K, prior=dist.Dirichlet(torch.rand(K, K) + 1)),
    "regression of the first": lambda: nn.RegressionInitial(
        K, C, prior=dist.Normal(torch.rand(K, C), torch.rand(C)), logits_prior=dist.Normal(torch.rand(K), 1.0)
    ),
    "regression": lambda: nn.RegressionTransition(
        K,
        C,
        prior=dist.Normal(torch.rand(K, K, C), torch.rand(K, 1)),
        logits_prior=dist.Normal(torch.rand(K, K), 1.0),
    ),
    "periodic": lambda: nn.PeriodicTransition(K, 2, prior=dist.Dirichlet(torch.rand(2, K, K) + 1)),
    "categorical": lambda: nn.CategoricalEmission(K, V, prior=dist.Dirichlet(torch.rand(K, V) + 1)),
    "bernoulli": lambda: nn.BernoulliEmission(K, D, prior=dist.Beta(torch.rand(K, D) + 1, torch.rand(K, D) + 1)),
    "poisson": lambda: nn.PoissonEmission(K, D, prior=dist.Gamma(torch.rand(K, D) + 1, torch.rand(K, D) + 1)),
    "diag": lambda: nn.GaussianEmission(
        K, D, prior=nn.NormalInverseGamma(torch.rand(K, D), torch.rand(K, 1), torch.rand(K, D), torch.rand(K, D))
    ),
    "spherical": lambda: nn.GaussianEmission(
        K, D, "spherical", prior=nn.NormalInverseGamma(*(torch.rand(K, size) for size in (D, 1, 1, 1)))
    ),
    "full": lambda: nn.GaussianEmission(
        K,
        D,
        "full",
        prior=nn.NormalInverseWishart(
            torch.rand(K, D), torch.rand(K, 1), 3 + torch.rand(K, 1), torch.eye(D) * torch.rand(K, D, 1)
        ),
    ),
    "tied": lambda: nn.GaussianEmission(
        K, D, "tied", prior=nn.NormalInverseWishart(torch.rand(K, D), torch.rand(K, 1), 3.5, torch.diag(torch.rand(D)))
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_go_with_their_states(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part = PRIORS[name]()
    randomize(part)
    before = part.log_prior().detach()
    assert part.has_prior and before != 0
    part.relabel(ORDER)
    torch.testing.assert_close(part.log_prior().detach(), before)


def test_a_relabelled_network_is_trained():
    part = EMISSIONS["neural"]()
    part.relabel(ORDER)
    part(torch.tensor([0]), torch.zeros(1, C)).log_prob(X).sum().backward()
    weight = part.net[0].weight.grad
    assert weight[:, 2].abs().sum() > 0 and weight[:, :2].abs().sum() == 0


def test_wrong_states_of_a_relabelled_network():
    part = EMISSIONS["neural"]()
    part.relabel(ORDER)
    with pytest.raises(TypeError, match="state: expected int64"):
        part(torch.tensor([0.0]), torch.zeros(1, C))


def test_constrained_parameters():
    part = nn.PoissonEmission(K, D)
    part.log_rate = PyroParam(torch.rand(K, D) + 0.1, constraints.positive)
    before = part.log_rate.detach()
    part.relabel(ORDER)
    torch.testing.assert_close(part.log_rate.detach(), before[ORDER])


def test_frozen_parameters_stay_frozen():
    part = nn.Transition(K)
    part.logits.requires_grad_(False)
    before = part.logits.clone()
    part.relabel(ORDER)
    assert torch.equal(part.logits, before[ORDER][:, ORDER])
    assert not part.logits.requires_grad


@pytest.mark.parametrize(
    "build", [lambda: nn.Transition(K), lambda: nn.Initial(K), lambda: nn.CategoricalEmission(K, V)]
)
def test_priors_have_no_order(build):
    part = build()
    part.logits = PyroSample(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="logits: expected a parameter or a buffer, got a PyroSample"):
        part.relabel(ORDER)


@pytest.mark.parametrize("wrong", [[0, 1], [0, 1, 1], [1, 2, 3], [0.0, 1.0, 2.0], [[0, 1, 2]], [True, False, True]])
def test_what_is_no_permutation(wrong):
    with pytest.raises(ValueError, match="permutation: expected each of 0, ..., 2 once, got"):
        as_permutation(wrong, 3)
    with pytest.raises(ValueError, match="permutation"):
        nn.Initial(3).relabel(wrong)
