import pytest
import torch

from pyrohmm.nn import Initial, Transition, banded, left_to_right


def edges(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 1], [1, 2], [2, 3], [3]]),
        ({"skip": 1}, [[0, 1, 2], [1, 2, 3], [2, 3], [3]]),
        ({"skip": None}, [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3]]),
        ({"stay": False}, [[1], [2], [3], [3]]),
        ({"stay": False, "skip": 9}, [[1, 2, 3], [2, 3], [3], [3]]),
        ({"cyclic": True}, [[0, 1], [1, 2], [2, 3], [0, 3]]),
        ({"cyclic": True, "stay": False, "skip": 1}, [[1, 2], [2, 3], [0, 3], [0, 1]]),
        ({"cyclic": True, "skip": None}, [[0, 1, 2, 3]] * 4),
    ],
)
def test_left_to_right(options, expected):
    mask = left_to_right(4, **options)
    assert mask.dtype == torch.bool
    assert edges(mask) == expected


@pytest.mark.parametrize(
    ("width", "cyclic", "expected"),
    [
        (0, False, [[0], [1], [2], [3], [4]]),
        (1, False, [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4]]),
        (1, True, [[0, 1, 4], [0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 3, 4]]),
        (2, True, [[0, 1, 2, 3, 4]] * 5),
        (9, False, [[0, 1, 2, 3, 4]] * 5),
    ],
)
def test_banded(width, cyclic, expected):
    mask = banded(5, width, cyclic=cyclic)
    assert mask.dtype == torch.bool
    assert edges(mask) == expected


@pytest.mark.parametrize("stay", [False, True])
def test_one_state(stay):
    for mask in (left_to_right(1, stay=stay), left_to_right(1, stay=stay, cyclic=True), banded(1, 0, cyclic=True)):
        assert mask.tolist() == [[True]]


def test_a_chain_from_the_first_state_on():
    initial, transition = Initial(4, mask=torch.arange(4) == 0), Transition(4, left_to_right(4))
    law = initial.log_probs().exp()
    for step in range(4):
        assert (law > 0).tolist() == [state <= step for state in range(4)]
        law = law @ transition.log_probs().exp()


def test_errors():
    with pytest.raises(ValueError, match="num_states: expected at least 1, got 0"):
        left_to_right(0)
    with pytest.raises(ValueError, match="skip: expected at least 0, got -1"):
        left_to_right(2, skip=-1)
    with pytest.raises(TypeError, match="num_states: expected an int, got float"):
        banded(2.0, 1)
    with pytest.raises(ValueError, match="width: expected at least 0, got -1"):
        banded(2, -1)
