"""Forward-filtering and smoothing of many states in Triton: a launch a step, memory for the results."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops import cuda_graphs
from pyrohmm.ops.chain import Chain, finite, valid_steps
from pyrohmm.ops.forward_backward import gpu_counts, gpu_wide_kernels
from pyrohmm.ops.grid import (
    PRECISION,
    Blocks,
    Grid,
    Matrices,
    blocks,
    launch,
    nothing_of,
    numbers,
    per_sequence,
    power_of_two,
)

# States of one program. With K = 4096, so many programs share the reading of the matrix that the device is busy.
TILE = 32


class Messages(NamedTuple):
    """What the forward pass leaves for the backward pass.

    Attributes:
        grid: the chain in memory.
        matrices: those that do not change.
        passed: (B,) bool, which sequences are scaled.
        shifts: (B, T), the largest observation potential of each step, zero where that is not finite.
        log_z: (B,) float64.
        values: (B, T, K), a_t or log alpha_t, up to a factor or a number each step.
    """

    grid: Grid
    matrices: Matrices | None
    passed: Tensor
    shifts: Tensor
    log_z: Tensor
    values: Tensor


def partition(chain: Chain, *, keep: bool) -> tuple[Tensor, Messages]:
    """Log Z (*batch), and the messages, without values unless they are to be kept."""
    messages, _, _ = _forward(chain, keep=keep)
    return messages.log_z.to(chain.observation.dtype).view(chain.batch_shape), messages


def filter(chain: Chain) -> tuple[Tensor, Tensor]:
    """Filtered state log-probabilities (*batch, T, K) and log-evidence of each step (*batch, T)."""
    _, log_probs, evidence = _forward(chain, filtered=True)
    shape = (*chain.batch_shape, chain.num_steps)
    return log_probs.view(*shape, chain.num_states), evidence.view(shape)


def smooth(chain: Chain, messages: Messages, *, each: bool, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """State marginals (*batch, T, K) and transition marginals; arguments as in the reference."""
    grid, matrices = messages.grid, messages.matrices
    B, T, K = len(grid.lengths), grid.num_steps, grid.num_states
    if B == 0:
        return nothing_of(chain, each=each, reduce=weight is not None)
    # Nothing is counted of a sequence that no path can explain.
    lengths = torch.where(messages.log_z > -torch.inf, grid.lengths, 0)
    totals, onward, parts = _backward(chain, messages, lengths)
    valid = valid_steps(lengths, T)
    inner = valid[:, 1:].unsqueeze(-1)
    factor = totals.new_ones(B) if weight is None else per_sequence(chain, weight)

    # Each of the two is computed for all sequences, from what may be anything, and then chosen from.
    log_gamma = torch.where(valid[..., None], messages.values + totals, -torch.inf)
    gamma = (log_gamma - finite(log_gamma.amax(-1, keepdim=True))).exp()
    gamma = gamma / torch.where(valid, gamma.sum(-1), 1.0).unsqueeze(-1)
    log_onward = onward - finite(torch.where(valid, parts.amax(-1), 0.0)).unsqueeze(-1)
    mass = parts.sum(-1)
    inverse = torch.where(valid & (mass != 0), 1 / mass, 0.0).unsqueeze(-1)
    passed = messages.passed[:, None, None]
    states = torch.where(passed, totals * inverse, gamma) * factor[:, None, None]
    states = torch.where(valid[..., None], states, 0.0)

    reduce, per_step = weight is not None, matrices is None
    batch = chain.batch_shape

    def sides() -> tuple[Tensor, Tensor]:
        """What transition marginals of scaled sequences are products of, (B, T, K) each."""
        right = torch.zeros_like(onward)
        right[:, :-1] = torch.where(inner, onward[:, 1:] * inverse[:, 1:], 0.0)
        return messages.values * inverse * factor[:, None, None], right

    if each or (reduce and per_step and T > 1):
        # As large as the result, or as the transitions themselves.
        matrix = chain.transition.expand(*batch, -1, K, K).reshape(B, -1, K, K)
        law = (matrix + log_onward[:, 1:, None, :] - finite(totals[:, :-1, :, None])).exp()
        pairs = torch.where(states[:, :-1, :, None] == 0, 0.0, states[:, :-1, :, None] * law)
        if matrices is not None:
            left, right = sides()
            number = numbers(matrices.shape, batch, states.device)
            products = left[:, :-1, :, None] * right[:, :-1, None, :] * matrices.chances[number][:, None]
            pairs = torch.where(messages.passed[:, None, None, None], products, pairs)
        pairs = torch.where(inner.unsqueeze(-1), pairs, 0.0).view(*batch, -1, K, K)
        counts = pairs.sum_to_size(chain.transition.shape) if reduce else pairs
    else:
        shape = chain.transition.shape[:-3] if reduce else batch
        count = max(1, torch.Size(shape).numel())
        groups = blocks(torch.Size(shape), batch, max(1, B // count), states.device)
        first = groups.order.view(groups.groups, -1)[:, 0]
        chosen = messages.passed[first].int()
        logs = gpu_counts.sums_of_logs(groups, lengths, chosen, grid.transition, states, totals, log_onward)
        if matrices is not None:
            scaled = gpu_counts.sums_of_scaled(groups, lengths, chosen, *sides())
            number = numbers(matrices.shape, batch, states.device)[first]
            logs = torch.where(chosen[:, None, None] > 0, scaled * matrices.chances[number], logs)
        counts = logs.to(states.dtype).view(*shape, *((1,) if reduce else ()), K, K)
        if reduce:  # where there is no second step, there may be no matrices
            counts = counts[..., : chain.transition.shape[-3], :, :]
    return states.view(*batch, T, K), counts


def _forward(chain: Chain, *, keep: bool = False, filtered: bool = False) -> tuple[Messages, Tensor, Tensor]:
    """Messages, filtered log-probabilities (B, T, K) and evidence (B, T); without values where not asked for."""
    grid, matrices, like = Grid.of(chain), Matrices.of(chain), chain.observation
    B, T, K = len(grid.lengths), grid.num_steps, grid.num_states
    passed = grid.lengths < 0
    if matrices is not None:
        passed = matrices.passed[numbers(matrices.shape, chain.batch_shape, like.device)] > 0
    valid = valid_steps(grid.lengths, T)
    shifts = torch.where(valid, chain.observation.amax(-1).expand(*chain.batch_shape, T).reshape(B, T), 0.0)
    shifts = torch.where(shifts == -torch.inf, 0.0, shifts)
    if T == 0:
        nothing = like.new_zeros(B, 0, K)
        return Messages(grid, matrices, passed, shifts, nothing.double().sum((1, 2)), nothing), nothing, shifts
    first = (chain.initial + chain.observation[..., 0, :]).expand(*chain.batch_shape, K).reshape(B, K)
    top = first.amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    shifts[:, 0] = torch.where(valid[:, 0], top.squeeze(-1), 0.0)
    chances = (first - top).exp()
    mass = chances.sum(-1)
    messages, parts, masses, log_probs = _run(
        _steps_forward,
        *_potentials(chain, grid, matrices),
        shifts,
        like.new_empty(0) if matrices is None else _sums_of_tiles(matrices.chances),
        torch.where(passed[:, None], chances, first),
        torch.where(passed, mass, mass.log() + top.squeeze(-1)),
        torch.where(passed, 0.0, -torch.inf).to(like.dtype),
        num_steps=T,
        keep=keep,
        filtered=filtered,
    )
    mass = parts.double().sum(-1)
    log_mass = parts.double().logsumexp(-1)
    tops = torch.zeros_like(mass)  # what predictions lack
    if matrices is not None:
        number = numbers(matrices.shape, chain.batch_shape, like.device)
        tops[:, 1:] = matrices.tops[number, None]
        # What the products of tensor cores cut off, always to the same side: see `gpu_scaled.log_of_cut_off`.
        as_is, whole = masses.sum(-2).unbind(-1)
        cut_off = torch.where(as_is > 0, (whole - as_is) / as_is, 0.0)
        log_mass = torch.where(passed[:, None], mass.log() + shifts + tops + cut_off, log_mass)
    log_mass = torch.where(valid, log_mass, 0.0)
    if filtered:
        log_probs[:, 0] = torch.where(valid[:, 0, None], first, -torch.inf)
        log_probs -= finite(log_mass - tops).to(like.dtype)[..., None]
    return Messages(grid, matrices, passed, shifts, log_mass.sum(-1), messages), log_probs, log_mass.to(like.dtype)


def _backward(chain: Chain, messages: Messages, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of scaled sequences a b, e b (B, T, K), sums of the former (B, T, tiles); else log beta, o + log beta, maxima."""
    potentials = _potentials(chain, messages.grid._replace(lengths=lengths), messages.matrices)
    totals, onward, parts = _run(_steps_backward, *potentials, messages.shifts, messages.values)
    return totals, onward, parts


class Potentials(NamedTuple):
    """Tensors that every step reads.

    Attributes:
        lengths, starts, transition, transition_index, observation, observation_index: those of `Grid`.
        chances, passed: those of `Matrices`.
        by_matrix, by_log: blocks of sequences, of scaled ones and of the others.
    """

    lengths: Tensor
    starts: Tensor
    transition: Tensor
    transition_index: Tensor
    observation: Tensor
    observation_index: Tensor
    chances: Tensor
    passed: Tensor
    by_matrix: Tensor
    by_log: Tensor


class Settings(NamedTuple):
    """Numbers that every step knows.

    Attributes:
        num_states: K.
        shared: whether transitions do not change.
        transition_step, observation_step: from one step to the next in memory.
        by_matrix, by_log: number of blocks, blocks of a group, sequences of a block.
    """

    num_states: int
    shared: bool
    transition_step: int
    observation_step: int
    by_matrix: tuple[int, int, int]
    by_log: tuple[int, int, int]

    @property
    def tiles(self) -> int:
        """Programs that share the states."""
        return -(-self.num_states // TILE)


def _potentials(chain: Chain, grid: Grid, matrices: Matrices | None) -> tuple[Potentials, Settings]:
    scaled, logs = _scaled_blocks(chain, matrices), _log_blocks(chain, matrices)
    some, passed = (grid.lengths[:0], grid.lengths) if matrices is None else (matrices.chances, matrices.passed)
    transition, observation = grid.transition, grid.observation
    return (
        Potentials(
            *(grid.lengths, grid.starts, *transition[:2], *observation[:2], some, passed, scaled.order, logs.order)
        ),
        Settings(
            grid.num_states,
            matrices is not None,
            transition.step,
            observation.step,
            (scaled.count, scaled.each, scaled.rows),
            (logs.count, logs.each, logs.rows),
        ),
    )


def _run(
    loop: cuda_graphs.Loop, read: Potentials, settings: Settings, *tensors: Tensor, **more: Any
) -> tuple[Tensor, ...]:
    launches = (2 if settings.shared else 1) * tensors[0].shape[1]
    return cuda_graphs.run(loop, *read, *tensors, launches=launches, settings=settings, **more)


def _steps_forward(
    *tensors: Tensor, settings: Settings, num_steps: int, keep: bool, filtered: bool
) -> tuple[Tensor, ...]:
    """Messages, their parts, masses and the logarithms of what was predicted plus o_t of all steps after the first."""
    read, (shifts, row_sums, first, mass, no_mass) = Potentials(*tensors[:-5]), tensors[-5:]
    K, tiles, slots = settings.num_states, settings.tiles, num_steps if keep else min(num_steps, 2)
    B = len(first)
    messages, parts = first.new_empty(B, slots, K), first.new_zeros(B, num_steps, tiles)
    messages[:, 0] = first
    parts[:, 0] = no_mass.unsqueeze(-1)
    parts[:, 0, 0] = mass
    masses = first.new_zeros(B, num_steps, tiles, 2, dtype=torch.float64)
    log_probs = first.new_full((B, num_steps if filtered else 0, K), -torch.inf)
    for t in range(1, num_steps):
        if settings.shared:
            count, each, rows = settings.by_matrix
            launch(
                gpu_wide_kernels.forward_scaled,
                (count, tiles),
                *(read.by_matrix, each, read.lengths, read.starts, K, t, slots, read.chances, read.passed),
                *(read.observation, read.observation_index, settings.observation_step, shifts),
                *(row_sums, masses, messages, parts, log_probs, tiles),
                **_scaled_options(rows, tiles),
                FILTER=filtered,
            )
        count, each, rows = settings.by_log
        launch(
            gpu_wide_kernels.forward_log,
            (count, tiles),
            *(read.by_log, each, read.lengths, read.starts, K, t, slots),
            *(read.transition, read.transition_index, settings.transition_step, read.passed),
            *(read.observation, read.observation_index, settings.observation_step),
            *(messages, parts, log_probs, tiles),
            **_log_options(rows, tiles),
            SHARED=settings.shared,
            FILTER=filtered,
        )
    return messages, parts, masses, log_probs


def _steps_backward(*tensors: Tensor, settings: Settings) -> tuple[Tensor, ...]:
    """See `_backward`."""
    read, (shifts, messages) = Potentials(*tensors[:-2]), tensors[-2:]
    K, tiles = settings.num_states, settings.tiles
    totals, onward = torch.zeros_like(messages), torch.zeros_like(messages)
    parts = totals.new_zeros(*totals.shape[:2], tiles)
    for t in reversed(range(messages.shape[1])):
        if settings.shared:
            count, each, rows = settings.by_matrix
            launch(
                gpu_wide_kernels.backward_scaled,
                (count, tiles),
                *(read.by_matrix, each, read.lengths, read.starts, K, t, read.chances, read.passed),
                *(read.observation, read.observation_index, settings.observation_step),
                *(shifts, messages, onward, totals, parts, tiles),
                **_scaled_options(rows, tiles),
            )
        count, each, rows = settings.by_log
        launch(
            gpu_wide_kernels.backward_log,
            (count, tiles),
            *(read.by_log, each, read.lengths, read.starts, K, t),
            *(read.transition, read.transition_index, settings.transition_step, read.passed),
            *(read.observation, read.observation_index, settings.observation_step),
            *(onward, totals, parts, tiles),
            **_log_options(rows, tiles),
            SHARED=settings.shared,
        )
    return totals, onward, parts


def _sums_of_tiles(chances: Tensor) -> Tensor:
    """The sums of each row over a tile of columns, as two numbers that add up to it, (G, tiles, 2, K)."""
    K = chances.shape[-1]
    padded = torch.nn.functional.pad(chances, (0, -K % TILE)).unflatten(-1, (-1, TILE))
    exact = padded.sum(-1, dtype=torch.float64).mT
    high = exact.to(chances.dtype)
    return torch.stack([high, (exact - high).to(chances.dtype)], -2)


def _scaled_blocks(chain: Chain, matrices: Matrices | None) -> Blocks:
    """Many sequences share the reading of a matrix."""
    shape = torch.Size() if matrices is None else matrices.shape
    members = chain.batch_shape.numel() // max(1, shape.numel())
    most = 64 if chain.observation.dtype == torch.float32 else 32
    return blocks(shape, chain.batch_shape, min(most, max(16, power_of_two(max(1, members)))), chain.observation.device)


def _log_blocks(chain: Chain, matrices: Matrices | None) -> Blocks:
    shape, rows = (torch.Size(), 1) if matrices is None else (matrices.shape, 4)
    return blocks(shape, chain.batch_shape, rows, chain.observation.device)


def _scaled_options(rows: int, tiles: int) -> dict:
    options = {
        "N": rows,
        "TILE": TILE,
        "TERMS": 32 if rows > 32 else 64,
        "TILES": max(2, power_of_two(tiles)),
        "PRECISION": PRECISION,
        "num_warps": 8 if rows > 16 else 4,
    }
    # Left to choose, ptxas spills a few numbers of few rows where that makes room for more programs at a time.
    return options | ({"maxnreg": 255} if rows <= 32 else {})


def _log_options(rows: int, tiles: int) -> dict:
    return {
        "N": rows,
        "TILE": TILE,
        "TERMS": 64 // rows,
        "TILES": max(2, power_of_two(tiles)),
        "num_warps": 4,
    }
