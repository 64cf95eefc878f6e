import math

import pytest
import torch

from pyrohmm.nn import ConvolutionalEncoder, Encoder, RecurrentEncoder, StepEncoder, TransformerEncoder

N, T, D, H = 4, 7, 3, 8
LENGTHS = torch.tensor([7, 1, 4, 0])

ENCODERS = {
    "step": lambda **kw: StepEncoder(kw.pop("dim", D), H, **kw),
    "forward": lambda **kw: RecurrentEncoder(kw.pop("dim", D), H, "forward", **kw),
    "backward": lambda **kw: RecurrentEncoder(kw.pop("dim", D), H, "backward", num_layers=2, **kw),
    "both": lambda **kw: RecurrentEncoder(kw.pop("dim", D), H, num_layers=2, **kw),
    "convolution": lambda **kw: ConvolutionalEncoder(kw.pop("dim", D), H, num_layers=3, **kw),
    "transformer": lambda **kw: TransformerEncoder(kw.pop("dim", D), H, num_heads=2, **kw),
}


@pytest.fixture(params=ENCODERS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    return lambda **kw: ENCODERS[kind](generator=torch.Generator().manual_seed(0), **kw).double()


@pytest.fixture
def x():
    return torch.randn(N, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def poisoned(x, lengths):
    beyond = torch.arange(x.shape[1]) >= lengths.unsqueeze(-1)
    return x.masked_fill(beyond[(..., *(None,) * (x.dim() - 2))], math.nan)


def test_features_do_not_depend_on_padding(make, x):
    encoder = make(context=2)
    inputs = torch.randn(N, T, 2, dtype=torch.float64)
    features = encoder(poisoned(x, LENGTHS), LENGTHS, inputs=poisoned(inputs, LENGTHS))
    assert features.shape == (N, T, H) and (features[3] == 0).all()
    for n, length in enumerate(LENGTHS.tolist()):
        assert (features[n, length:] == 0).all()
        if length:
            alone = encoder(x[n : n + 1, :length], inputs=inputs[n : n + 1, :length])[0]
            assert torch.allclose(features[n, :length], alone, atol=1e-12)


def test_gradients_are_finite_and_none_comes_from_padding(make, x):
    encoder = make()
    x = poisoned(x, LENGTHS).requires_grad_()
    observed = torch.rand(N, T, generator=torch.Generator().manual_seed(2)) < 0.7
    encoder(x, LENGTHS, observed=observed).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    read = observed & (torch.arange(T) < LENGTHS.unsqueeze(-1))
    assert (x.grad[~read] == 0).all() and (x.grad[read] != 0).any(-1).all()


@pytest.mark.parametrize("missing", ["steps", "entries", None])
@pytest.mark.parametrize("entries", [False, True])
def test_what_is_missing_is_not_read_but_told(make, x, missing, entries):
    encoder = make(missing=missing)
    observed = torch.rand(x.shape if entries else (N, T), generator=torch.Generator().manual_seed(2)) < 0.6
    wide = observed if entries else observed.unsqueeze(-1).expand_as(x)
    features = encoder(torch.where(wide, x, math.nan), LENGTHS, observed=observed)
    zeros = torch.where(wide, x, 0.0)
    assert torch.equal(features, encoder(torch.where(wide, x, 7.0), LENGTHS, observed=observed))
    assert torch.equal(features, encoder(zeros, LENGTHS)) == (missing is None)


@pytest.mark.parametrize("kind", ["forward", "backward", "step"], indirect=False)
def test_directions(kind, x):
    encoder = ENCODERS[kind]().double()
    before = encoder(x)
    x[:, 3] += 1
    changed = (encoder(x) != before).any(-1).any(0).tolist()
    assert (
        changed
        == {
            "forward": [False] * 3 + [True] * 4,
            "backward": [True] * 4 + [False] * 3,
            "step": [t == 3 for t in range(T)],
        }[kind]
    )


def test_reach_of_convolutions():
    encoder = ConvolutionalEncoder(1, 4, num_layers=3).double()
    x = torch.zeros(1, 41, 1, dtype=torch.float64)
    before = encoder(x)
    x[:, 20] = 1
    changed = (encoder(x) != before).any(-1)[0].nonzero().flatten()
    assert changed.min() >= 20 - 7 and changed.max() <= 20 + 7 and changed.max() > 20 + 3


def test_both_directions_see_all(x):
    for kind in ("both", "transformer"):
        encoder = ENCODERS[kind]().double()
        before = encoder(x)
        x[:, 3] += 1
        assert (encoder(x) != before).any(-1).all()


def test_symbols(make):
    encoder = make(dim=5, symbols=True)
    x = torch.randint(0, 5, (N, T), generator=torch.Generator().manual_seed(3))
    observed = torch.rand(N, T, generator=torch.Generator().manual_seed(4)) < 0.7
    features = encoder(x, LENGTHS, observed=observed)
    assert features.shape == (N, T, H)
    junk = torch.where(observed & (torch.arange(T) < LENGTHS.unsqueeze(-1)), x, 99)
    assert torch.equal(encoder(junk, LENGTHS, observed=observed), features)
    # A missing symbol is no symbol, in particular not the first one.
    first = torch.where(observed, x, 0)
    assert not torch.equal(make(dim=5, symbols=True, missing=None)(first, LENGTHS), features)
    silent = make(dim=5, symbols=True, missing=None)
    assert not torch.equal(silent(first, LENGTHS, observed=observed), silent(first, LENGTHS))


def test_numbers_without_an_event_dimension_and_images(make, x):
    assert make(dim=1)(x[..., 0]).shape == (N, T, H)
    assert make(dim=6)(torch.zeros(N, T, 2, 3, dtype=torch.float64)).shape == (N, T, H)


def test_seed_and_state(kind, make, x):
    state = torch.get_rng_state()
    one, two = make(), make()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one(x), two(x))
    other = ENCODERS[kind]().double()
    assert not torch.equal(other(x), one(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), one(x))


def test_one_step_and_float32(make, x):
    encoder = make().float()
    features = encoder(x[:, :1])
    assert features.shape == (N, 1, H) and features.dtype == torch.float32 and features.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"x": x[..., :2]}, "x: expected shape .N, T, .event., with 3 numbers in an event, got .4, 7, 2."),
        (lambda x: {"x": x[0, 0]}, "x: expected shape"),
        (lambda x: {"x": x, "lengths": LENGTHS[:2]}, "lengths: expected shape .4,., got .2,."),
        (lambda x: {"x": x, "observed": torch.ones(4, 6).bool()}, "observed: expected shape .4, 7. or .4, 7, 3."),
        (lambda x: {"x": x, "inputs": x}, "inputs: expected None, got .4, 7, 3."),
    ],
)
def test_bad_arguments(x, change, message):
    with pytest.raises(ValueError, match=message):
        StepEncoder(D, H).double()(**change(x))


def test_bad_settings():
    with pytest.raises(ValueError, match="missing: expected 'steps', 'entries' or None, got 'all'"):
        StepEncoder(D, H, missing="all")
    with pytest.raises(TypeError, match="hidden: expected an int"):
        StepEncoder(D, 2.5)
    with pytest.raises(ValueError, match="direction: expected one of"):
        RecurrentEncoder(D, H, "sideways")
    with pytest.raises(ValueError, match="hidden: expected an even number"):
        RecurrentEncoder(D, 3)
    with pytest.raises(ValueError, match="width: expected an odd number, got 2"):
        ConvolutionalEncoder(D, H, width=2)
    with pytest.raises(ValueError, match="hidden: expected an even multiple of num_heads=3, got 8"):
        TransformerEncoder(D, H, num_heads=3)
    with pytest.raises(ValueError, match="inputs: expected shape .4, 7, 2., got None"):
        StepEncoder(D, H, context=2)(torch.zeros(N, T, D))
    with pytest.raises(ValueError, match="x: expected symbols as integers"):
        StepEncoder(D, H, symbols=True)(torch.zeros(N, T))
    with pytest.raises(NotImplementedError):
        Encoder(D, H).encode(torch.zeros(1), torch.zeros(1), torch.zeros(1))
