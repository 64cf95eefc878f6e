"""All data of a fit in batches: from memory, or from an iterable that is gone through again and again."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from pyrohmm.data import Sequences


class Supply:
    """Batches of all data, and how much there is.

    Args:
        data: sequences, which count as a whole set; or an iterable of them, whose items are the batches.
        batch_size: sequences in a batch, with sequences in memory; None for all.
        check: called with each batch.

    Attributes:
        whole: the sequences, if they are in memory.
        first: them, or the first item.
        num_sequences, num_observed: of all data. An iterable is gone through once to count them.

    Raises:
        TypeError: an item is no `Sequences`.
        ValueError: there is no item, or nothing is observed.

    Example:
        >>> import torch
        >>> halves = [Sequences(torch.zeros(2, 3)), Sequences(torch.zeros(1, 5))]
        >>> supply = Supply(halves, None, lambda batch: None)
        >>> supply.num_sequences, supply.num_observed, [len(batch) for batch in supply]
        (3, 11, [2, 1])
    """

    def __init__(
        self, data: Sequences | Iterable[Sequences], batch_size: int | None, check: Callable[[Sequences], Any]
    ):
        self.whole = data.as_whole().trim() if isinstance(data, Sequences) else None
        self._items: Iterable[Sequences] = data
        self._batch_size, self._check = batch_size, check
        self._round: Iterator[Sequences] | None = None
        if self.whole is not None:
            check(self.whole)
            self.first = self.whole
            self.num_sequences, self.num_observed = len(self.whole), self.whole.num_observed
        else:
            batches = iter(self)
            self.first = next(batches)
            counts = [(len(batch), batch.num_observed) for batch in chain([self.first], batches)]
            self.num_sequences, self.num_observed = (sum(column) for column in zip(*counts, strict=True))
        if self.num_observed == 0:
            raise ValueError("data: expected at least one observed step, got none")

    def __iter__(self) -> Iterator[Sequences]:
        """Every sequence once."""
        if self.whole is not None:
            yield from [self.whole] if self._batch_size is None else self.whole.batches(self._batch_size)
            return
        empty = True
        for batch in self._items:
            if not isinstance(batch, Sequences):
                raise TypeError(f"data: expected items of pyrohmm.data.Sequences, got {type(batch).__name__}")
            self._check(batch)
            empty = False
            yield batch
        if empty:
            raise ValueError("data: expected items each time they are gone through, got none")

    def item(self, index: int) -> Sequences:
        """Item `index` of an iterable that is gone through round and round; asked for in order, but for the first."""
        skip = 0
        if self._round is None:
            self._round, skip = self._rounds(), index
        for _ in range(skip):
            next(self._round)
        return next(self._round)

    def _rounds(self) -> Iterator[Sequences]:
        while True:
            yield from self
