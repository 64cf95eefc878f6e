from functools import partial

import pyro
import pytest
import torch

from pyrohmm.infer.optimizer import ClippedAdam


def parameters(*names: str) -> list[torch.Tensor]:
    return [pyro.param(name, torch.zeros(2)).unconstrained() for name in names]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [1.0, 0.8535534, 0.5, 0.1464466, 0.0]),
        ("exponential", [1.0, 0.3162278, 0.1, 0.0316228, 0.01]),
        (partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5), [1.0, 1.0, 0.5, 0.5, 0.25]),
    ],
)
def test_schedule(schedule, expected):
    (x,) = parameters("x")
    adam = ClippedAdam(0.2, schedule, steps=4)
    rates = []
    for _ in range(5):
        x.grad = torch.ones(2)
        adam([x])
        rates.append(adam.learning_rate / 0.2)
        adam.step()
    assert rates == pytest.approx(expected, abs=1e-6)


def test_equals_torch_adam_on_the_clipped_gradient():
    x, y = parameters("x", "y")
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    adam, torch_adam = ClippedAdam(0.1, clip_norm=3.0), torch.optim.Adam([a, b], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 10.0, 1.0):
        gradients = size * torch.randn(2, 2, generator=generator)
        x.grad, y.grad = gradients[0].clone(), gradients[1].clone()
        a.grad, b.grad = gradients[0].clone(), gradients[1].clone()
        adam({x, y})
        adam.step()
        torch.nn.utils.clip_grad_norm_([a, b], 3.0)
        torch_adam.step()
        torch.testing.assert_close(torch.stack([x, y]), torch.stack([a, b]))
    assert adam.updates == 3


def test_order_of_the_parameters_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(40, 2, generator=generator)
    found = []
    for order in [torch.arange(40), *(torch.randperm(40, generator=generator) for _ in range(20))]:
        pyro.clear_param_store()
        values = parameters(*(f"x{i}" for i in range(40)))
        for value, gradient in zip(values, gradients, strict=True):
            value.grad = gradient.clone()
        adam = ClippedAdam(0.1, clip_norm=1.0)
        adam([values[i] for i in order])
        found.append(torch.stack([value.grad for value in values]))
    assert all(torch.equal(found[0], other) for other in found)


def test_frozen_parameters_are_left_and_not_counted_in_the_norm():
    x, y = parameters("x", "y")
    adam = ClippedAdam(0.1, clip_norm=1.0, frozen=[y])
    x.grad, y.grad = torch.tensor([0.5, 0.5]), torch.full((2,), 1e9)
    adam([x, y])
    assert (y == 0).all()
    assert (x.grad == 0.5).all()


def test_gradient_that_is_not_finite_changes_nothing():
    x, y = parameters("x", "y")
    adam = ClippedAdam(0.1)
    x.grad, y.grad = torch.ones(2), torch.tensor([1.0, torch.nan])
    with pytest.raises(FloatingPointError, match=r"not finite, in \['y'\]"):
        adam([x, y])
    assert (x == 0).all()
    assert adam.updates == 0


def test_unknown_schedule():
    with pytest.raises(ValueError, match="schedule: expected 'cosine'"):
        ClippedAdam(0.1, "linear")  # type: ignore[arg-type]
