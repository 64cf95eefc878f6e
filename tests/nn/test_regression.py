import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroSample

from pyrohmm.nn import RegressionInitial, RegressionTransition

K, C = 3, 2


def randomised(part):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        part.weights.copy_(torch.randn(part.weights.shape, generator=generator))
    return part


@pytest.mark.parametrize("shared", [False, True])
def test_matrix_by_hand(shared):
    part = randomised(RegressionTransition(K, C, shared=shared))
    inputs = torch.randn(4, 5, C)
    matrix = part.matrix(inputs)
    assert matrix.shape == (4, 5, K, K)
    for i in range(K):
        for j in range(K):
            weights = part.weights[j] if shared else part.weights[i, j]
            torch.testing.assert_close(matrix[2, 3, i, j], part.logits[i, j] + weights @ inputs[2, 3])


def test_initial_by_hand():
    part = randomised(RegressionInitial(K, C, torch.tensor([True, False, True])))
    inputs = torch.randn(4, 1, C)
    logits = part(inputs)
    assert logits.shape == (4, 1, K) and (logits[..., 1] == -math.inf).all()
    torch.testing.assert_close(logits[3, 0, 2], part.logits[2] + part.weights[2] @ inputs[3, 0])
    torch.testing.assert_close(part.log_probs(inputs).exp().sum(-1), torch.ones(4, 1))


def test_inputs_change_nothing_at_the_start():
    inputs = torch.randn(4, C)
    for part in (RegressionInitial(K, C), RegressionTransition(K, C), RegressionTransition(K, C, shared=True)):
        assert (part.weights == 0).all()
        assert torch.equal(part.log_probs(inputs), part.log_probs(torch.zeros(4, C)))


@pytest.mark.parametrize("shared", [False, True])
def test_coefficients_are_log_odds_against_staying(shared):
    part = randomised(RegressionTransition(K, C, shared=shared))
    unit = torch.cat([torch.zeros(1, C), torch.eye(C)])
    log_probs = part.log_probs(unit)
    odds = log_probs - log_probs.diagonal(0, -2, -1).unsqueeze(-1)
    torch.testing.assert_close((odds[1:] - odds[0]).movedim(0, -1), part.coefficients)


def test_coefficients_are_those_that_can_be_learned():
    """Other weights with the same law have the same coefficients."""
    part = randomised(RegressionTransition(K, C))
    inputs = torch.randn(5, C)
    law, coefficients = part.log_probs(inputs), part.coefficients
    with torch.no_grad():
        part.weights.add_(torch.randn(K, 1, C))
    torch.testing.assert_close(part.log_probs(inputs), law)
    torch.testing.assert_close(part.coefficients, coefficients)


@pytest.mark.parametrize("make", [RegressionInitial, RegressionTransition])
def test_prior(make):
    assert make(K, C).log_prior() == 0 and not make(K, C).has_prior
    part = randomised(make(K, C, prior=dist.Normal(torch.tensor([0.5, -1.0]), 2.0).to_event(1)))
    assert part.has_prior
    expected = dist.Normal(torch.tensor([0.5, -1.0]), 2.0).log_prob(part.weights).sum()
    at_mean = dist.Normal(torch.zeros(2), 2.0).log_prob(torch.zeros_like(part.weights)).sum()
    torch.testing.assert_close(part.log_prior(), expected - at_mean)
    assert part.log_prior().shape == ()


def test_weights_with_a_prior_of_pyro_and_particles():
    part = RegressionTransition(K, C)
    part.weights = PyroSample(dist.Normal(0.0, 1.0).expand([6, 1, 1, K, K, C]).to_event(3))
    inputs = torch.randn(4, 5, C)
    with poutine.trace() as trace:
        logits = part(torch.arange(K).reshape(K, 1, 1, 1), inputs)
    value = trace.trace.nodes["weights"]["value"]
    assert logits.shape == (K, 6, 4, 5, K)
    torch.testing.assert_close(logits[1, 2, 3, 4], part.logits[1] + value[2, 0, 0, 1] @ inputs[3, 4])


def test_errors():
    for make in (RegressionInitial, RegressionTransition):
        with pytest.raises(ValueError, match="context: expected at least 1, got 0"):
            make(2, 0)
        with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., 3\) since context=3, got None"):
            make(2, 3).log_probs()
        with pytest.raises(TypeError, match="prior: expected a Normal, got Laplace"):
            make(2, 3, prior=dist.Laplace(0.0, 1.0))
        with pytest.raises(ValueError, match="prior: expected parameters that broadcast to"):
            make(2, 3, prior=dist.Normal(torch.zeros(4), 1.0))
        with pytest.raises(TypeError, match="mask: expected bool"):
            make(2, 3, mask=torch.ones(2))
