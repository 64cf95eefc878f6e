"""The matrix form of a log-density against the distribution's own, in value, gradient, errors and edge cases."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyrohmm.distributions import padding as padding_module
from pyrohmm.distributions import statewise

NAN = math.nan

# Batch shapes of the distribution and of the value.
SHAPES = [
    ((3, 1, 1), (4, 5)),
    ((1, 1, 1), (4, 5)),
    ((3, 1), (5,)),
    ((3,), ()),
    ((), ()),
    ((), (5,)),
    ((2, 3, 1, 1), (4, 5)),
    ((2, 1, 1, 1), (3, 4, 5)),
    ((3, 4, 1), (4, 5)),
    ((3, 1, 5), (4, 5)),
    ((3, 4, 5), (4, 5)),
    ((3, 1, 5), (4, 1)),
    ((3, 4, 1), (1, 5)),
    ((3,), (4, 5, 1)),
    ((5, 3), (4, 5, 1)),
    ((3, 1, 1), (1, 1)),
]
EVENTS = [(), (6,), (1,), (2, 3)]


def positive(shape):
    return (torch.rand(shape, dtype=torch.float64) + 0.1).requires_grad_()


# Name -> a family by one parameter, the parameter's shape beyond that of the batch, and a draw of values.
FAMILIES = {
    "bernoulli-logits": (lambda p: dist.Bernoulli(logits=p.log()), (), lambda s: torch.randint(2, s).double()),
    "bernoulli-probs": (lambda p: dist.Bernoulli(probs=p / 2), (), lambda s: torch.randint(2, s).double()),
    "bernoulli-torch": (
        lambda p: torch.distributions.Bernoulli(logits=p.log()),
        (),
        lambda s: torch.randint(2, s).double(),
    ),
    "poisson": (lambda p: dist.Poisson(3 * p), (), lambda s: torch.randint(6, s).double()),
    "poisson-sparse": (lambda p: dist.Poisson(3 * p, is_sparse=True), (), lambda s: torch.randint(6, s).double()),
    "categorical-logits": (lambda p: dist.Categorical(logits=p.log()), (4,), lambda s: torch.randint(4, s)),
    "categorical-probs": (lambda p: dist.Categorical(probs=p), (4,), lambda s: torch.randint(4, s)),
    "normal": (lambda p: dist.Normal(p, 0.5), (), lambda s: torch.randn(s).double()),
}


def build(family, batch, event):
    make, extra, draw = FAMILIES[family]
    parameter = positive((*batch, *event, *extra))
    fn = torch.distributions.Independent(make(parameter), len(event)) if event else make(parameter)
    return fn, parameter, draw


def value_and_gradients(log_prob, *inputs):
    weight = torch.linspace(-1.0, 2.0, log_prob.numel(), dtype=log_prob.dtype).reshape(log_prob.shape)
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    return log_prob.detach(), *torch.autograd.grad(
        (weight * log_prob).sum(), inputs, allow_unused=True, retain_graph=True
    )


@pytest.fixture(params=[False, True], ids=["asks", "waits"])
def waits(request, monkeypatch):
    """Whether to ask the device for a number is to wait for it, as on a GPU."""
    for module in (statewise, padding_module):
        monkeypatch.setattr(module, "waits", lambda tensor: request.param)
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_is_log_prob(family, event, waits):
    for batch, of_value in SHAPES:
        torch.manual_seed(0)
        fn, parameter, draw = build(family, batch, event)
        value = draw((*of_value, *event))
        # The sparse form has no gradient where a value is zero.
        value.requires_grad_(value.is_floating_point() and family != "poisson-sparse")
        found = value_and_gradients(statewise.log_prob(fn, value), parameter, value)
        assert_close(found, value_and_gradients(fn.log_prob(value), parameter, value))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_expanded(family, event):
    torch.manual_seed(0)
    fn, parameter, draw = build(family, (3, 1, 1), event)
    value = draw((4, 5, *event))
    wide = fn.expand((2, 3, 4, 5))
    found = value_and_gradients(statewise.log_prob(wide, value), parameter)
    assert_close(found, value_and_gradients(wide.log_prob(value), parameter))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "normal"])
@pytest.mark.parametrize("wide", [(3, 1, 1), (3, 4, 5)])
def test_states_are_contiguous(family, wide):
    fn, _, draw = build(family, (3, 1, 1), (6,))
    assert statewise.log_prob(fn.expand(wide), draw((4, 5, 6))).stride() == (1, 15, 3)
    assert fn.log_prob(draw((4, 5, 6))).stride() == (20, 5, 1)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "normal"])
def test_differentiable_twice(family):
    torch.manual_seed(0)
    make, extra, draw = FAMILIES[family]
    value = draw((4, 2))
    inputs = positive((3, 1, 2, *extra))
    assert torch.autograd.gradgradcheck(
        lambda p: statewise.log_prob(torch.distributions.Independent(make(p), 1), value), inputs
    )


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [0.0, -1.0, NAN, 7.0])
def test_unread(family, padding, validate, waits):
    torch.manual_seed(0)
    fn, parameter, draw = build(family, (3, 1, 1), (2,))
    fn.base_dist._validate_args = validate
    value = draw((4, 5, 2))
    read = torch.arange(5) < torch.tensor([0, 1, 3, 5]).unsqueeze(-1)
    padded = torch.where(read.unsqueeze(-1), value.double(), padding).requires_grad_()
    log_prob = statewise.log_prob(fn, padded, read)
    assert log_prob.isfinite().all()
    found = value_and_gradients(torch.where(read, log_prob, 0), parameter, padded)
    expected = value_and_gradients(torch.where(read, fn.log_prob(value), 0), parameter)
    assert_close(found[:2], expected)
    assert found[2] is None or (found[2][~read] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [0.0, NAN])
def test_shape_does_not_depend_on_padding(family, padding):
    fn, _, draw = build(family, (3, 1, 1), ())
    read = torch.arange(5) < torch.tensor([2, 3]).unsqueeze(-1)
    value = draw((5,)).double()
    value[-1] = padding
    assert statewise.log_prob(fn, value, read).shape == (3, 2, 5)


@pytest.mark.parametrize("family", ["bernoulli-logits", "poisson", "categorical-logits"])
@pytest.mark.parametrize("bad", [-1.0, 0.5, 9.5, NAN, math.inf])
def test_outside_of_the_support(family, bad, waits):
    for event in EVENTS:
        fn, _, draw = build(family, (3, 1, 1), event)
        value = draw((4, 5, *event)).double()
        value[(-1, -1, *(-1,) * len(event))] = bad
        with pytest.raises(ValueError, match="within the support"):
            statewise.log_prob(fn, value)
        with pytest.raises(ValueError, match="within the support"):
            statewise.log_prob(fn, value, torch.ones(4, 5, dtype=torch.bool))


@pytest.mark.parametrize("bad", [1 - 2.0**-24, 2.0**-149, 1 + 2.0**-23])
def test_almost_a_bit(bad):
    value = torch.ones(4, 5)
    value[2, 3] = bad
    with pytest.raises(ValueError, match="within the support"):
        statewise.log_prob(dist.Bernoulli(torch.full((3, 1, 1), 0.5)), value)


def test_without_validation_a_bernoulli_value_may_be_a_fraction():
    fn = dist.Bernoulli(torch.tensor([0.2, 0.9]).reshape(2, 1, 1), validate_args=False)
    value = torch.rand(4, 5)
    assert_close(statewise.log_prob(fn, value), fn.log_prob(value))


@pytest.mark.parametrize("family", ["bernoulli-logits", "poisson", "categorical-logits"])
@pytest.mark.parametrize("shape", [(4, 5, 7), (2, 5, 6), (5,)])
def test_shape_that_does_not_fit(family, shape):
    fn, _, _ = build(family, (3, 4, 1), (6,))
    with pytest.raises(ValueError, match="is not broadcastable"):
        statewise.log_prob(fn, torch.zeros(shape))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(4, 5, 1), (1, 1), ()])
def test_event_to_broadcast(family, shape):
    fn, _, draw = build(family, (3, 4, 1), (6,))
    value = draw(shape)
    assert_close(statewise.log_prob(fn, value), fn.log_prob(value))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_values(family):
    fn, _, draw = build(family, (3, 1, 1), ())
    assert statewise.log_prob(fn, draw((4, 0))).shape == (3, 4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    value = torch.randint(2, (4, 5))
    for fn, values in (
        (dist.Bernoulli(torch.full((3, 1, 1), 0.3, dtype=dtype)), [value.to(dtype)]),
        (dist.Poisson(torch.ones(3, 1, 1, dtype=dtype)), [value, value.float(), value.double()]),
        (dist.Categorical(torch.ones(3, 1, 1, 2, dtype=dtype)), [value, value.float(), value.int()]),
    ):
        for value in values:
            assert_close(statewise.log_prob(fn, value), fn.log_prob(value))


@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_extreme_bernoulli(bit, waits):
    value = torch.full((4, 5, 2), bit)
    for edge in (0.0, 1.0):
        fn = dist.Bernoulli(torch.tensor([[0.5, edge], [0.5, 0.5]]).reshape(2, 1, 1, 2)).to_event(1)
        assert_close(statewise.log_prob(fn, value), fn.log_prob(value))
    for edge in (1e30, -1e30) if waits else (math.inf, -math.inf, 1e30, -1e30):
        fn = dist.Bernoulli(logits=torch.tensor([[0.5, edge], [0.5, 0.5]]).reshape(2, 1, 1, 2)).to_event(1)
        assert_close(statewise.log_prob(fn, value), fn.log_prob(value), equal_nan=True)


def test_rate_zero_or_infinite(waits):
    fn = dist.Poisson(torch.tensor([0.0, 1.0, math.inf]).reshape(3, 1).requires_grad_())
    value = torch.tensor([0.0, 2.0])
    log_prob = statewise.log_prob(fn, value)
    assert_close(log_prob[:2], fn.log_prob(value)[:2])
    assert log_prob[0].tolist() == [0.0, -math.inf]
    assert log_prob[2, 0] == -math.inf


def test_impossible_symbol():
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]]).reshape(2, 1, 3).requires_grad_()
    log_prob = statewise.log_prob(dist.Categorical(logits=logits), torch.tensor([0, 2]))
    assert_close(log_prob.detach(), torch.tensor([[0.5, 0.0], [1 / 3, 1 / 3]]).log())
    (gradient,) = torch.autograd.grad(log_prob[:, 0].sum(), logits)
    assert gradient.isfinite().all()


def test_accuracy():
    """Large logits that the data agree with leave a small log-density, with a small error."""
    torch.manual_seed(0)
    logits = 15 * torch.randn(16, 500)
    value = torch.bernoulli(logits.sigmoid())
    expected = dist.Bernoulli(logits=logits.double()).to_event(1).log_prob(value.double())
    plain = (dist.Bernoulli(logits=logits).to_event(1).log_prob(value) - expected).abs().mean()
    fn = dist.Bernoulli(logits=logits.unsqueeze(1)).to_event(1)
    found = statewise.log_prob(fn, value).diagonal()
    assert (found - expected).abs().mean() <= 2 * plain


def test_subclass_and_wrapper_are_asked_themselves():
    class Shifted(dist.Bernoulli):
        def log_prob(self, value):
            return super().log_prob(value) + 1

    probs, value = torch.tensor([0.2, 0.7]).reshape(2, 1), torch.tensor([0.0, 1.0, 1.0])
    assert_close(statewise.log_prob(Shifted(probs), value), dist.Bernoulli(probs).log_prob(value) + 1)
    masked = dist.Bernoulli(probs).mask(torch.tensor([True, False, True]))
    assert_close(statewise.log_prob(masked, value), masked.log_prob(value))


# More values than are worked on at a time.


def of_all_states(logits, value):
    return statewise.log_prob(dist.Bernoulli(logits=logits.unsqueeze(1)).to_event(1), value)


@pytest.mark.parametrize("cut", ["none", "first step", "every second tone", "short"])
def test_bernoulli_in_blocks(cut):
    generator = torch.Generator().manual_seed(0)
    value = torch.randint(2, (300, 41, 50), generator=generator).double()
    value = {
        "none": value,
        "first step": value[:, 1:],
        "every second tone": value[..., ::2],
        "short": value[:, :2],
    }[cut]
    flat = value.flatten(0, 1)
    assert cut == "short" or value.numel() > statewise._scratch.size
    logits = torch.randn(3, value.shape[-1], dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(3, len(flat), dtype=torch.float64, generator=generator)
    for observed in (value, flat):
        fn = dist.Bernoulli(logits=logits.reshape(3, *(1,) * (observed.dim() - 1), -1)).to_event(1)
        found, expected = statewise.log_prob(fn, observed), fn.log_prob(observed)
        assert_close(found, expected, rtol=1e-12, atol=0)
        ours, theirs = (torch.autograd.grad((x.reshape(3, -1) * weights).sum(), logits)[0] for x in (found, expected))
        assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


def test_bernoulli_in_blocks_refuses_what_is_no_bit():
    value = torch.zeros(6000, 50)
    fn = dist.Bernoulli(logits=torch.zeros(3, 1, 50), validate_args=True).to_event(1)
    for bad in (0.5, 2.0, -1.0, NAN, math.inf):
        value[5999, 49] = bad
        with pytest.raises(ValueError, match="support"):
            statewise.log_prob(fn, value)
        read = torch.arange(6000) < 5999
        assert_close(statewise.log_prob(fn, value, read)[:, :5999], torch.full((3, 5999), 50 * math.log(0.5)))


def test_derivatives_of_bernoulli_densities():
    value = torch.rand(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def relaxed(logits, value):
        return statewise.log_prob(dist.Bernoulli(logits=logits.unsqueeze(1), validate_args=False).to_event(1), value)

    assert torch.autograd.gradcheck(relaxed, (logits, value))
    assert torch.autograd.gradgradcheck(relaxed, (logits, value))


def test_scratch_memory_of_inference_mode_serves_afterwards():
    value = torch.randint(2, (10, 6)).float()
    logits = torch.randn(3, 6, requires_grad=True)
    statewise._scratch.buffers.clear()
    with torch.inference_mode():
        inside = of_all_states(logits, value)
    outside = of_all_states(logits, value)
    outside.sum().backward()
    assert_close(inside.clone(), outside.detach())


@pytest.mark.parametrize("apart", [10.0, 1e3, 1e6])
def test_narrow_gaussians_far_apart(apart):
    """Without gradients, float32 is about as good as the plain density, however far the other states are."""
    factor = torch.tensor([[1.0, 0.0], [1.0, 0.01]])
    loc = torch.stack([torch.zeros(2), torch.full((2,), apart)])
    fn = dist.MultivariateNormal(loc.unsqueeze(1), scale_tril=factor)
    noise = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) @ factor.mT
    with torch.no_grad():
        for k in range(2):
            x = loc[k] + noise
            exact = dist.MultivariateNormal(loc[k].double(), scale_tril=factor.double()).log_prob(x.double())
            plain = dist.MultivariateNormal(loc[k], scale_tril=factor).log_prob(x)
            ours = statewise.log_prob(fn, x)[k]
            assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-5
