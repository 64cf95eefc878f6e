"""Long sequences cut into spans of time that walk side by side: see "Spans of time" in `pyrohmm/ops/README.md`."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.chain import finite
from pyrohmm.ops.grid import Grid, Memory, starts

# Time is cut for at least so many steps, and at most so many rows of messages that walk side by side.
LONG, FEW = 2048, 4096


def steps_of_span(num_steps: int, sequences: int, num_states: int) -> int | None:
    """Steps of a span of time, if sequences (or paths) are few and long enough for that to pay.

    Example:
        >>> steps_of_span(5000, 1, 8), steps_of_span(1_000_000, 1, 8), steps_of_span(1000, 1, 8)
        (64, 256, None)
    """
    # Another K + 1 walks for each sequence keep no more programs busy than there is room for.
    if num_steps < LONG or sequences * (num_states + 2) > FEW:
        return None
    return 64 if num_steps < 1 << 16 else 256


class Cut(NamedTuple):
    """B sequences, each of them cut into C spans of time, of which the last are shorter or empty.

    Attributes:
        grid: the sequences.
        spans: as B * C sequences.
        each: as B * C * K, the k-th of each span with the k-th state as its first.
        steps: of a span.
        goes_on: (B, C) bool, whether the sequence does after the span.
    """

    grid: Grid
    spans: Grid
    each: Grid
    steps: int
    goes_on: Tensor

    @classmethod
    def of(cls, grid: Grid, steps: int) -> "Cut":
        """Cut time every so many steps."""
        first = torch.arange(0, grid.num_steps + 1, steps, device=grid.lengths.device)
        remaining = grid.lengths[:, None] - first

        def later(memory: Memory) -> Memory:
            return Memory(memory.values, (memory.index[:, None] + first * memory.step).view(-1), memory.step)

        spans = Grid(
            remaining.clamp(0, steps).view(-1),
            (grid.starts[:, None] + first).view(-1),
            steps,
            grid.num_states,
            grid.initial,
            later(grid.transition),
            later(grid.observation),
        )
        return cls(grid, spans, _from_each_state(spans), steps, remaining > steps)

    @property
    def count(self) -> int:
        """C."""
        return self.goes_on.shape[1]

    def outer(self, inside: Tensor, onward: Tensor, *, ends: bool) -> tuple[Grid, Tensor, Tensor]:
        """The chain of the states at the first step of each span.

        Args:
            inside: (B * C * K,) float64, the potential of each span from each state.
            onward: (B * C * K, K), the potential of each state as the first after the span, given the same.
            ends: whether what follows in the last span is observed there; else there are no observations.

        Returns:
            the chain; its observations (B, C, K); and how much less the potential of any path is, (B,) float64.
        """
        grid, (B, count), K = self.grid, self.goes_on.shape, self.grid.num_states
        inside = inside.view(B, count, K)
        if not ends:
            inside = torch.where(self.goes_on.unsqueeze(-1), inside, 0.0)
        top = finite(inside.amax(-1, keepdim=True))
        relative = (inside - top).to(onward.dtype)
        law = relative[:, :-1, :, None] + onward.view(B, count, K, K)[:, :-1]
        ending = torch.where(self.goes_on.unsqueeze(-1), 0.0, relative)
        device = law.device
        outer = Grid(
            (grid.lengths + self.steps - 1) // self.steps,
            starts(B, count, device),
            count,
            K,
            grid.initial,
            Memory(law, starts(B, (count - 1) * K * K, device), K * K),
            Memory(ending, starts(B, count * K, device), K),
        )
        return outer, ending, top.sum((1, 2))

    def beginning(self, initial: Tensor) -> Grid:
        """The spans, with initial potentials (B, C, K) of their own."""
        return self.spans._replace(
            initial=Memory(initial, starts(len(self.spans.lengths), self.grid.num_states, initial.device), 0)
        )

    def last_steps(self, log_probs: Tensor) -> Grid:
        """The last step of each span that goes on, alone, with its law (B, T, K) in place of what was observed."""
        spans, back = self.spans, self.steps - 1
        nothing, nowhere = log_probs.new_zeros(spans.num_states), starts(len(spans.lengths), 0, log_probs.device)
        return spans._replace(
            lengths=self.goes_on.long().view(-1),
            num_steps=1,
            initial=Memory(log_probs, (spans.starts + back) * spans.num_states, 0),
            transition=spans.transition._replace(index=spans.transition.index + back * spans.transition.step),
            observation=Memory(nothing, nowhere, 0),
        )


def _from_each_state(spans: Grid) -> Grid:
    K, like = spans.num_states, spans.observation.values
    start = torch.eye(K, device=like.device, dtype=like.dtype).log()

    def repeated(memory: Memory) -> Memory:
        return Memory(memory.values, memory.index.repeat_interleave(K), memory.step)

    return spans._replace(
        lengths=spans.lengths.repeat_interleave(K),
        starts=spans.starts.repeat_interleave(K),
        initial=Memory(start, starts(K, K, start.device).repeat(len(spans.lengths)), 0),
        transition=repeated(spans.transition),
        observation=repeated(spans.observation),
    )


def follow(maps: Tensor) -> Tensor:
    """The state that each map leads to, if each is told where the next one leads, and the last one state 0.

    Neighbouring maps are composed, then neighbouring pairs, and so on: log2(C) times.

    Args:
        maps: (n, C, S) int64, of S states to as many.

    Returns:
        (n, C) int64.

    Example:
        >>> follow(torch.tensor([[[1, 0], [1, 0], [1, 1]]]))
        tensor([[1, 0, 1]])
    """
    reach = 1
    while reach < maps.shape[1]:
        maps = torch.cat([maps[:, :-reach].gather(-1, maps[:, reach:]), maps[:, -reach:]], 1)
        reach *= 2
    return maps[..., 0]
