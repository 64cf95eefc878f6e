"""Marks on the tensors of a loop's body."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyrohmm
from pyrohmm import ops
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


class Square(torch.autograd.Function):
    """A user's own function, whose backward pass gets back the tensor that it saved, after the loop."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, *grads):
        return 2 * ctx.saved_tensors[0] * grads[0]


@pytest.mark.parametrize("square", [Square.apply, torch.square], ids=["own", "torch's"])
def test_a_function_with_a_backward_pass_of_its_own(square):
    location = torch.tensor([0.5, 1.0, -2.0], requires_grad=True)
    observed = torch.linspace(-1, 1, 4)

    def model():
        z = None
        for t in pyrohmm.markov("time", 4, dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=torch.eye(3)[0 if z is None else z]))
            pyro.sample("x", dist.Normal(square(location[z]), 1.0), obs=observed[t])

    loss = Trace_ELBO().differentiable_loss(model, lambda: None)
    (found,) = torch.autograd.grad(loss, location)
    initial, transition = torch.eye(3)[0].log_softmax(-1), torch.eye(3).log_softmax(-1)
    observation = dist.Normal(location**2, 1.0).log_prob(observed.unsqueeze(-1))
    (expected,) = torch.autograd.grad(-ops.log_partition(initial, transition, observation), location)
    torch.testing.assert_close(found, expected)
