import math

import pytest
import torch
from torch.distributions import Normal

from pyrohmm.ops.gaussian import api, reference

IMPLS = ["reference", "cpu"]
every = pytest.mark.parametrize("impl", IMPLS)
# Below, at and beyond the lanes of a vector; no rows, one, and a number that is no multiple of the rows at once.
SIZES = [(0, 2, 3), (1, 1, 1), (2, 3, 4), (7, 2, 8), (203, 1, 16), (30, 5, 17), (41, 3, 70), (5, 0, 2), (3, 2, 0)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def drawn(size, dtype, lead=()):
    num, dim, states = size
    generator = torch.Generator().manual_seed(0)
    x, loc, scale = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((num, dim), (*lead, states, dim), (*lead, states, dim))
    )
    weights = torch.rand((*lead, num, states), generator=generator, dtype=torch.float64).to(dtype)
    return x, loc, scale.exp(), weights


@every
@sizes
@dtypes
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)], ids=str)
def test_densities_are_those_of_torch(size, dtype, lead, impl):
    x, loc, scale, _ = drawn(size, dtype, lead)
    got = api.log_density(x, loc, scale, impl=impl)
    law = Normal(loc.double().unsqueeze(-3), scale.double().unsqueeze(-3), validate_args=False)
    expected = law.log_prob(x.double().unsqueeze(-2)).sum(-1)
    assert got.dtype == dtype and got.shape == (*lead, size[0], size[2])
    torch.testing.assert_close(got, expected.to(dtype))


@every
@sizes
@dtypes
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)], ids=str)
def test_moments_are_sums(size, dtype, lead, impl):
    x, _, _, weights = drawn(size, dtype, lead)
    centre = torch.linspace(-1, 2, size[1], dtype=torch.float64)
    weight, first, second = api.moments(x, weights, centre, impl=impl)
    off = x.double() - centre
    wide = weights.double()
    assert weight.dtype == first.dtype == second.dtype == torch.float64
    torch.testing.assert_close(weight, wide.sum(-2))
    torch.testing.assert_close(first, torch.einsum("...mk,md->...kd", wide, off))
    torch.testing.assert_close(second, torch.einsum("...mk,md->...kd", wide, off.square()))


@every
def test_sums_of_float32_lose_no_digits(impl):
    """A state far from the centre, with all its rows at one place: the variance is a difference of large numbers."""
    x = torch.full((100_000, 1), 1000.3)
    weight, first, second = api.moments(x, torch.ones(100_000, 1), torch.zeros(1, dtype=torch.float64), impl=impl)
    mean = first / weight.unsqueeze(-1)
    assert abs(second / weight.unsqueeze(-1) - mean.square()).item() < 1e-5  # in float32 it would be 0.06
    assert mean.item() == pytest.approx(x[0].item(), rel=1e-12)


@every
def test_memory_may_be_strided_and_shared(impl):
    x, loc, scale, weights = drawn((12, 4, 6), torch.float64)
    half = x[::2, ::2], loc[::2, ::2], scale[:1, :1]
    torch.testing.assert_close(
        api.log_density(*half, impl=impl), api.log_density(*(v.contiguous() for v in half), impl="reference")
    )
    assert api.log_density(*half, impl=impl).shape == (6, 3)
    some = weights[::2, 1::2]
    got = api.moments(x[::2], some, x[0], impl=impl)
    torch.testing.assert_close(got, api.moments(x[::2].contiguous(), some.contiguous(), x[0], impl="reference"))


@every
def test_dtypes_are_mixed_in_the_wider_one(impl):
    x, loc, scale, weights = drawn((9, 2, 3), torch.float64)
    got = api.log_density(x, loc.float(), scale.float(), impl=impl)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, api.log_density(x, loc.float().double(), scale.float().double(), impl=impl))
    sums = api.moments(x, weights.float(), x[0], impl=impl)
    torch.testing.assert_close(sums, api.moments(x, weights.float().double(), x[0], impl=impl))


@every
def test_extreme_scales(impl):
    x, loc = torch.tensor([[0.0], [1e-30]]), torch.zeros(2, 1)
    got = api.log_density(x, loc, torch.tensor([[1e-30], [1e30]]), impl=impl)
    expected = 30 * math.log(10) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(got[:, 0], torch.tensor([expected, expected - 0.5]))
    torch.testing.assert_close(got[:, 1], torch.full((2,), expected - 60 * math.log(10)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_models_and_rows(threads):
    x, loc, scale, weights = drawn((5001, 4, 8), torch.float32, (3,))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = api.log_density(x, loc, scale, impl="cpu"), api.moments(x, weights, torch.zeros(4), impl="cpu")
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got[0], api.log_density(x, loc, scale, impl="reference"))
    torch.testing.assert_close(got[1], api.moments(x, weights, torch.zeros(4), impl="reference"))


def test_blocks_of_the_reference(monkeypatch):
    x, loc, scale, weights = drawn((50, 3, 4), torch.float64)
    whole = api.log_density(x, loc, scale, impl="reference"), api.moments(x, weights, x[0], impl="reference")
    monkeypatch.setattr(reference, "_BLOCK", 30)
    torch.testing.assert_close(api.log_density(x, loc, scale, impl="reference"), whole[0])
    torch.testing.assert_close(api.moments(x, weights, x[0], impl="reference"), whole[1])


def test_implementations_that_are_not_there():
    x = torch.zeros(2, 1)
    with pytest.raises(NotImplementedError, match="impl: 'gpu' is not available: Gaussian sums have no kernel for it"):
        api.log_density(x, x, x + 1, impl="gpu")
    with pytest.raises(ValueError, match="impl: expected 'auto'"):
        api.moments(x, x, x[0], impl="fast")  # type: ignore[arg-type]
