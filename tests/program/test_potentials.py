"""From the terms of two runs to the three tensors of ops."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyrohmm
from pyrohmm.program.potentials import Layout, StateSite, Term, assemble

B, T, K = 2, 4, 3
LAYOUT = {"time": -1, "leftmost": -4, "enclosing": frozenset({-2})}


def term(site, kind, *shape, plates=(), scale=1.0):
    return Term(site, kind, torch.randn(shape, generator=torch.Generator().manual_seed(0)), frozenset(plates), scale)


def join(first, rest, sizes=(K,), **layout):
    sites = tuple(StateSite(f"z{i}", torch.arange(size)) for i, size in enumerate(sizes))
    return assemble(first, rest, T, None, Layout(**(LAYOUT | layout), sizes=list(sizes)), sites)


def test_one_chain():
    first = [term("z", "state", K, 1, 1, 1), term("x", "observed", K, 1, B, 1)]
    rest = [term("z", "state", K, K, 1, 1, 1), term("x", "observed", K, 1, 1, B, T - 1)]
    result = join(first, rest)
    torch.testing.assert_close(result.initial, first[0].log_prob.reshape(K))
    # (new state, previous state) in the program, [from, to] in ops.
    torch.testing.assert_close(result.transition.reshape(K, K), rest[0].log_prob.reshape(K, K).T)
    expected = torch.cat([first[1].log_prob.reshape(K, B, 1), rest[1].log_prob.reshape(K, B, T - 1)], -1)
    torch.testing.assert_close(result.observation, expected.permute(1, 2, 0))
    assert result.restore_time(torch.zeros(B)).shape == (B, 1)


def test_product_of_two_chains_has_the_last_site_fastest():
    a, b = term("a", "state", 2, 1, 1, 1), term("b", "state", 3, 1, 1, 1, 1)
    later = [term("a", "state", 2, 1, 2, 1, 1, 1), term("b", "state", 3, 1, 3, 1, 1, 1, 1)]
    result = join([a, b], later, sizes=(2, 3))
    expected = a.log_prob.reshape(2, 1) + b.log_prob.reshape(1, 3)
    torch.testing.assert_close(result.initial, expected.reshape(6))
    move_a, move_b = later[0].log_prob.reshape(2, 2).T, later[1].log_prob.reshape(3, 3).T
    expected = move_a[:, None, :, None] + move_b[None, :, None, :]
    torch.testing.assert_close(result.transition.reshape(6, 6), expected.reshape(6, 6))


def test_an_observation_of_the_previous_state_joins_the_transition():
    first = [term("z", "state", K, 1, 1, 1)]
    rest = [term("z", "state", K, K, 1, 1, 1), term("x", "observed", K, 1, 1, B, T - 1)]
    rest.append(term("y", "observed", K, 1, B, T - 1))  # the enumeration dimension of the previous state
    result = join(first, rest)
    assert result.transition.shape == (B, T - 1, K, K)
    assert result.observation.shape == (B, T, K)


def test_plates_in_the_body_are_summed():
    first = [term("z", "state", K, 1, 1, 1), term("x", "observed", K, 1, B, 5, plates=(-1,))]
    rest = [term("z", "state", K, K, 1, 1, 1), term("x", "observed", K, 1, 1, B, 5, plates=(-1,))]
    result = join(first, rest, time=-3, enclosing=frozenset({-2})).without_summed_plates()
    assert result.observation.shape == (B, T, K)
    torch.testing.assert_close(result.observation[:, 0], first[1].log_prob.reshape(K, B, 5).sum(-1).T)


def test_refusals():
    state = term("z", "state", K, 1, 1, 1)
    with pytest.raises(ValueError, match="share a scale"):
        join([state, term("x", "observed", K, 1, 1, 1, scale=2.0)], [])
    with pytest.raises(ValueError, match="'x': expected 1 step"):
        join([state, term("x", "observed", K, 1, 1, 2)], [])


@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 2, 4])])
def test_potentials_are_not_expanded(lengths):
    """What all sequences share stays one, and the states of a step lie side by side."""
    transition, logits = torch.randn(5, 5), torch.randn(5, 6)

    def model(x):
        with pyro.plate("sequences", 3, dim=-2):
            z = None
            for t in pyrohmm.markov("time", 4, dim=-1, lengths=lengths):
                z = pyro.sample("z", dist.Categorical(logits=torch.zeros(5) if z is None else transition[z]))
                pyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=x[:, t])

    site = poutine.trace(model).get_trace(torch.randint(2, (3, 4, 6)).float()).nodes["time"]
    potentials = site["infer"]["pyrohmm_potentials"]
    assert potentials.initial.shape == (5,)
    assert potentials.transition.shape == (1, 5, 5)
    assert potentials.observation.shape == (3, 4, 5)
    assert potentials.observation.is_contiguous()
