"""An endless stream of minibatches that can be put back to where it was."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from pyrohmm.data import Sequences


class Minibatches:
    """Shuffled minibatches, each sequence once in every epoch.

    Args:
        data: the sequences.
        batch_size: sequences in a minibatch; None for all of them, in their order.
        seed: of the shuffling.

    Example:
        >>> batches = Minibatches(Sequences(torch.zeros(5, 2)), 2, seed=0)
        >>> place = batches.state()
        >>> first = [next(batches).index.tolist() for _ in range(5)]
        >>> batches.load(place)
        >>> [next(batches).index.tolist() for _ in range(5)] == first
        True
    """

    def __init__(self, data: Sequences, batch_size: int | None, seed: int):
        self.data = data.trim()
        self.batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch_start = self._generator.get_state()
        self._position = 0
        self._epoch: Iterator[Sequences] = iter(())

    def __iter__(self) -> "Minibatches":
        return self

    def __next__(self) -> Sequences:
        """The next minibatch."""
        if self.batch_size is None:
            return self.data
        batch = next(self._epoch, None)
        if batch is None:
            self._begin_epoch(0)
            batch = next(self._epoch)
        self._position += 1
        return batch

    def _begin_epoch(self, position: int) -> None:
        assert self.batch_size is not None
        self._epoch_start = self._generator.get_state()
        self._position = position
        epoch = self.data.batches(self.batch_size, shuffle=True, generator=self._generator)
        self._epoch = islice(epoch, position, None)

    def state(self) -> dict[str, Any]:
        """The place in the stream: the generator's state at the start of the epoch, and the position in it."""
        return {"epoch_start": self._epoch_start, "position": self._position}

    def load(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` told."""
        self._generator.set_state(state["epoch_start"])
        if self.batch_size is not None:
            self._begin_epoch(state["position"])
