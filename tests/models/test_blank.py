import pytest
import torch

from pyrohmm.models.blank import Blank

CPU = torch.device("cpu")


def test_takes_the_arguments_of_simulate():
    inputs = torch.zeros(2, 5, 3)
    blank = Blank.of(2, 5, torch.tensor([5, 1]), inputs, CPU)
    assert blank.index.tolist() == [0, 1] and blank.num_total == 2 and blank.num_steps == 5
    assert blank.inputs is inputs and blank.x is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, None, None), "num_sequences: expected an int of at least 1, got 0"),
        ((2, 1.5, None, None), "num_steps: expected an int of at least 1, got 1.5"),
        ((2, 5, torch.tensor([5]), None), r"lengths: expected shape \(2,\), got \(1,\)"),
        ((2, 5, None, torch.zeros(2, 4, 1)), r"inputs: expected shape \(2, 5, C\), got \(2, 4, 1\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Blank.of(*arguments, CPU)
