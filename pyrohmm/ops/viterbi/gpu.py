"""Max-product decoding in Triton: which form for which chain, and memory for the scores.

Nothing here waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops import cuda_graphs, spans
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.grid import Blocks, Grid, blocks, launch, power_of_two
from pyrohmm.ops.places import unexpanded
from pyrohmm.ops.spans import Cut
from pyrohmm.ops.viterbi import gpu_kernels

# Up to so many states, a program holds the scores of its sequences and a matrix in registers; so many scores at most.
WALK = 64
# The most states that a program of the other form goes to, and the number of those that it comes from at a time. If it
# goes to all, it goes through all steps; else the programs meet after each step, which is the end of a launch.
TO, FROM = 256, 8
# The most sequences for which such a program loads the matrix once: with more, registers spill.
SWEEP = 8
# Programs take several sequences only if they still have so many warps together: one for each scheduler of an H200.
WARPS = 512
# Loads that are on their way while a step is computed.
STAGES = 3


class Rows(NamedTuple):
    """Sequences, or parts of sequences, that walk through time.

    Attributes:
        grid: their memory.
        shape: batch dimensions of the transitions; those that have one in common have that of each step in common.
        batch_shape: whose number of elements is that of the rows.
    """

    grid: Grid
    shape: torch.Size
    batch_shape: torch.Size

    @property
    def each(self) -> bool:
        """Whether transitions change over time."""
        return self.grid.transition.step != 0

    def spans(self, cut: Cut) -> "Rows":
        """The spans of these. Where transitions change, only spans of the same time have them in common."""
        shape = torch.Size([*self.shape, cut.count if self.each else 1])
        return Rows(cut.spans, shape, torch.Size([*self.batch_shape, cut.count]))

    def from_each_state(self, cut: Cut) -> "Rows":
        """Each of these spans from each state."""
        shape, K = torch.Size([*self.shape, 1]), self.grid.num_states
        return Rows(cut.each, shape, torch.Size([*self.batch_shape, K]))


class Scores(NamedTuple):
    """What a walk leaves.

    Attributes:
        values: (B, T, K), of the best path into each state, relative to the best score of the step before.
        base: (n,) float64, sum of the best scores of all steps but the last.
        top: (n,) float64, the best score of the last step.
        onward: (n, K), scores of the step after the last, without its observation, relative to `top`.
    """

    values: Tensor
    base: Tensor
    top: Tensor
    onward: Tensor


def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """Best path (*batch, T) and its total potential (*batch). Ties go to the lowest state."""
    like = chain.observation.detach()
    rows = Rows(Grid.of(chain), unexpanded(chain.transition, 3).shape[:-3], chain.batch_shape)
    states = torch.full((*chain.batch_shape, chain.num_steps), -1, device=like.device)
    steps = _steps_of_span(rows)
    if steps is None:
        log_prob = like.new_empty(chain.batch_shape)
        values = _walk(rows, like).values if chain.num_states <= WALK else _sweep(rows, chain)
        _trace(rows.grid, values, states, log_prob=log_prob)
        return states, log_prob
    cut = Cut.of(rows.grid, steps)
    found = _scores_over_spans(rows, cut, like)
    log_prob = found.base + found.top
    # The state at the first step of each span, for each that may follow the span.
    K, goes_on = chain.num_states, cut.goes_on
    following = torch.where(goes_on.unsqueeze(-1), torch.arange(K, device=like.device), -1)
    firsts = torch.zeros_like(following)
    _trace(cut.each, found.values, firsts, beyond=following, maps=True)
    following = torch.where(goes_on, spans.follow(firsts).roll(-1, 1), -1)
    lengths = torch.where(log_prob.unsqueeze(-1) > -torch.inf, cut.spans.lengths.view(goes_on.shape), 0).view(-1)
    _trace(cut.spans._replace(lengths=lengths), found.values, states, beyond=following)
    return states, log_prob.to(like.dtype).view(chain.batch_shape)


def _scores(rows: Rows, like: Tensor) -> Scores:
    """Scores of all steps."""
    steps = _steps_of_span(rows)
    return _walk(rows, like, total=True) if steps is None else _scores_over_spans(rows, Cut.of(rows.grid, steps), like)


def _scores_over_spans(rows: Rows, cut: Cut, like: Tensor) -> Scores:
    """The same, of spans side by side."""
    parts = rows.spans(cut)
    onward = _walk(parts.from_each_state(cut), like, keep=False, goes_on=cut.goes_on)
    outer_grid, _, lowered = cut.outer(onward.base + onward.top, onward.onward, ends=False)
    B, T = len(rows.grid.lengths), rows.grid.num_steps
    outer = _scores(Rows(outer_grid, torch.Size([B]), torch.Size([B])), like)
    found = _walk(parts._replace(grid=cut.beginning(outer.values)), like, shape=(B, T), total=True)
    # Of the last span: what is empty has zeros.
    base, top = (torch.where(cut.goes_on, 0.0, part.view(cut.goes_on.shape)).sum(1) for part in found[1:3])
    return Scores(found.values, outer.base + lowered + base, top, found.onward)


def _steps_of_span(rows: Rows) -> int | None:
    grid = rows.grid
    return spans.steps_of_span(grid.num_steps, len(grid.lengths), grid.num_states) if grid.num_states <= WALK else None


def _walk(
    rows: Rows,
    like: Tensor,
    *,
    keep: bool = True,
    total: bool = False,
    goes_on: Tensor | None = None,
    shape: tuple[int, int] | None = None,
) -> Scores:
    """Scores, totals and the step after the last, as asked for; of spans, in the shape (B, T) of sequences."""
    grid, n = rows.grid, len(rows.grid.lengths)
    B, T = (n, grid.num_steps) if shape is None else shape
    totals = n if total or goes_on is not None else 0
    out = Scores(
        like.new_empty(B, T if keep else 0, grid.num_states),
        like.new_empty(totals, dtype=torch.float64),
        like.new_empty(totals, dtype=torch.float64),
        like.new_empty(0 if goes_on is None else n, grid.num_states),
    )
    side = max(2, power_of_two(grid.num_states))
    warps = max(1, side // 32)
    # No fewer pairs of states than a warp has threads.
    parts = _blocks(rows, warps, max(1, 32 // side**2), WALK // side)
    launch(
        gpu_kernels.walk,
        (parts.count,),
        *(parts.order, grid.lengths, grid.starts, grid.num_states),
        *(*grid.initial[:2], *grid.transition, *grid.observation),
        grid.lengths if goes_on is None else goes_on.view(-1),
        *out,
        N=parts.rows,
        S=side,
        EACH=rows.each,
        KEEP=keep,
        TOTAL=totals > 0,
        ONWARD=goes_on is not None,
        STAGES=STAGES,
        # The matrix after the last step is not loaded ahead, by way of shared memory: registers have to hold all of it.
        num_warps=max(warps, side // 16) if rows.each and goes_on is not None else warps,
    )
    return out


def _sweep(rows: Rows, chain: Chain) -> Tensor:
    """Scores (B, T, K), of more states than a program holds in registers."""
    grid, observation = rows.grid, chain.observation.detach()
    B, T, K = len(grid.lengths), grid.num_steps, grid.num_states
    if T == 0:
        return observation.new_empty(B, 0, K)
    begin = (chain.initial.detach() + observation[..., 0, :]).expand(*chain.batch_shape, K).reshape(B, K)
    to = min(TO, power_of_two(K))
    # Each thread has two of the states that are gone to.
    tiles, warps = -(-K // to), max(1, to // 64)
    parts = _blocks(rows, tiles * warps, 1, SWEEP)
    (scores,) = cuda_graphs.run(
        _steps,
        *(parts.order, grid.lengths, grid.starts, *grid.transition[:2], *grid.observation[:2], begin),
        launches=1 if tiles == 1 else T - 1,
        num_steps=T,
        distances=(grid.transition.step, grid.observation.step),
        programs=tiles * parts.count,
        one_launch=tiles == 1,
        options=(("N", parts.rows), ("FROM", FROM), ("TO", to), ("STAGES", STAGES), ("num_warps", warps)),
    )
    return scores


def _steps(
    order: Tensor,
    lengths: Tensor,
    starts: Tensor,
    transition: Tensor,
    transition_index: Tensor,
    observation: Tensor,
    observation_index: Tensor,
    begin: Tensor,
    *,
    num_steps: int,
    distances: tuple[int, int],
    programs: int,
    one_launch: bool,
    options: tuple[tuple[str, int], ...],
) -> tuple[Tensor, ...]:
    """Scores of all steps, of which those of the first (B, K) are given."""
    B, K = begin.shape
    scores = begin.new_empty(B, num_steps, K)
    scores[:, 0] = begin
    steps = ((1, num_steps),) if one_launch else ((t, t + 1) for t in range(1, num_steps))
    for first, last in steps:
        launch(
            gpu_kernels.sweep,
            (programs,),
            *(first, last, order, lengths, starts, K),
            *(transition, transition_index, distances[0], observation, observation_index, distances[1]),
            scores,
            **dict(options),
        )
    return (scores,)


def _trace(
    grid: Grid,
    scores: Tensor,
    states: Tensor,
    *,
    log_prob: Tensor | None = None,
    beyond: Tensor | None = None,
    maps: bool = False,
) -> None:
    """Fill in the states on the best paths, where they are possible, and the potential of these.

    Where the state that follows the last step is told, `beyond`, -1 if there is none, all are taken to be possible;
    with `maps`, only the first state of each row is filled in.
    """
    n, side = len(grid.lengths), max(2, power_of_two(grid.num_states))
    rows = max(1, min(16, 64 // side))
    launch(
        gpu_kernels.trace,
        (-(-n // rows),),
        *(n, grid.lengths, grid.starts, grid.num_states, *grid.transition, scores),
        grid.lengths if beyond is None else beyond,
        states,
        scores if log_prob is None else log_prob,
        N=rows,
        S=side,
        BEYOND=beyond is not None,
        MAPS=maps,
        num_warps=max(1, min(8, side // 256)),
    )


def _blocks(rows: Rows, warps: int, smallest: int, largest: int) -> Blocks:
    """Blocks of rows with common matrices, as large as leaves work for all of the device, if each has `warps`."""
    total = rows.batch_shape.numel()
    # No larger than all rows that share a matrix need.
    shared = power_of_two(max(1, total // max(1, rows.shape.numel())))
    count = max(1, min(largest, shared, total * warps // WARPS))
    # The largest power of two in it.
    count = 1 << (count.bit_length() - 1)
    return blocks(rows.shape, rows.batch_shape, max(smallest, count), rows.grid.lengths.device)
