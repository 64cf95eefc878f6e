"""The pieces that every part rests on: choosing rows by state, and the run that finds a network's output."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn

from pyrohmm.nn._common import count, dry_run, mlp, select, start


def by_loops(table, state, event_dim):
    """The definition: one entry at a time."""
    batch = table.shape[: table.dim() - 1 - event_dim]
    shape = torch.broadcast_shapes(state.shape, batch)
    full = table.expand(*shape, *table.shape[len(batch) :])
    states = state.expand(shape)
    out = torch.empty((*shape, *table.shape[len(batch) + 1 :]), dtype=table.dtype)
    for where in np.ndindex(*shape):
        out[where] = full[where][states[where]]
    return out


@pytest.mark.parametrize("event", [(), (4,), (4, 2)])
@pytest.mark.parametrize(
    ("batch", "state_shape"),
    [((), shape) for shape in [(), (1,), (5,), (3, 1), (2, 5)]]
    + [((5,), shape) for shape in [(), (1,), (5,), (3, 1), (2, 5), (3, 1, 1)]]
    + [((2, 5), shape) for shape in [(), (1,), (5,), (1, 1), (2, 1), (2, 5), (3, 1, 1), (4, 3, 1, 1), (3, 2, 1)]],
)
def test_select_is_the_entry_at_the_state(batch, state_shape, event):
    torch.manual_seed(0)
    table = torch.randn(*batch, 3, *event, dtype=torch.float64, requires_grad=True)
    state = torch.randint(3, state_shape)
    got, expected = select(table, state, len(event)), by_loops(table, state, len(event))
    assert got.shape == expected.shape
    assert torch.equal(got, expected)
    weight = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, table, weight), torch.autograd.grad(expected, table, weight), rtol=1e-12, atol=1e-12
    )


def test_select_errors():
    with pytest.raises(TypeError, match="state: expected int64, got torch.float32"):
        select(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(IndexError):
        select(torch.zeros(3, 2), torch.tensor([3]))
    with pytest.raises(IndexError):
        select(torch.zeros(3, 2), torch.tensor([-1]))


def test_dry_run_changes_nothing():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rng = torch.get_rng_state()
    out = dry_run(net, 5, 3)
    assert out.shape == (5, 2)
    assert not out.requires_grad
    assert [module.training for module in net] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_dry_run_leaves_pyro_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    to_pyro_module_(net)
    net[0].weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
    names = set(pyro.get_param_store().keys())
    rng = torch.get_rng_state()
    with pyro.poutine.trace() as trace:
        assert dry_run(net, 5, 3).shape == (5, 2)
    assert not trace.trace.nodes
    assert set(pyro.get_param_store().keys()) == names
    assert torch.equal(torch.get_rng_state(), rng)
    # It can still become a part of another PyroModule, which Pyro refuses to modules that have run.
    PyroModule().net = net


def test_dry_run_errors():
    with pytest.raises(TypeError, match=r"net: expected a torch.nn.Module, got function"):
        dry_run(lambda x: x, 1, 3)
    with pytest.raises(ValueError, match=r"net: expected to accept input \(\.\.\., 3\)"):
        dry_run(nn.Linear(4, 2), 1, 3)


def test_mlp_with_a_generator_leaves_the_global_one():
    rng = torch.get_rng_state()
    first = mlp(3, 4, 5, torch.Generator().manual_seed(1))
    second = mlp(3, 4, 5, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), rng)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert 0 < a.abs().max() <= 3**-0.5


def test_mlp_is_made_on_the_default_device():
    with torch.device("meta"):
        assert {parameter.device.type for parameter in mlp(3, 4, 5, None).parameters()} == {"meta"}


def test_count():
    assert count("n", 0, least=0) == 0
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        count("n", 0)
    for bad in (2.0, True, "2"):
        with pytest.raises(TypeError, match="n: expected an int"):
            count("n", bad)


def test_start_is_broadcast_checked_and_detached():
    value = torch.ones(3, requires_grad=True)
    got = start("rate", value, (2, 3), 0)
    assert got.shape == (2, 3)
    assert not got.requires_grad
    with pytest.raises(ValueError, match=r"rate: expected a shape that broadcasts to \(2, 3\), got \(2,\)"):
        start("rate", [1.0, 2.0], (2, 3))
    for bad in (0.0, float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="rate: expected entries strictly between 0 and inf"):
            start("rate", bad, (2, 3), 0)
