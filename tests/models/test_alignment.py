from itertools import permutations

import pytest
import torch

from pyrohmm import MarkovChain
from pyrohmm.models import match_states, overlap
from tests.models.cases import K, make


@pytest.mark.parametrize(("num_states", "num_reference"), [(1, 1), (4, 4), (5, 3), (3, 1)])
def test_match_states_is_the_best_of_all_permutations(num_states, num_reference):
    for seed in range(5):
        table = torch.rand(num_states, num_reference, generator=torch.Generator().manual_seed(seed)).double()
        permutation = match_states(table)
        assert sorted(permutation.tolist()) == list(range(num_states))
        columns = torch.arange(num_reference)
        best = max(float(table[list(p), columns].sum()) for p in permutations(range(num_states), num_reference))
        assert float(table[permutation[:num_reference], columns].sum()) == pytest.approx(best)
        rest = permutation[num_reference:].tolist()
        assert rest == sorted(rest)


def test_overlap_of_labels_is_the_confusion_matrix():
    states = torch.tensor([[0, 1, 1, -1], [2, 2, 0, 0]])
    reference = torch.tensor([[1, 0, 0, 0], [1, -1, 1, 1]])
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for i, j in zip(states.flatten().tolist(), reference.flatten().tolist(), strict=True):
        if i >= 0 and j >= 0:
            expected[i, j] += 1
    assert torch.equal(overlap(states, reference), expected)
    wider = overlap(states, reference, num_states=4, num_reference=3)
    assert torch.equal(wider, torch.nn.functional.pad(expected, (0, 1, 0, 1)))


def test_overlap_of_posteriors():
    model, data = make("gaussian")
    other, _ = make("gaussian", seed=1)
    p, q = model.posterior(data), other.posterior(data)
    got = overlap(p, q)
    assert not got.requires_grad
    torch.testing.assert_close(got, torch.einsum("nti,ntj->ij", p.marginals, q.marginals).detach())
    assert float(got.sum()) == pytest.approx(int(data.lengths.sum()))
    labels = q.viterbi().states
    expected = torch.stack([p.marginals[labels == j].sum(0) for j in range(K)], -1)
    torch.testing.assert_close(overlap(p, labels, num_reference=K), expected.detach())


def test_of_one_sequence_without_a_batch():
    chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=3)
    torch.testing.assert_close(overlap(chain, torch.tensor([0, 0, 1])).float(), torch.tensor([[1.0, 0.5], [1.0, 0.5]]))


def test_wrong_arguments():
    labels = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="states: expected a MarkovChain or int64 labels, got torch.float32"):
        overlap(labels.float(), labels)
    with pytest.raises(TypeError, match="reference: expected a MarkovChain or int64 labels, got list"):
        overlap(labels, [0])  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"reference: expected the sequences and steps of states, \(2, 3\), got \(2, 1"
    ):
        overlap(labels, labels[:, :1])
    with pytest.raises(ValueError, match=r"states: expected labels in -1, ..., 1, got 3 to 3"):
        overlap(labels + 3, labels, num_states=2)
    with pytest.raises(ValueError, match="states: expected labels in -1"):
        overlap(labels - 2, labels)
    with pytest.raises(ValueError, match=r"at least as many states as in the reference, got \(2, 3\)"):
        match_states(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="overlap: expected finite"):
        match_states(torch.full((2, 2), torch.nan))
