"""Marks on the tensors of a loop's body."""

from types import SimpleNamespace

import pytest
import torch

from pyrohmm.program.tracked import Mark, Tracked, keeps_state_of_run, plain, track


def marked(kind="state", run=1):
    loop = SimpleNamespace(name="time", run=run)
    return loop, track(torch.arange(3), Mark(loop, "z", kind, run))


def test_what_is_computed_is_marked_and_equal():
    _, z = marked()
    table = torch.tensor([0.5, 1.5, 2.5])
    assert isinstance(table[z], Tracked) and isinstance(z + 1, Tracked)
    assert type(plain(table[z])) is torch.Tensor
    torch.testing.assert_close(plain(table[z]), table)


def test_a_state_serves_one_run_longer_and_no_more():
    loop, z = marked()
    loop.run = 2
    assert plain(z + 1).tolist() == [1, 2, 3]
    loop.run = 3
    with pytest.raises(ValueError, match="two steps ago"):
        z + 1
    loop.run = torch.inf
    with pytest.raises(ValueError, match="after loop 'time'"):
        z + 1


def test_an_observation_serves_its_run_and_after_the_loop():
    loop, x = marked("observed")
    assert float((x + 1).sum()) == 6.0
    loop.run = 2
    with pytest.raises(ValueError, match="pyrohmm.previous"):
        x + 1
    loop.run = torch.inf
    assert type(x + 1) is torch.Tensor


def test_gradients_pass_through():
    loop = SimpleNamespace(name="time", run=1)
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    (3 * track(weight, Mark(loop, "x", "observed", 1))).sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("hold", [lambda z: z, lambda z: [z], lambda z: {"a": (z,)}, lambda z: SimpleNamespace(z=z)])
def test_holders_of_old_states_are_found(hold):
    loop, z = marked()
    assert keeps_state_of_run({"held": hold(z)}, loop, 1)
    assert not keeps_state_of_run({"held": hold(z)}, loop, 2)
    assert not keeps_state_of_run({"held": hold(torch.arange(3))}, loop, 1)
