"""Simulation by a loop whose body observes nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyrohmm

INITIAL = torch.tensor([0.2, 0.8])
TRANSITION = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
LOC = torch.tensor([-5.0, 5.0])


def gaussian(num_sequences, num_steps, lengths=None):
    with pyro.plate("sequences", num_sequences, dim=-2):
        z = None
        for _ in pyrohmm.markov("time", num_steps, dim=-1, lengths=lengths):
            z = pyro.sample("z", dist.Categorical(INITIAL if z is None else TRANSITION[z]))
            pyro.sample("x", dist.Normal(LOC[z], 1.0))


def symbols(num_sequences, num_steps):
    """An observation that could be enumerated, too."""
    with pyro.plate("sequences", num_sequences, dim=-2):
        z = None
        for _ in pyrohmm.markov("time", num_steps, dim=-1):
            z = pyro.sample("z", dist.Categorical(INITIAL if z is None else TRANSITION[z]))
            pyro.sample("x", dist.Categorical(torch.tensor([[0.8, 0.1, 0.1], [0.0, 0.5, 0.5]])[z]))


def simulate(model, *args):
    pyro.set_rng_seed(0)
    trace = poutine.trace(model).get_trace(*args)
    return {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}


def check_chain(z):
    """Frequencies of first states and transitions, within four standard errors."""
    first = (z[:, 0] == 1).float().mean()
    assert abs(first - 0.8) < 4 * (0.16 / len(z)) ** 0.5
    for state in (0, 1):
        following = z[:, 1:][z[:, :-1] == state]
        p = TRANSITION[state, 1]
        assert abs((following == 1).float().mean() - p) < 4 * (p * (1 - p) / len(following)) ** 0.5


def test_states_and_observations_follow_the_model():
    sites = simulate(gaussian, 500, 20)
    z, x = sites["z"], sites["x"]
    assert z.shape == x.shape == (500, 20)
    check_chain(z)
    assert ((x > 0) == (z == 1)).all()
    assert abs((x - LOC[z]).std() - 1) < 0.05


def test_observations_that_could_be_enumerated():
    sites = simulate(symbols, 500, 20)
    z, x = sites["z"], sites["x"]
    check_chain(z)
    assert (x[z == 1] > 0).all()
    assert abs((x[z == 0] == 0).float().mean() - 0.8) < 0.03


def test_first_step_alone():
    z = simulate(gaussian, 2000, 1)["z"]
    assert z.shape == (2000, 1)
    assert abs((z == 1).float().mean() - 0.8) < 0.04


def test_past_the_length_states_are_minus_one_and_values_zero():
    lengths = torch.tensor([3, 0, 5])
    sites = simulate(gaussian, 3, 5, lengths)
    past = torch.arange(5) >= lengths.unsqueeze(-1)
    assert (sites["z"][past] == -1).all() and (sites["z"][~past] >= 0).all()
    assert (sites["x"][past] == 0).all() and (sites["x"][~past] != 0).all()


def test_chain_without_observations():
    def model():
        z = None
        for _ in pyrohmm.markov("time", 30):
            z = pyro.sample("z", dist.Categorical(INITIAL if z is None else torch.eye(2)[z]))

    z = simulate(model)["z"]
    assert z.shape == (30,) and (z == z[0]).all()


def test_factorial_chain_and_inner_plate():
    def model():
        with pyro.plate("sequences", 4, dim=-3):
            a = b = None
            for _ in pyrohmm.markov("time", 6, dim=-2):
                a = pyro.sample("a", dist.Categorical(torch.ones(3) if a is None else torch.eye(3)[a]))
                b = pyro.sample("b", dist.Categorical(torch.ones(3) if b is None else torch.eye(3)[(b + 1) % 3]))
                c = pyro.deterministic("sum", a + 10 * b)
                with pyro.plate("tones", 2, dim=-1):
                    pyro.sample("x", dist.Normal(c.float(), 1e-3))

    sites = simulate(model)
    a, b, x = sites["a"], sites["b"], sites["x"]
    assert a.shape == (4, 6, 1) and x.shape == (4, 6, 2)
    assert (a == a[:, :1]).all() and (b[:, 1:] == (b[:, :-1] + 1) % 3).all()
    assert ((x - (a + 10 * b)).abs() < 0.01).all()
    assert (sites["sum"] == a + 10 * b).all()
    assert len(set(a[:, 0, 0].tolist())) > 1  # sequences are drawn apart


@pytest.mark.parametrize("lag", [1, 2])
def test_previous_simulated_value(lag):
    def model():
        with pyro.plate("sequences", 3, dim=-2):
            for t in pyrohmm.markov("time", 6, dim=-1):
                before = pyrohmm.previous("x", None, t, lag=lag, initial=torch.full((2,), 100.0))
                z = pyro.sample("z", dist.Categorical(torch.ones(2)))
                pyro.sample("x", dist.Normal(before + 1 + 0 * z.unsqueeze(-1), 1e-4).to_event(1))

    x = simulate(model)["x"]
    assert x.shape == (3, 6, 2)
    expected = 100.0 + torch.arange(6) // lag + 1
    assert ((x - expected[:, None]).abs() < 0.01).all()


def test_previous_simulated_symbol():
    """Before the first step, an integer stays one, to be an index."""
    table = torch.eye(4)[[1, 2, 3, 0]]
    trace = poutine.trace(previous_symbol).get_trace(table)
    assert trace.nodes["x"]["value"].tolist() == [0, 1, 2, 3, 0]


def previous_symbol(table):
    for t in pyrohmm.markov("time", 5):
        pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Categorical(table[pyrohmm.previous("x", None, t, initial=3)]))


def test_one_hot_states():
    def model():
        with pyro.plate("sequences", 500, dim=-2):
            z = None
            for _ in pyrohmm.markov("time", 20, dim=-1, lengths=torch.full((500,), 18)):
                z = pyro.sample("z", dist.OneHotCategorical(INITIAL if z is None else z @ TRANSITION))
                pyro.sample("x", dist.Normal(z @ LOC, 1.0))

    sites = simulate(model)
    assert sites["z"].shape == (500, 20, 2) and (sites["z"][:, 18:] == -1).all()
    z = sites["z"][:, :18].argmax(-1)
    check_chain(z)
    assert ((sites["x"][:, :18] > 0) == (z == 1)).all()


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    samples = Predictive(gaussian, {}, num_samples=7, parallel=parallel)(2, 5)
    assert samples["x"].shape == samples["z"].shape == (7, 2, 5)
    assert ((samples["x"] > 0) == (samples["z"] == 1)).all()


def test_global_latents_reach_the_simulation():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        for _ in pyrohmm.markov("time", 5):
            pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc, 1e-4))

    samples = Predictive(model, {"loc": torch.tensor([10.0, 20.0])})()
    assert ((samples["x"] - torch.tensor([[10.0], [20.0]])).abs() < 0.01).all()


def test_the_site_that_is_not_finite_is_named():
    def model(x: torch.Tensor) -> None:
        for t in pyrohmm.markov("time", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x[t])
            loc = torch.where(x[t] > 1, torch.nan, 0.0)
            pyro.sample("y", dist.Normal(loc, 1.0, validate_args=False), obs=torch.zeros(()))
            pyro.factor("never", torch.where(z == 1, -torch.inf, 0.0))

    poutine.trace(model).get_trace(torch.zeros(3))
    message = r"loop 'time': site\(s\) \['y'\] broke: observation_logits: .* got nan at index \(2, 0\)"
    with pytest.raises(ValueError, match=message):
        poutine.trace(model).get_trace(torch.tensor([0.0, 1.0, 2.0]))
