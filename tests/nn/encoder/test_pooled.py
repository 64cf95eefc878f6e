import math

import pytest
import torch

from pyrohmm.nn import PooledEncoder, RecurrentEncoder, StepEncoder

N, T, D, L = 4, 6, 2, 3
LENGTHS = torch.tensor([6, 1, 4, 0])


def make(covariance="diag", kind=RecurrentEncoder, **settings):
    generator = torch.Generator().manual_seed(0)
    return PooledEncoder(L, kind(D, 8, generator=generator, **settings), covariance, generator=generator).double()


@pytest.fixture
def x():
    return torch.randn(N, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_law_does_not_depend_on_padding(covariance, x):
    part = make(covariance)
    padded = x.masked_fill((torch.arange(T) >= LENGTHS.unsqueeze(-1)).unsqueeze(-1), math.nan)
    law = part(padded, LENGTHS)
    assert law.batch_shape == (N,) and law.event_shape == (L,)
    for n, length in enumerate(LENGTHS.tolist()):
        if length:
            alone = part(x[n : n + 1, :length])
            torch.testing.assert_close(law.mean[n], alone.mean[0])
            torch.testing.assert_close(law.stddev[n], alone.stddev[0])
    law.rsample().square().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in part.parameters())


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_axis_of_time_can_stay(covariance, x):
    part = make(covariance)
    law, wide = part(x, LENGTHS), part(x, LENGTHS, keepdim=True)
    assert wide.batch_shape == (N, 1)
    u = torch.randn(N, L, dtype=torch.float64)
    torch.testing.assert_close(wide.log_prob(u.unsqueeze(1)).squeeze(1), law.log_prob(u))


def test_full_covariance(x):
    covariance = make("full")(x).covariance_matrix
    assert (torch.linalg.eigvalsh(covariance) > 0).all()
    assert (covariance - covariance.diagonal(0, -2, -1).diag_embed()).abs().max() > 1e-3


def test_full_covariance_of_one_number_is_the_diagonal(x):
    parts = [
        PooledEncoder(1, StepEncoder(D, 4), covariance, generator=torch.Generator().manual_seed(0)).double()
        for covariance in ("diag", "full")
    ]
    parts[1].load_state_dict(parts[0].state_dict())
    torch.testing.assert_close(parts[0](x).stddev, parts[1](x).stddev)


def test_number_of_steps_is_told(x):
    # The same features at every step: only their number differs.
    part = make(kind=StepEncoder)
    same = x[:1, :1].expand(2, T, D)
    spread = part(same, torch.tensor([2, T])).stddev
    assert (spread[0] != spread[1]).all()
    once = torch.arange(T) == 0
    silent = make(kind=StepEncoder, missing=None)
    zeros = torch.zeros(2, T, D, dtype=torch.float64)
    spread = silent(zeros, observed=torch.stack([once, torch.ones(T).bool()])).stddev
    assert (spread[0] != spread[1]).all()


@pytest.mark.parametrize("entries", [False, True])
def test_what_is_missing_is_not_read(entries, x):
    part = make()
    observed = torch.rand((N, T, D) if entries else (N, T), generator=torch.Generator().manual_seed(2)) < 0.6
    wide = observed if entries else observed.unsqueeze(-1)
    law = part(torch.where(wide, x, math.nan), LENGTHS, observed=observed)
    torch.testing.assert_close(law.mean, part(x, LENGTHS, observed=observed).mean, rtol=0, atol=0)
    assert law.mean.isfinite().all() and not torch.allclose(law.mean, part(x, LENGTHS).mean)


def test_seed_and_float32(x):
    state = torch.get_rng_state()
    one, two = make(), make()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one(x).mean, two(x).mean)
    assert one.float()(x[:, :1]).mean.dtype == torch.float32


def test_bad_arguments():
    with pytest.raises(TypeError, match="encoder: expected a pyrohmm.nn.Encoder, got Linear"):
        PooledEncoder(L, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="dim: expected at least 1, got 0"):
        PooledEncoder(0, StepEncoder(2, 4))
    with pytest.raises(ValueError, match="covariance: expected one of .*, got 'low rank'"):
        PooledEncoder(L, StepEncoder(2, 4), "low rank")
