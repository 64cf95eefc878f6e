import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroSample

from pyrohmm import nn
from pyrohmm.nn._free import num_free, num_trainable

K = 3


@pytest.mark.parametrize(
    ("emission", "expected"),
    [
        (nn.BernoulliEmission(K, 2), 2 * K),
        (nn.PoissonEmission(K, 2), 2 * K),
        (nn.GaussianEmission(K, 2), 4 * K),
        (nn.GaussianEmission(K, 2, "tied"), 2 * K + 3),
        (nn.GaussianEmission(K, 2, "full"), 5 * K),
        (nn.GaussianMixtureEmission(K, 2, 3), 3 * 4 * K + 2 * K),
        (nn.FactorAnalysisEmission(K, 4, 2), K * (4 + 4 + 8 - 1)),
        (nn.CompositeEmission([nn.BernoulliEmission(K, 2), nn.CategoricalEmission(K, 4)]), 2 * K + 3 * K),
        (nn.TiedEmission(nn.CategoricalEmission(2, 4), [0, 1, 1]), 2 * 3),
        (nn.LinearRegressionEmission(K, 2, 3), K * (6 + 2 + 2)),
        (nn.LogisticRegressionEmission(K, 2, 3), K * (6 + 2)),
        (nn.NeuralEmission(K, torch.nn.Linear(K, 4), "categorical"), 4 * K + 4),
    ],
)
def test_free_parameters_of_emissions(emission, expected):
    assert emission.num_free_parameters == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.Initial(K), K - 1),
        (nn.Initial(1), 0),
        (nn.Initial(K, mask=torch.tensor([True, False, False])), 0),
        (nn.Initial(K, context=2, net=torch.nn.Linear(2, K)), K + 3 * K),
        (nn.Transition(K), K * (K - 1)),
        (nn.Transition(K, torch.ones(K, K).triu().bool()), 3),
        (nn.RegressionInitial(K, 2), 3 * (K - 1)),
        (nn.RegressionInitial(K, 2, torch.tensor([True, False, True])), 3 * (K - 2)),
        (nn.RegressionTransition(K, 2), 3 * K * (K - 1)),
        (nn.RegressionTransition(K, 2, mask=nn.left_to_right(K)), 3 * (K - 1)),
        (nn.RegressionTransition(K, 2, shared=True), (K + 2) * (K - 1)),
        (nn.PeriodicTransition(K, 5), 5 * K * (K - 1)),
        (nn.PeriodicTransition(K, 5, mask=nn.left_to_right(K)), 5 * (K - 1)),
        (nn.StationaryInitial(nn.Transition(K)), 0),
        (nn.NeuralTransition(K, embedding=2, net=torch.nn.Linear(2, 2)), 4 * K + 2 * K + 6),
        (nn.NeuralTransition(K, context=2, net=torch.nn.Linear(2, K * K)), 4 * K * K),
    ],
)
def test_free_parameters_of_chains(part, expected):
    assert part.num_free_parameters == expected


def test_a_table_that_is_frozen_or_has_a_prior_has_none():
    part = nn.Transition(K)
    part.logits.requires_grad_(False)
    assert num_free(part) == num_trainable(part) == 0
    part.logits = PyroSample(Normal(0.0, 1.0))
    assert part.num_free_parameters == 0
