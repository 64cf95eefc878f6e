import pytest
import torch

from pyrohmm.data import Sequences
from pyrohmm.infer.supply import Supply


def nothing(batch: Sequences) -> None:
    pass


def test_in_memory_and_in_items():
    data = Sequences(torch.arange(12.0).reshape(6, 2))
    memory = Supply(data, 4, nothing)
    items = Supply([data[:4].as_whole(), data[4:].as_whole()], None, nothing)
    for supply in (memory, items):
        assert (supply.num_sequences, supply.num_observed) == (6, 12)
        assert torch.cat([batch.x for batch in supply]).tolist() == data.x.tolist()
    assert [items.item(i).x[0, 0].item() for i in range(4)] == [0, 8, 0, 8]
    later = Supply([data[:4].as_whole(), data[4:].as_whole()], None, nothing)
    assert later.item(3).x[0, 0].item() == 8
    assert later.item(4).x[0, 0].item() == 0


def test_items_that_run_out():
    class Once:
        rounds = 0

        def __iter__(self):
            self.rounds += 1
            yield from [Sequences(torch.zeros(1, 2))] * (self.rounds < 3)  # to be counted, and for one round more

    supply = Supply(Once(), None, nothing)
    assert len(supply.item(0)) == 1
    with pytest.raises(ValueError, match="expected items each time they are gone through, got none"):
        supply.item(1)
