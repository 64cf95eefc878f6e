"""Launches of the Triton kernels that walk through time: their forms, and memory for what they write."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.chain import finite
from pyrohmm.ops.forward_backward import gpu_log, gpu_scaled
from pyrohmm.ops.grid import PRECISION, Blocks, Grid, Matrices, Memory, blocks, launch, power_of_two

# Up to so many states, a program counts transitions as well; beyond, that is a product over time afterwards.
COUNT = {torch.float32: 32, torch.float64: 16}
# Steps whose transition marginals are added up in the precision of the potentials before float64 takes over.
FLUSH = 32


class Rows(NamedTuple):
    """Sequences, or parts of sequences, that walk through time; and what they share.

    Attributes:
        grid: their memory.
        batch_shape: whose number of elements is that of the rows.
        matrices: those that do not change over time.
    """

    grid: Grid
    batch_shape: torch.Size
    matrices: Matrices | None

    def blocks(self, count: int) -> Blocks:
        """Blocks of so many rows with a common matrix."""
        shape = torch.Size() if self.matrices is None else self.matrices.shape
        return blocks(shape, self.batch_shape, count, self.grid.lengths.device)

    def divided(self, grid: Grid, count: int) -> "Rows":
        """What so many rows for each one of these are, with its matrix."""
        matrices = self.matrices
        if matrices is not None:
            matrices = matrices._replace(shape=torch.Size([*matrices.shape, 1]))
        return Rows(grid, torch.Size([*self.batch_shape, count]), matrices)


class Walk(NamedTuple):
    """What a pass backward reads.

    Attributes:
        rows: sequences, or spans of them.
        log_z: (n,), of the whole sequence.
        values: (B, T, K), the messages of `forward`.
        factor: (n,).
        beyond: (n, K), o + log beta of the step after the last, -inf where there is none.
        pairs: (n,), where the transition marginals of each begin.
    """

    rows: Rows
    log_z: Tensor
    values: Tensor
    factor: Tensor
    beyond: Tensor | None
    pairs: Tensor


class Results(NamedTuple):
    """Where the forward pass writes; what is not wanted has no steps.

    Attributes:
        log_z: (n,) float64.
        messages: (B, T, K), a_t up to a factor where the row's matrix has passed, else log alpha_t.
        onward: (n, K), log of the law of the step after the last, given all before.
        log_probs: (B, T, K), and
        evidence: (B, T), the results of a filter.
    """

    log_z: Tensor
    messages: Tensor
    onward: Tensor
    log_probs: Tensor
    evidence: Tensor


def forward(
    rows: Rows,
    like: Tensor,
    *,
    keep: bool = False,
    goes_on: Tensor | None = None,
    filtered: bool = False,
    shape: tuple[int, int] | None = None,
) -> Results:
    """Walk forward and return what is asked for, in the dtype of `like`; of spans, in the shape (B, T) of sequences.

    The law of the step after the last is asked for by telling where there is one, goes_on (n,) int32.
    """
    grid, matrices = rows.grid, rows.matrices
    n, K = len(grid.lengths), grid.num_states
    B, T = (n, grid.num_steps) if shape is None else shape
    out = Results(
        like.new_zeros(n, dtype=torch.float64),
        like.new_empty(B, T if keep else 0, K),
        like.new_empty(0 if goes_on is None else n, K),
        like.new_full((B, T if filtered else 0, K), -torch.inf),
        like.new_zeros(B, T if filtered else 0),
    )
    if matrices is not None:
        parts, options = _scaled_form(rows)
        launch(
            gpu_scaled.forward,
            (parts.count,),
            parts.order,
            parts.each,
            grid.lengths,
            grid.starts,
            K,
            *grid.initial[:2],
            matrices.chances,
            matrices.tops,
            matrices.passed,
            *grid.observation,
            *(out.messages, out.log_z, out.onward, out.log_probs, out.evidence),
            KEEP=keep,
            ONWARD=goes_on is not None,
            FILTER=filtered,
            **options,
        )
    parts, options = log_form(rows)
    launch(
        gpu_log.forward,
        (parts.count,),
        parts.order,
        parts.each,
        grid.lengths,
        grid.starts,
        K,
        *grid.initial[:2],
        *grid.transition,
        _passed(rows),
        *grid.observation,
        *(out.log_probs if filtered else out.messages, out.log_z),
        grid.lengths if goes_on is None else goes_on,
        *(out.onward, out.evidence),
        SHARED=matrices is not None,
        KEEP=keep or filtered,
        ONWARD=goes_on is not None,
        FILTER=filtered,
        **options,
    )
    return out


def backward_scaled(
    walk: Walk, states: Tensor, *, count: bool = False, left: Tensor | None = None, right: Tensor | None = None
) -> Tensor:
    """Walk back where matrices have passed; the sums of products of each matrix (G, K, K), float64, where asked for."""
    grid, matrices, nothing, K = walk.rows.grid, walk.rows.matrices, states[:0], states.shape[-1]
    assert matrices is not None
    parts, options = _scaled_form(walk.rows)
    counts = states.new_zeros(parts.count if count else 0, K, K, dtype=torch.float64)
    beyond = nothing
    if walk.beyond is not None:
        beyond = (walk.beyond - finite(walk.beyond.amax(-1, keepdim=True))).exp()
    launch(
        gpu_scaled.backward,
        (parts.count,),
        *(parts.order, parts.each, grid.lengths, grid.starts),
        0 if walk.beyond is not None else grid.num_steps,
        K,
        *(matrices.chances, matrices.passed, *grid.observation, walk.values, walk.log_z, walk.factor, beyond, states),
        nothing if left is None else left,
        nothing if right is None else right,
        counts,
        BEYOND=walk.beyond is not None,
        COUNTS=count,
        KEEP=left is not None,
        FLUSH=FLUSH,
        **options,
    )
    return counts.view(parts.groups, -1, K, K).sum(1)


def backward_log(
    walk: Walk,
    states: Tensor,
    parts: Blocks,
    options: dict,
    *,
    count: bool = False,
    pairs: Tensor | None = None,
    onward: Tensor | None = None,
    tangent: tuple | None = None,
) -> Tensor:
    """Walk back where matrices have not passed; the transition marginals of each group (G, K, K), where asked for."""
    grid, nothing, K = walk.rows.grid, states[:0], states.shape[-1]
    counts = states.new_zeros(parts.count if count else 0, K, K, dtype=torch.float64)
    none = Memory(nothing, grid.lengths, 0)
    in_registers = K <= COUNT[states.dtype]
    offset, *direction = tangent or (nothing, *none, *none, nothing, nothing)
    launch(
        gpu_log.backward,
        (parts.count,),
        *(parts.order, parts.each, grid.lengths, grid.starts),
        0 if walk.beyond is not None else grid.num_steps,
        K,
        *(*grid.transition, _passed(walk.rows), *grid.observation, walk.values, walk.log_z, walk.factor, offset),
        nothing if walk.beyond is None else walk.beyond,
        *(*direction, states),
        nothing if onward is None else onward,
        nothing if pairs is None else pairs,
        walk.pairs,
        counts,
        SHARED=walk.rows.matrices is not None,
        BEYOND=walk.beyond is not None,
        TANGENT=tangent is not None,
        ONWARD=onward is not None,
        PAIRS=pairs is not None,
        COUNTS=count,
        # Sums of many pairs do not fit into registers as well: they are added up in memory, where nothing may be read
        # ahead of a step.
        FLUSH=FLUSH if in_registers else 1,
        **(options if in_registers and tangent is None else options | {"STAGES": 1}),
    )
    return counts.view(parts.groups, -1, K, K).sum(1)


def condition(
    rows: Rows,
    log_probs: Tensor,
    log_z: Tensor,
    v_initial: Memory,
    v_transition: Memory,
    v_observation: Memory,
    past: Tensor,
    mean: Tensor,
) -> None:
    """Fill in the expectations of a direction given the state at each step, and of each sequence."""
    grid = rows.grid
    parts, options = log_form(rows)
    launch(
        gpu_log.condition,
        (parts.count,),
        parts.order,
        grid.lengths,
        grid.starts,
        grid.num_states,
        *grid.transition,
        log_probs,
        log_z,
        *v_initial[:2],
        *v_transition,
        *v_observation,
        past,
        mean,
        **options,
    )


def _scaled_form(rows: Rows) -> tuple[Blocks, dict]:
    """Blocks, and the options of kernels that keep probabilities."""
    side = max(16, power_of_two(rows.grid.num_states))
    # Of 16 states in float32 there is too little to do for more than one.
    single = side == 16 and rows.grid.observation.values.dtype == torch.float32
    warps = 1 if single else side // 8
    options = {"N": 16, "S": side, "PRECISION": PRECISION, "STAGES": 3, "num_warps": warps}
    # As for log-probabilities.
    return rows.blocks(16), options | ({"maxnreg": 255} if single else {})


def log_form(rows: Rows) -> tuple[Blocks, dict]:
    """Blocks, and the options of kernels that keep log-probabilities."""
    side = max(2, power_of_two(rows.grid.num_states))
    # Pairs of states of a warp: more would not fit into its registers, in the kernel of second derivatives.
    double = rows.grid.observation.values.dtype == torch.float64
    pairs = 128 if double else 256
    count = max(1, min(16, (4 if side <= 8 else 2) * pairs // side**2))
    warps = max(1, min(8, count * side**2 // pairs))
    options = {"N": count, "S": side, "STAGES": 2, "num_warps": warps}
    # Left to choose, ptxas spills a few numbers of float64 where that makes room for more programs at a time.
    return rows.blocks(count), options | ({"maxnreg": 255} if double else {})


def _passed(rows: Rows) -> Tensor:
    return rows.grid.lengths if rows.matrices is None else rows.matrices.passed
