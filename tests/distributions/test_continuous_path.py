"""ContinuousPath, held to joint Gaussian laws and to plain loops over time."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import Trace_ELBO
from torch.distributions import kl_divergence

from pyrohmm import ContinuousPath

T, D = 5, 3
RAGGED = torch.tensor([5, 0, 1, 3])
WEIGHT = torch.tensor([[0.5, 0.3, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.4, -0.6]])
OFFSET = torch.arange(4 * T * D).reshape(4, T, D).sin()


def step(previous, t):
    """Linear, with an offset of each sequence and step."""
    return dist.Normal(previous @ WEIGHT.to(previous) + OFFSET[:, t].to(previous), 0.5).to_event(1)


def some_path(lengths=RAGGED, dtype=torch.float32, **kwargs):
    return ContinuousPath(step, torch.tensor([0.3, -1.0, 0.2], dtype=dtype), T, lengths=lengths, **kwargs)


def by_loop(path, value):
    """Log-densities by a plain loop, each sequence and step alone."""
    total = torch.zeros(len(value), dtype=value.dtype)
    for i, length in enumerate(path.lengths.tolist()):
        previous = path.initial
        for t in range(length):
            loc = previous @ WEIGHT.to(value) + OFFSET[i, t].to(value)
            total[i] += dist.Normal(loc, 0.5).log_prob(value[i, t]).sum()
            previous = value[i, t]
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_by_a_loop_and_padding_is_not_read(dtype):
    path = some_path(dtype=dtype)
    value = path.sample()
    assert value.dtype == dtype
    expected = by_loop(path, value)
    past = torch.arange(T) >= RAGGED.unsqueeze(-1)
    assert (value[past] == 0).all()
    value[past] = torch.nan
    value.requires_grad_()
    result = path.log_prob(value)
    assert torch.allclose(result, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert result[1] == 0
    assert torch.equal(path.log_probs(value).sum(-1), result)
    (gradient,) = torch.autograd.grad(result.sum(), value)
    assert gradient.isfinite().all()
    assert (gradient[past] == 0).all()


def test_all_steps_are_asked_for_at_once():
    asked = []

    def noted(previous, t):
        asked.append((t, tuple(previous.shape)))
        return step(previous, t)

    path = ContinuousPath(noted, torch.zeros(D), T, lengths=RAGGED)
    path.log_prob(torch.zeros(4, T, D))
    assert asked == [(slice(0, T), (4, T, D))]
    asked.clear()
    path.rsample((2,))
    assert asked == [(slice(t, t + 1), (2, 4, 1, D)) for t in range(T)]


def test_draws_have_the_joint_gaussian_law():
    scale = torch.tensor([0.5, 1.0])
    weight = torch.tensor([[0.9, 0.2], [-0.3, 0.7]])
    first = dist.Normal(torch.tensor([1.0, -1.0]), 2.0).to_event(1)
    path = ContinuousPath(lambda h, t: dist.Normal(h @ weight.mT, scale).to_event(1), first, 3)
    # h_1 = m + 2 e_1, h_t = W h_{t-1} + s e_t: one matrix of all noise.
    blocks = [[torch.zeros(2, 2) for _ in range(3)] for _ in range(3)]
    for s in range(3):
        for t in range(s, 3):
            noise = 2 * torch.eye(2) if s == 0 else scale.diag()
            blocks[t][s] = torch.linalg.matrix_power(weight, t - s) @ noise
    factor = torch.cat([torch.cat(row, 1) for row in blocks])
    mean = torch.cat([torch.linalg.matrix_power(weight, t) @ first.mean for t in range(3)])
    joint = dist.MultivariateNormal(mean, factor @ factor.mT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = path.sample((20000,))
    assert draws.shape == (20000, 3, 2)
    assert torch.allclose(path.log_prob(draws[:100]), joint.log_prob(draws[:100].flatten(1)), atol=1e-4)
    flat = draws.flatten(1)
    assert torch.allclose(flat.mean(0), mean, atol=0.06)
    assert torch.allclose(flat.mT.cov(), joint.covariance_matrix, atol=0.12)


def test_a_law_of_the_first_step_alone():
    first = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    path = ContinuousPath(lambda h, t: pytest.fail("there is no second step"), first, 1, batch_shape=(2,))
    value = path.sample()
    assert value.shape == (2, 1, D)
    assert torch.allclose(path.log_prob(value), first.log_prob(value[:, 0]))


def test_draws_are_differentiable_and_remembered_density_has_the_same_gradient():
    weight = WEIGHT.clone().requires_grad_()
    flow = affine_autoregressive(D, [8])

    def law(transforms):
        return ContinuousPath(
            lambda h, t: dist.Normal(h @ weight, 0.5).to_event(1),
            torch.ones(D),
            T,
            lengths=RAGGED,
            transforms=transforms,
        )

    for transforms in ((), (flow,), (flow, affine_autoregressive(D, [8]))):
        path = law(transforms)
        value = path.rsample()
        gradients = []
        for shown in (value, value.clone()):  # the path drawn itself, and one that has to be taken back
            gradients.append(torch.autograd.grad(path.log_prob(shown).sum(), weight, retain_graph=True)[0])
        assert gradients[0].abs().max() > 0 or not transforms
        assert torch.allclose(*gradients, atol=1e-4)
    assert torch.autograd.grad(value.square().sum(), weight)[0].abs().max() > 0


def test_transforms_change_the_density_by_their_jacobian():
    flow = affine_autoregressive(D, [8])
    path, plain = some_path(transforms=[flow]), some_path()
    value = path.sample()
    past = torch.arange(T) >= RAGGED.unsqueeze(-1)
    assert (value[past] == 0).all()
    base = torch.where(past.unsqueeze(-1), 0.0, flow.inv(value))
    expected = plain.log_prob(base)
    for i, length in enumerate(RAGGED.tolist()):
        for t in range(length):
            jacobian = torch.autograd.functional.jacobian(flow, base[i, t])
            expected[i] -= torch.linalg.slogdet(jacobian)[1]
    assert torch.allclose(path.log_prob(value), expected, atol=1e-4)
    value[past] = torch.nan
    assert torch.allclose(path.log_prob(value), expected, atol=1e-4)


def test_independent_steps_are_drawn_at_once():
    asked = []

    def alone(previous, t):
        asked.append(t)
        assert previous is None
        return dist.Normal(OFFSET[:, t], 0.5).to_event(1)

    path = ContinuousPath(alone, torch.zeros(D), T, lengths=RAGGED, independent=True)
    value = path.rsample((2,))
    assert value.shape == (2, 4, T, D)
    assert asked == [slice(0, T)]
    assert not torch.equal(value[0], value[1])
    valid = torch.arange(T) < RAGGED.unsqueeze(-1)
    expected = (dist.Normal(OFFSET, 0.5).log_prob(value).sum(-1) * valid).sum(-1)
    assert torch.allclose(path.log_prob(value), expected, rtol=1e-5)


def test_batches_that_steps_do_not_tell_apart_are_drawn_apart():
    path = ContinuousPath(lambda h, t: dist.Normal(torch.zeros(1, D), 1.0).to_event(1), torch.zeros(D), 2)
    value = path.expand((3,)).sample((2,))
    assert value.shape == (2, 3, 2, D)
    assert value.flatten(0, 2).unique(dim=0).shape == (12, D)
    assert path.expand((3,)).log_prob(torch.zeros(2, D)).shape == (3,)
    assert path.expand((3,)).log_prob(torch.zeros(7, 1, 2, D)).shape == (7, 3)


@pytest.mark.parametrize("start", ["vector", "law"])
def test_divergence_is_that_of_the_joint_gaussians_in_the_mean(start):
    first = torch.zeros(2) if start == "vector" else dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def law(weight, scale):
        return ContinuousPath(lambda h, t: dist.Normal(weight * h + 0.2, scale).to_event(1), first, 3)

    q, p = law(0.5, 0.7), law(0.9, 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = q.rsample((20000,))
        estimate = kl_divergence(q, p)
        sampled = q.log_prob(draws) - p.log_prob(draws)
    # E over h of the steps' divergences, each of a normal law with mean 0.5 h + 0.2 from one with mean 0.9 h + 0.2.
    moment, expected = torch.tensor(0.0), 0.0
    if start == "law":
        moment = torch.tensor(2.0)  # E |h_1|^2
    mean = 0.0
    for t in range(3):
        if t > 0 or start == "vector":
            expected += 2 * (0.5 * (0.7**2 - 1) - torch.tensor(0.7).log()) + 0.5 * 0.4**2 * moment
            moment = 0.25 * moment + 2 * 0.2 * mean + 2 * (0.2**2 + 0.7**2)
            mean = 0.5 * mean + 0.2
    assert estimate.shape == (20000,)
    assert estimate.mean() == pytest.approx(expected.item(), rel=0.02)
    assert estimate.var() < 0.5 * sampled.var()


def test_divergence_of_transformed_paths_is_sampled():
    q, p = some_path(transforms=[affine_autoregressive(D, [8])]), some_path()
    value = q.rsample()
    assert torch.equal(kl_divergence(q, p), q.log_prob(value) - p.log_prob(value))
    value.detach().zero_()  # written into: no longer what was drawn
    assert kl_divergence(q, p).isfinite().all()
    assert (kl_divergence(p, some_path()) == 0).all()


def test_as_a_site_of_model_and_guide():
    def model():
        with pyro.plate("sequences", 4, dim=-1):
            pyro.sample("h", some_path())

    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(model, model) == pytest.approx(0.0, abs=1e-5)


def test_bad_arguments():
    with pytest.raises(TypeError, match="step: expected a callable, got int"):
        ContinuousPath(3, torch.zeros(2), 4)
    with pytest.raises(TypeError, match="initial: expected a tensor or a distribution, got float"):
        ContinuousPath(step, 0.0, 4)
    with pytest.raises(ValueError, match="initial: expected vectors"):
        ContinuousPath(step, dist.Normal(0.0, 1.0), 4)
    with pytest.raises(ValueError, match="initial: expected a tensor since"):
        ContinuousPath(step, dist.Normal(torch.zeros(2), 1.0).to_event(1), 4, independent=True)
    with pytest.raises(ValueError, match="num_steps: expected an int of at least 1, got 0"):
        ContinuousPath(step, torch.zeros(2), 0)
    with pytest.raises(TypeError, match="lengths: expected integers"):
        ContinuousPath(step, torch.zeros(2), 4, lengths=torch.ones(2))
    with pytest.raises(ValueError, match="lengths: expected 0 to 4, got \\[5\\]"):
        ContinuousPath(step, torch.zeros(2), 4, lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match=r"value: expected shape \(..., 5, 3\), got \(4, 4, 3\)"):
        some_path().log_prob(torch.zeros(4, 4, 3))
    with pytest.raises(ValueError, match="support"):
        some_path().log_prob(torch.full((4, T, D), torch.nan))
