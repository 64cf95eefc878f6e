"""The E-step against the list of all paths."""

from itertools import pairwise

import pytest
import torch

from pyrohmm.infer.expectation import expect, path_potential
from pyrohmm.models.hmm import Potentials
from pyrohmm.testing import enumeration, random_chain

LENGTHS = torch.tensor([4, 1, 3])


def chains(kind: str) -> Potentials:
    """Three sequences: one law for all, one for each, or one matrix a step; or two models of tables side by side."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "shared": [(2,), (2, 2), (3, 4, 2)],
        "own": [(3, 2), (3, 1, 2, 2), (3, 4, 2)],
        "per step": [(2,), (3, 3, 2, 2), (3, 4, 2)],
        "steps of all": [(2,), (1, 3, 2, 2), (3, 4, 2)],
        "models": [(2, 1, 2), (2, 1, 1, 2, 2), (2, 3, 4, 2)],
    }[kind]
    return Potentials(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))


every_kind = pytest.mark.parametrize("kind", ["shared", "own", "per step", "steps of all", "models"])


@every_kind
def test_soft_weights_are_the_derivatives_of_the_sum_over_paths(kind):
    potentials = chains(kind)
    value, weights = expect(potentials, LENGTHS)
    leaves = Potentials(*(logits.clone().requires_grad_() for logits in potentials))
    expected = enumeration.log_partition(*leaves, lengths=LENGTHS)
    torch.testing.assert_close(value, expected.detach())
    for weight, grad in zip(weights, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(weight, grad)


@every_kind
def test_hard_weights_are_those_of_the_best_path(kind):
    potentials = chains(kind)
    value, weights = expect(potentials, LENGTHS, "hard")
    best = enumeration.viterbi(*potentials, lengths=LENGTHS)
    torch.testing.assert_close(value, best.log_prob)
    torch.testing.assert_close(weights.observation.sum(-1), (best.states >= 0).double())
    chosen = weights.observation.argmax(-1)
    assert torch.equal(chosen[best.states >= 0], best.states[best.states >= 0])
    # As many moves as there are steps after a first one, in each model.
    models = 2 if kind == "models" else 1
    assert weights.transition.sum() == models * (LENGTHS - 1).sum()
    assert weights.initial.sum() == models * len(LENGTHS)


@every_kind
def test_a_path_by_hand(kind):
    potentials = chains(kind)
    states = torch.tensor([[0, 1, 1, 0], [1, -1, -1, -1], [1, 0, 0, -1]])
    shape = (2, 3) if kind == "models" else (3,)
    initial = potentials.initial.expand(*shape, 2).reshape(-1, 3, 2)
    transition = potentials.transition.expand(*shape, 3, 2, 2).reshape(-1, 3, 3, 2, 2)
    observation = potentials.observation.expand(*shape, 4, 2).reshape(-1, 3, 4, 2)
    expected = torch.zeros(len(initial), 3, dtype=torch.float64)
    for r in range(len(initial)):
        for n in range(3):
            path = states[n, : LENGTHS[n]].tolist()
            expected[r, n] = initial[r, n, path[0]] + sum(observation[r, n, t, z] for t, z in enumerate(path))
            expected[r, n] += sum(transition[r, n, t, i, j] for t, (i, j) in enumerate(pairwise(path)))
    torch.testing.assert_close(path_potential(potentials, states), expected.reshape(shape))
    value, weights = expect(potentials, LENGTHS, "labels", states)
    torch.testing.assert_close(value, expected.reshape(shape))
    assert weights.transition.shape == potentials.transition.shape


def test_impossible_moves_have_no_weight():
    initial, transition, observation = random_chain(num_states=3, num_steps=5, batch_shape=(2,), seed=0).logits
    transition = transition.clone()
    transition[..., 0, 1] = -torch.inf
    potentials = Potentials(initial, transition, observation)
    for assignment in ("soft", "hard"):
        value, weights = expect(potentials, torch.tensor([5, 4]), assignment)
        assert value.isfinite().all()
        assert weights.transition[..., 0, 1].sum() == 0
        assert all(weight.isfinite().all() for weight in weights)
