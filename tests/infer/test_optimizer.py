import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from pyrohmm.infer.optimizer import ClippedAdam


def zeros(*names: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.zeros(2, dtype=dtype, requires_grad=True) for name in names}


def give(parameters: dict[str, Tensor], *gradients: Tensor | list[float]) -> None:
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype).clone()


LOSS = torch.tensor(1.0)


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
    parameters = zeros("x")
    adam = ClippedAdam(parameters, 0.2, schedule, steps=4)
    rates, moved = [], []
    for _ in range(5):
        give(parameters, [1.0, 1.0])
        before = parameters["x"].detach().clone()
        assert adam.learning_rate == pytest.approx(0.2 * expected[len(rates)], abs=1e-6)
        rates.append(adam.step(LOSS).learning_rate / 0.2)
        moved.append((before - parameters["x"])[0].item() / 0.2)
    assert rates == pytest.approx(expected, abs=1e-6)
    assert moved == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_adam_on_the_clipped_gradient(dtype):
    parameters, same = zeros("x", "y", dtype=dtype), zeros("x", "y", dtype=dtype)
    adam = ClippedAdam(parameters, 0.1, clip_norm=3.0)
    torch_adam = torch.optim.Adam(same.values(), lr=0.1, foreach=False)
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 10.0, 1.0):
        gradients = size * torch.randn(2, 2, generator=generator, dtype=dtype)
        give(parameters, *gradients)
        give(same, *gradients)
        found = adam.step(LOSS)
        torch.nn.utils.clip_grad_norm_(same.values(), 3.0)
        torch_adam.step()
        assert found.names == ["x", "y"]
        torch.testing.assert_close(found.numbers, torch.cat([LOSS[None], gradients.norm(dim=1)]))
        for name, value in same.items():
            torch.testing.assert_close(parameters[name], value, rtol=1e-6, atol=1e-6)
    assert adam.updates == 3


def test_parameters_without_a_gradient_stay_and_are_not_counted_in_the_norm():
    parameters = zeros("x", "y")
    adam = ClippedAdam(parameters, 0.1, clip_norm=1.0)
    give({"x": parameters["x"]}, [3.0, 4.0])
    assert adam.step(LOSS).names == ["x"]
    assert (parameters["x"] != 0).all()
    assert (parameters["y"] == 0).all()
    assert all(parameter.grad is None for parameter in parameters.values())


def test_parameters_that_are_added_are_trained():
    parameters, late = zeros("x"), zeros("y")
    adam = ClippedAdam(parameters, 0.1, "cosine", steps=3)
    give(parameters, [1.0, 1.0])
    adam.step(LOSS)
    adam.add(late)
    give(parameters | late, [1.0, 1.0], [2.0, 2.0])
    found = adam.step(LOSS)
    assert found.names == ["x", "y"]
    torch.testing.assert_close(late["y"].detach(), torch.full((2,), -found.learning_rate))


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_changes_nothing_and_ends_all_changes(what, bad):
    parameters, same = zeros("x", "y"), zeros("x", "y")
    adam, short = ClippedAdam(parameters, 0.1), ClippedAdam(same, 0.1)
    for step in range(5):
        for each, some in ((adam, parameters), (short, same)):
            if each is adam or step < 2:
                broken = step == 2
                give(some, [1.0, 2.0], [3.0, bad if broken and what == "gradient" else 4.0])
                found = each.step(torch.tensor(bad if broken and what == "loss" else 1.0))
                assert found.numbers.isfinite().all() == (not broken)
    for name, value in same.items():
        assert torch.equal(parameters[name], value)
    states, expected = adam.state()["adam"]["state"], short.state()["adam"]["state"]
    for index, state in expected.items():
        for name, value in state.items():
            assert torch.equal(states[index][name], value)


@pytest.mark.parametrize("loss", [2.5, torch.tensor(2.5, dtype=torch.float64)])
def test_loss_of_any_kind(loss):
    parameters = zeros("x")
    give(parameters, [3.0, 4.0])
    assert ClippedAdam(parameters, 0.1).step(loss).numbers.tolist() == [2.5, 5.0]
    assert ClippedAdam(parameters, 0.1).step(loss).numbers.tolist() == [2.5]


def test_state():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 2, 2, generator=generator)
    parameters = zeros("x", "y")
    adam = ClippedAdam(parameters, 0.1, "cosine", steps=6)
    for gradient in gradients[:3]:
        give(parameters, *gradient)
        adam.step(LOSS)
    copies = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    other = ClippedAdam(copies, 0.1, "cosine", steps=6)
    other.load(copy.deepcopy(adam.state()))
    for each, some in ((adam, parameters), (other, copies)):
        for gradient in gradients[3:]:
            give(some, *gradient)
            each.step(LOSS)
    assert all(torch.equal(parameters[name], copies[name]) for name in copies)
    with pytest.raises(ValueError, match=r"expected the parameters \['x'\], got \['x', 'y'\]"):
        ClippedAdam(zeros("x"), 0.1).load(adam.state())


def test_unknown_schedule():
    with pytest.raises(ValueError, match="schedule: expected 'cosine'"):
        ClippedAdam(zeros("x"), 0.1, "linear")  # type: ignore[arg-type]
