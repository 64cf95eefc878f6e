import pytest
import torch

from pyrohmm.distributions import ContinuousPath
from pyrohmm.nn import Combiner, RecurrentEncoder

N, T, D, H = 3, 5, 2, 4


def features(sources=1, dtype=torch.float32, seed=0):
    return torch.randn(N, T, sources * H, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("sources", [1, 2])
@pytest.mark.parametrize("mean_field", [False, True])
def test_the_formula(sources, mean_field):
    combiner, given = Combiner(D, H, sources, mean_field=mean_field), features(sources)
    previous = torch.randn(N, 2, D)
    law = combiner(given)(None if mean_field else previous, slice(1, 3))
    assert (law.batch_shape, law.event_shape) == ((N, 2), (D,))
    parts = [*given[:, 1:3].chunk(sources, -1)]
    if not mean_field:
        parts.append(torch.tanh(previous @ combiner.before.weight.mT + combiner.before.bias))
    combined = torch.stack(parts).mean(0)
    out = combined @ combiner.out.weight.mT + combiner.out.bias
    assert torch.allclose(law.base_dist.loc, out[..., :D], atol=1e-6)
    assert torch.allclose(law.base_dist.scale, out[..., D:].exp().log1p(), atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, T])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sample_shape", [(), (2,)])
def test_draws_and_gradients_are_those_of_torch_step_by_step(num_steps, dtype, sample_shape):
    combiner = Combiner(D, H, generator=torch.Generator().manual_seed(1)).to(dtype)
    given = features(dtype=dtype)[:, :num_steps].requires_grad_()
    step = combiner(given)
    start = (combiner.initial + torch.ones(N, D, dtype=dtype)).expand(*sample_shape, N, D)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fast = step.draw(start)
        torch.manual_seed(0)
        noise = torch.randn(num_steps, *start.shape, dtype=dtype)
    previous, slow = start, []
    for t in range(num_steps):
        law = step(previous.unsqueeze(-2), slice(t, t + 1)).base_dist
        previous = (law.loc + law.scale * noise[t].unsqueeze(-2)).squeeze(-2)
        slow.append(previous)
    slow = torch.stack(slow, -2)
    assert fast.dtype == dtype
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(fast, slow, atol=atol)
    weight = torch.randn_like(fast)
    inputs = [given, *combiner.parameters()]
    gradients = [torch.autograd.grad((path * weight).sum(), inputs, retain_graph=True) for path in (fast, slow)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=10 * atol)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0][: 1 + num_steps])


def test_what_an_encoder_that_runs_backward_leaves_out():
    """Given the vector before, a step does not depend on earlier observations (ST-R of the paper)."""
    encoder, combiner = RecurrentEncoder(3, H, "backward"), Combiner(D, H)
    x = torch.randn(1, T, 3)
    changed = x.clone()
    changed[:, :2] += 1
    previous = torch.zeros(1, T, D)
    laws = [combiner(encoder(values))(previous, slice(0, T)).base_dist for values in (x, changed)]
    same = (laws[0].loc == laws[1].loc).all(-1).squeeze()
    assert same.tolist() == [False, False, True, True, True]


def test_in_a_ragged_path():
    encoder, combiner = RecurrentEncoder(3, 2 * H, "both"), Combiner(D, H, 2)
    lengths = torch.tensor([5, 1, 0])
    x = torch.randn(N, T, 3)
    path = ContinuousPath(combiner(encoder(x, lengths)), combiner.initial, T, lengths=lengths)
    value = path.rsample((2,))
    assert value.shape == (2, N, T, D)
    x[torch.arange(T) >= lengths.unsqueeze(-1)] = torch.nan
    again = ContinuousPath(combiner(encoder(x, lengths)), combiner.initial, T, lengths=lengths)
    assert torch.equal(path.log_prob(value), again.log_prob(value))
    path.log_prob(value).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in combiner.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="hidden: expected at least 1, got 0"):
        Combiner(2, 0)
    with pytest.raises(ValueError, match=r"features: expected shape \(..., T, 8\), got \(3, 5, 4\)"):
        Combiner(D, H, 2)(features())
