import pytest
import torch

from pyrohmm.nn import SwitchingDynamics
from pyrohmm.nn.switching import raw


def dynamics(hidden=0, dtype=torch.float64):
    part = SwitchingDynamics(3, 2, hidden, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        if part.last_weight is not None:
            part.last_weight.normal_(generator=torch.Generator().manual_seed(1))
        part.raw_scale.add_(torch.arange(6.0).reshape(3, 2) / 5)
    return part


def plain_loc(part, state, before):
    loc = part.weight[state] @ before + part.bias[state]
    if part.hidden:
        units = (part.first_weight[state] @ before + part.first_bias[state]).tanh()
        loc = loc + part.last_weight[state] @ units / part.hidden
    return loc


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_law_is_that_of_each_state(hidden, dtype):
    part, before = dynamics(hidden, dtype), torch.randn(4, 5, 2, dtype=dtype)
    enumerated = part(torch.arange(3).reshape(3, 1, 1), before).base_dist
    drawn = torch.randint(3, (4, 5))
    single = part(drawn, before).base_dist
    scale = torch.nn.functional.softplus(part.raw_scale) + 1e-4
    for n in range(4):
        for t in range(5):
            for k in range(3):
                torch.testing.assert_close(enumerated.loc[k, n, t], plain_loc(part, k, before[n, t]))
                torch.testing.assert_close(enumerated.scale.expand(3, 4, 5, 2)[k, n, t], scale[k])
            torch.testing.assert_close(single.loc[n, t], plain_loc(part, drawn[n, t], before[n, t]))
            torch.testing.assert_close(single.scale[n, t], scale[drawn[n, t]])


def test_first_step():
    part = dynamics()
    law = part(torch.tensor([[2], [0]])).base_dist
    torch.testing.assert_close(law.loc, part.initial_loc[torch.tensor([[2], [0]])])
    torch.testing.assert_close(law.scale, torch.ones(2, 1, 2, dtype=torch.float64))


def test_scales_that_were_asked_for():
    scale = torch.tensor([0.001, 0.3, 1.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.softplus(raw(scale)) + 1e-4, scale)
    part = SwitchingDynamics(2, 3, scale=0.2)
    torch.testing.assert_close(part(torch.tensor(1), torch.zeros(3)).base_dist.scale, torch.full((3,), 0.2))


@pytest.mark.parametrize("hidden", [1, 16, 256])
def test_a_step_of_adam_goes_no_farther_with_more_units(hidden):
    part = SwitchingDynamics(2, 2, hidden, generator=torch.Generator().manual_seed(0))
    state, before = torch.arange(2).unsqueeze(-1), torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    start = part(state, before).base_dist.loc.detach()
    adam = torch.optim.Adam([part.last_weight], lr=0.01)
    part(state, before).base_dist.loc.sum().backward()
    adam.step()
    moved = (part(state, before).base_dist.loc - start).abs().max()
    assert 1e-4 < moved < 0.0101  # with a sum of the units it would be about `hidden` times as far


@pytest.mark.parametrize("hidden", [0, 4])
def test_relabel(hidden):
    part, before, order = dynamics(hidden), torch.randn(2, dtype=torch.float64), torch.tensor([2, 0, 1])
    laws = [part(order, before).base_dist, part(order).base_dist]
    part.relabel(order)
    states = torch.arange(3)
    for old, new in zip(laws, [part(states, before).base_dist, part(states).base_dist], strict=True):
        torch.testing.assert_close(new.loc, old.loc)
        torch.testing.assert_close(new.scale, old.scale)


def test_errors_and_random_start():
    with pytest.raises(ValueError, match="dim: expected at least 1, got 0"):
        SwitchingDynamics(2, 0)
    with pytest.raises(ValueError, match="hidden: expected at least 0"):
        SwitchingDynamics(2, 1, -1)
    with pytest.raises(ValueError, match="scale: expected a positive number, got 0.0"):
        SwitchingDynamics(2, 1, scale=0.0)
    first, second = (SwitchingDynamics(2, 2, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
