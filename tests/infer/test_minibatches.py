import pytest
import torch

from pyrohmm.data import Sequences
from pyrohmm.infer.minibatches import Minibatches

DATA = Sequences(torch.arange(10.0).reshape(5, 2), torch.tensor([1, 2, 1, 1, 1]))


def test_every_epoch_has_every_sequence_once_in_another_order():
    batches = Minibatches(DATA, 2, seed=0)
    epochs = [torch.cat([next(batches).index for _ in range(3)]) for _ in range(4)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == [0, 1, 2, 3, 4]
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1


def test_all_in_one():
    batches = Minibatches(DATA, None, seed=0)
    assert next(batches).index.tolist() == next(batches).index.tolist() == [0, 1, 2, 3, 4]
    batches.load(batches.state())


def test_seed_and_global_random_state():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second, third = (Minibatches(DATA, 2, seed=seed) for seed in (1, 1, 2))
    orders = [[next(batches).index.tolist() for _ in range(9)] for batches in (first, second, third)]
    assert orders[0] == orders[1] != orders[2]
    assert torch.rand(1) == expected


@pytest.mark.parametrize("before", range(8))
def test_goes_on_from_any_place(before):
    batches = Minibatches(DATA, 2, seed=0)
    for _ in range(before):
        next(batches)
    place = batches.state()
    expected = [next(batches).index.tolist() for _ in range(7)]
    other = Minibatches(DATA, 2, seed=99)
    other.load(place)
    assert [next(other).index.tolist() for _ in range(7)] == expected
