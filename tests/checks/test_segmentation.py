import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from pyrohmm.checks import boundary_scores, change_points
from pyrohmm.data import Sequences
from pyrohmm.models import HMM
from pyrohmm.nn import GaussianEmission


def by_hand(path: list[int]) -> list[int]:
    return [step for step in range(1, len(path)) if path[step] != path[step - 1]]


def test_changes_of_a_posterior():
    model = HMM(GaussianEmission(3, 1, loc=[[0.0], [3.0], [6.0]]))
    data = model.simulate(4, 25, lengths=torch.tensor([25, 1, 12, 2]), seed=0)
    posterior = model.posterior(data)
    found = change_points(posterior)
    states = posterior.mode
    for path, length, points in zip(states.tolist(), data.lengths.tolist(), found, strict=True):
        assert points.dtype == torch.int64
        assert points.tolist() == by_hand(path[:length])
    assert len(found[0]) > 3
    assert [points.tolist() for points in change_points(states)] == [points.tolist() for points in found]


def test_one_path_and_unknown_states():
    assert [points.tolist() for points in change_points(torch.tensor([1, 1, 0, 0, -1]))] == [[2]]
    assert [points.tolist() for points in change_points(torch.tensor([1, -1, -1, 1, 0]))] == [[1, 3, 4]]
    assert [points.tolist() for points in change_points(torch.tensor([[3], [-1]]))] == [[], []]


def test_what_are_no_paths():
    data = Sequences(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="states: expected a MarkovChain or a tensor of integers, got Sequences"):
        change_points(data)
    with pytest.raises(TypeError, match="states: expected .* got Tensor"):
        change_points(torch.zeros(3))
    with pytest.raises(ValueError, match=r"states: expected shape \(N, T\) or \(T,\), got \(1, 2, 3\)"):
        change_points(torch.zeros(1, 2, 3, dtype=torch.int64))


@pytest.mark.parametrize("tolerance", [0, 2, 5])
@pytest.mark.parametrize("seed", range(10))
def test_as_many_pairs_as_a_maximum_matching(seed, tolerance):
    rng = np.random.default_rng(seed)
    found, true = (rng.permutation(60)[: rng.integers(1, 25)] for _ in range(2))
    near = np.abs(found[:, None] - true) <= tolerance
    pairs = (maximum_bipartite_matching(csr_matrix(near)) >= 0).sum()
    scores = boundary_scores(found, torch.from_numpy(true), tolerance)
    assert scores.num_matched == pairs
    assert (scores.num_found, scores.num_true) == (len(found), len(true))
    assert scores.precision == pytest.approx(pairs / len(found))
    assert scores.recall == pytest.approx(pairs / len(true))
    if pairs:
        assert scores.f1 == pytest.approx(2 / (1 / scores.precision + 1 / scores.recall))


def test_none_found_or_none_true():
    nothing = torch.tensor([], dtype=torch.int64)
    assert boundary_scores(nothing, [3, 5], 1)[:3] == (1.0, 0.0, 0.0)
    assert boundary_scores([3, 5], [], 1)[:3] == (0.0, 1.0, 0.0)
    assert boundary_scores([], nothing, 1)[:3] == (1.0, 1.0, 1.0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="tolerance: expected at least 0 steps, got -1"):
        boundary_scores([1], [1], -1)
    with pytest.raises(ValueError, match=r"found: expected steps of shape \(C,\), got shape \(1, 1\)"):
        boundary_scores([[1]], [1], 0)
    with pytest.raises(ValueError, match="true: expected steps"):
        boundary_scores([1], torch.tensor(1), 0)
