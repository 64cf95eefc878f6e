import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyrohmm import MarkovChain, nn
from pyrohmm.models.local_inference import local_inference

K, D, N, T = 3, 2, 3, 5
LENGTHS = torch.tensor([T, 1, 3])


def problem(covariance, *, num_states=K, num_steps=T, dtype=torch.float64):
    """A prior of ragged paths, laws of the codes, and evidence with gaps, which are NaN like the padding."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    lengths = LENGTHS.clamp(max=num_steps)
    prior = MarkovChain(noise(num_states), noise(num_states, num_states), lengths=lengths, num_steps=num_steps)
    emission = nn.GaussianEmission(num_states, D, covariance, generator=generator).to(dtype)
    with torch.no_grad():
        for parameter in emission.parameters():
            parameter.add_(0.3 * noise(*parameter.shape))
    law = emission(torch.arange(num_states))
    observed = torch.rand(N, num_steps, generator=generator) < 0.6
    observed &= torch.arange(num_steps) < lengths.unsqueeze(-1)
    observed[0, 0] = True
    pseudo, precision = noise(N, num_steps, D), noise(N, num_steps, D).exp()
    for value in (pseudo, precision):
        value[~observed] = math.nan
    return prior, law, pseudo, precision, observed


def matrices(law):
    """The inverses of the covariances, (K, D, D)."""
    if isinstance(law, torch.distributions.Independent):
        return law.variance.diag_embed().inverse()
    return law.covariance_matrix.inverse()


def objective(prior, law, pseudo, precision, observed, found):
    """What coordinate ascent makes large: the bound on the evidence of the pseudo-observations."""
    mean, covariance, inverse = found.codes.mean, found.codes.covariance_matrix, matrices(law)
    unary = dist.MultivariateNormal(law.mean, precision_matrix=inverse).log_prob(mean.unsqueeze(-2))
    unary = unary - 0.5 * torch.einsum("ntij,kji->ntk", covariance, inverse)
    fit = -0.5 * (precision * ((mean - pseudo).square() + covariance.diagonal(dim1=-2, dim2=-1))).sum(-1)
    steps = torch.where(observed, fit + found.codes.entropy(), 0.0).sum(-1)
    return found.states.expectation(unary * observed.unsqueeze(-1)) - kl_divergence(found.states, prior) + steps


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_rounds_go_uphill_to_a_fixed_point(covariance):
    given = problem(covariance)
    _, law, pseudo, precision, observed = given
    before = torch.full((N,), -math.inf, dtype=torch.float64)
    with torch.no_grad():
        for num_rounds in range(1, 7):
            value = objective(*given, local_inference(*given, num_rounds))
            assert (value >= before - 1e-9).all()
            before = value
        found = local_inference(*given, 60)
        # Each is the best one given the other, step by step.
        inverse, weights = matrices(law), found.states.marginals
        for n, t in observed.nonzero().tolist():
            total = precision[n, t].diag() + sum(weights[n, t, k] * inverse[k] for k in range(K))
            linear = precision[n, t] * pseudo[n, t]
            linear = linear + sum(weights[n, t, k] * inverse[k] @ law.mean[k] for k in range(K))
            torch.testing.assert_close(found.codes.covariance_matrix[n, t], total.inverse())
            torch.testing.assert_close(found.codes.mean[n, t], total.inverse() @ linear)
            off = found.codes.mean[n, t] - law.mean
            spread = (inverse * found.codes.covariance_matrix[n, t]).sum((-2, -1))
            expected = -0.5 * (torch.einsum("ki,kij,kj->k", off, inverse, off) + spread) + 0.5 * inverse.logdet()
            unary = found.states.observation_logits[n, t]
            torch.testing.assert_close(unary - unary[0], expected - expected[0])
        assert (found.states.observation_logits[~observed] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, T])
def test_one_state_has_the_conjugate_posterior(num_steps, dtype):
    prior, law, pseudo, precision, observed = problem("full", num_states=1, num_steps=num_steps, dtype=dtype)
    found = local_inference(prior, law, pseudo, precision, observed, 1)
    assert (found.states.marginals.sum((-2, -1)) == LENGTHS.clamp(max=num_steps)).all()
    total = matrices(law)[0] + precision[observed].diag_embed()
    linear = precision[observed] * pseudo[observed] + matrices(law)[0] @ law.mean[0]
    expected = torch.linalg.solve(total, linear)
    torch.testing.assert_close(found.codes.mean[observed], expected, rtol=1e-4, atol=1e-5)
    assert found.codes.mean.dtype == dtype and found.codes.mean.isfinite().all()


def test_laws_that_are_not_gaussian_are_refused():
    prior, _, *evidence = problem("full")
    with pytest.raises(ValueError, match="emission: expected Gaussian laws, got Independent"):
        local_inference(prior, dist.Poisson(torch.ones(K, D)).to_event(1), *evidence, 1)
