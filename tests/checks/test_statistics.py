from itertools import pairwise

import numpy as np
import pytest
import torch

from pyrohmm.checks import autocorrelation, dwell_times, marginal_quantiles, state_occupancy, transition_counts
from pyrohmm.data import Sequences

NAN = float("nan")


def labelled(*paths: list[int]) -> Sequences:
    return Sequences.from_list([[0.0] * len(path) for path in paths], labels=paths)


def plain_dwell_times(paths: list[list[int]], num_states: int, longest: int) -> np.ndarray:
    counts = np.zeros((num_states, longest))
    for path in paths:
        start = 0
        for end in range(1, len(path) + 1):
            if end == len(path) or path[end] != path[start]:
                if path[start] >= 0:
                    counts[path[start], min(end - start, longest) - 1] += 1
                start = end
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1)


def random_paths(seed: int, num_states: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = [1, 12, 7, 2, 1]
    return [(rng.integers(-1, num_states, length)).tolist() for length in lengths]


@pytest.mark.parametrize("num_states", [1, 2, 4])
def test_against_loops(num_states):
    for seed in range(5):
        paths = random_paths(seed, num_states)
        data = labelled(*paths)
        for longest in (1, 3, 20):
            expected = plain_dwell_times(paths, num_states, longest)
            np.testing.assert_allclose(dwell_times(data, num_states, longest), expected)
        pairs = np.zeros((num_states, num_states))
        for path in paths:
            for i, j in pairwise(path):
                if i >= 0 and j >= 0:
                    pairs[i, j] += 1
        np.testing.assert_allclose(transition_counts(data, num_states), pairs)
        every = np.array([state for path in paths for state in path if state >= 0])
        shares = np.bincount(every, minlength=num_states) / max(len(every), 1)
        np.testing.assert_allclose(state_occupancy(data, num_states), shares)


def test_a_visit_ends_with_its_sequence():
    assert dwell_times(labelled([0, 0], [0]), 1, longest=3).tolist() == [[0.5, 0.5, 0.0]]


def test_of_observations_against_numpy():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(length, 2)) for length in (6, 1, 4)]
    x[0][2, 0] = NAN
    x[2][1] = NAN
    data = Sequences.from_list(x, mask="nan")
    stacked = np.concatenate(x)
    np.testing.assert_allclose(
        marginal_quantiles(data, [0.0, 0.3, 1.0]), np.nanquantile(stacked, [0.0, 0.3, 1.0], axis=0), rtol=1e-5
    )
    centred = [each - np.nanmean(stacked, 0) for each in x]
    variance = np.nanmean(np.concatenate(centred) ** 2, 0)
    for lag, found in enumerate(autocorrelation(data, lags=3), start=1):
        products = np.concatenate([each[lag:] * each[:-lag] for each in centred if len(each) > lag])
        np.testing.assert_allclose(found, np.nanmean(products, 0) / variance, rtol=1e-5)


def test_nothing_to_tell_is_zero():
    data = Sequences(torch.ones(2, 1, 2), mask=torch.tensor([[[True, False]], [[True, False]]]))
    assert autocorrelation(data).abs().sum() == 0
    assert marginal_quantiles(data, [0.5]).tolist() == [[1.0, 0.0]]
    counts = Sequences(torch.tensor([[3, 3, 3]]))
    assert autocorrelation(counts).tolist() == [0] * 5 and marginal_quantiles(counts, [0.5]).tolist() == [3.0]


def test_bad_labels():
    with pytest.raises(ValueError, match="data: expected sequences with labels"):
        dwell_times(Sequences(torch.zeros(1, 2)), 2)
    with pytest.raises(ValueError, match="data: expected labels below 2, the number of states, got 2"):
        transition_counts(labelled([0, 2]), 2)
