"""Forward-filtering and smoothing in Triton: which form for which chain, and memory for the results.

Nothing here waits for the device. Whether a matrix allows for probabilities instead of their logarithms is known there
only: both kernels are launched, and each works on the blocks that are its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.certificate import log_ratio, smallest_log_ratio
from pyrohmm.ops.chain import Chain, Tangent
from pyrohmm.ops.forward_backward import gpu_counts, gpu_log, gpu_scaled
from pyrohmm.ops.grid import Blocks, Grid, Memory, blocks, launch, memory, numbers, power_of_two, starts
from pyrohmm.ops.places import unexpanded

# Up to so many states, a program holds the messages of its sequences and a matrix in registers.
WALK = 64
# Steps whose transition marginals are added up in the precision of the potentials before float64 takes over.
FLUSH = 32
# Products of matrices as accurate as float32, on tensor cores; TF32 alone never.
PRECISION = "tf32x3"


class Matrices(NamedTuple):
    """Transition matrices that do not change over time, each of them once.

    Attributes:
        shape: of their batch dimensions; broadcasts with the chain's.
        chances: (G, K, K), exp(A - top).
        tops: (G,), top, the largest entry of each; zero where that is not finite.
        passed: (G,) int32, whether scaled space is exact for it.
    """

    shape: torch.Size
    chances: Tensor
    tops: Tensor
    passed: Tensor

    @classmethod
    def of(cls, chain: Chain) -> "Matrices | None":
        """The matrices of a chain, None if they change over time."""
        if chain.transition.shape[-3] > 1:
            return None
        transition = unexpanded(chain.transition, 3)
        if chain.transition.shape[-3] == 0 or chain.num_steps < 2:  # what there is may hold anything
            transition = transition.new_zeros(*transition.shape[:-3], 1, *transition.shape[-2:])
        values = transition.reshape(-1, *transition.shape[-2:]).contiguous()
        passed = log_ratio(values) >= smallest_log_ratio(values.dtype, chain.num_states)
        tops = torch.where(passed, values.flatten(1).amax(1), 0.0)
        return cls(transition.shape[:-3], (values - tops[:, None, None]).exp(), tops, passed.int())


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

    def blocks(self, rows: int, *, alone: bool = False) -> Blocks:
        """Blocks of rows with a common matrix, or of one row each (alone)."""
        shape = torch.Size() if self.matrices is None else self.matrices.shape
        device = self.grid.lengths.device
        return blocks(self.batch_shape if alone else shape, self.batch_shape, 1 if alone else rows, device)

    def number(self) -> Tensor:
        """The number of the matrix of each row, (B,)."""
        assert self.matrices is not None
        return numbers(self.matrices.shape, self.batch_shape, self.grid.lengths.device)


class Messages(NamedTuple):
    """What the forward pass leaves for the backward pass.

    Attributes:
        rows: the sequences.
        log_z: (B,) float64.
        values: (B, T, K), a_t up to a factor where the sequence's matrix has passed, else log alpha_t.
    """

    rows: Rows
    log_z: Tensor
    values: Tensor


class Scratch(NamedTuple):
    """Where the forward pass writes; what is not wanted has no steps.

    Attributes:
        log_z: (B,) float64.
        messages: (B, T, K), as in `Messages`.
        onward: (B, K), log of the law of the step after the last, given all before.
        log_probs: (B, T, K), and
        evidence: (B, T), the results of a filter.
    """

    log_z: Tensor
    messages: Tensor
    onward: Tensor
    log_probs: Tensor
    evidence: Tensor


def explain(chain: Chain) -> tuple[str, str]:
    """The form that this chain takes, "scaled" or "log", and why."""
    matrices = Matrices.of(chain)
    if matrices is None:
        return "log", "transitions change over time"
    if bool(matrices.passed.all()):
        return "scaled", "no transition potential lies further below the largest of its matrix than is safe"
    return "log", "a transition potential lies further below the largest of its matrix than is safe"


def partition(chain: Chain, *, keep: bool) -> tuple[Tensor, Messages]:
    """Log Z (*batch), and the messages, without values unless they are to be kept."""
    rows = _rows(chain)
    out = _forward(rows, chain.observation, keep=keep)
    log_z = out.log_z.to(chain.observation.dtype).view(chain.batch_shape)
    return log_z, Messages(rows, out.log_z, out.messages)


def filter(chain: Chain) -> tuple[Tensor, Tensor]:
    """Filtered state log-probabilities (*batch, T, K) and log-evidence of each step (*batch, T)."""
    out = _forward(_rows(chain), chain.observation, filtered=True)
    shape = (*chain.batch_shape, chain.num_steps)
    return out.log_probs.view(*shape, chain.num_states), out.evidence.view(shape)


def smooth(chain: Chain, messages: Messages, *, each: bool, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """State marginals (*batch, T, K) and transition marginals; arguments as in the reference."""
    rows, (B, T, K) = messages.rows, messages.values.shape
    factor = messages.values.new_ones(B) if weight is None else _per_sequence(chain, weight)
    states = torch.empty_like(messages.values)
    if rows.matrices is None:
        transitions = _smooth_steps(chain, messages, factor, states, each=each, reduce=weight is not None)
    else:
        transitions = _smooth_shared(chain, messages, factor, states, each=each, reduce=weight is not None)
    return states.view(*chain.batch_shape, T, K), transitions


def hessian_product(
    chain: Chain, messages: Messages, direction: tuple[Tensor, ...], *, weight: Tensor, offset: Tensor
) -> Tangent:
    """Product of the Hessian of log Z with a direction, in log space; arguments as in the reference."""
    rows, (B, T, K) = messages.rows, messages.values.shape
    if rows.matrices is not None:
        log_probs = _forward(rows, messages.values, filtered=True).log_probs
        # One matrix for all steps is a matrix of each step, with the same place in memory.
        messages = Messages(rows._replace(matrices=None), messages.log_z, log_probs)
    past, expectation = torch.empty_like(messages.values), messages.values.new_zeros(B)
    v_initial, v_transition, v_observation = (
        memory(v, chain.batch_shape, dims) for v, dims in zip(direction, (1, 3, 2), strict=True)
    )
    _condition(messages, v_initial, v_transition, v_observation, past, expectation)
    states = torch.empty_like(messages.values)
    transitions = _smooth_steps(
        chain,
        messages,
        _per_sequence(chain, weight),
        states,
        each=False,
        reduce=True,
        tangent=(_per_sequence(chain, offset), *v_transition, *v_observation, past, expectation),
    )
    states = states.view(*chain.batch_shape, T, K)
    first = states[..., 0, :] if T else states.sum(-2)
    return Tangent(
        first.sum_to_size(chain.initial.shape),
        transitions,
        states.sum_to_size(chain.observation.shape),
        expectation.view(chain.batch_shape),
    )


def _rows(chain: Chain) -> Rows:
    return Rows(Grid.of(chain), chain.batch_shape, Matrices.of(chain))


def _forward(rows: Rows, like: Tensor, *, keep: bool = False, onward: bool = False, filtered: bool = False) -> Scratch:
    """Walk forward and return what is asked for, in the dtype of `like`."""
    grid, matrices = rows.grid, rows.matrices
    B, T, K = len(grid.lengths), grid.num_steps, grid.num_states
    log_probs = like.new_full((B, T if filtered else 0, K), -torch.inf)
    out = Scratch(
        like.new_zeros(B, dtype=torch.float64),
        # Log-probabilities are the messages of what is not scaled.
        log_probs if filtered and matrices is None else like.new_empty(B, T if keep or filtered else 0, K),
        like.new_empty(B if onward else 0, K),
        log_probs,
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
            ONWARD=onward,
            FILTER=filtered,
            **options,
        )
    parts, options = _log_form(rows)
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
        *(out.log_probs if filtered else out.messages, out.log_z, out.onward, out.evidence),
        SHARED=matrices is not None,
        KEEP=keep or filtered,
        ONWARD=onward,
        FILTER=filtered,
        **options,
    )
    return out


def _smooth_shared(
    chain: Chain, messages: Messages, factor: Tensor, states: Tensor, *, each: bool, reduce: bool
) -> Tensor:
    """Fill in the state marginals, and return the transition marginals, of matrices that do not change."""
    rows, (B, T, K) = messages.rows, messages.values.shape
    matrices = rows.matrices
    assert matrices is not None
    passed = (matrices.passed > 0)[:, None, None]
    if reduce and matrices.shape == chain.transition.shape[:-3]:
        # Both kernels count for each block; one of the two has not run.
        scaled = _backward_scaled(messages, factor, states, count=True)
        logs = _backward_log(messages, factor, states, *_log_form(rows), count=True)
        counts = torch.where(passed, scaled * matrices.chances, logs)
        return counts.to(states.dtype).view(*chain.transition.shape)
    number = rows.number()
    left, right = torch.zeros_like(states), torch.zeros_like(states)
    _backward_scaled(messages, factor, states, left=left, right=right)
    passed, chances = passed[number], matrices.chances[number]
    if each and not reduce:
        pairs = states.new_zeros(B, max(T - 1, 0), K, K)
        _backward_log(messages, factor, states, *_log_form(rows), pairs=pairs)
        scaled = left[:, :-1, :, None] * right[:, :-1, None, :] * chances[:, None]
        return torch.where(passed[:, None], scaled, pairs).view(*chain.batch_shape, -1, K, K)
    # The sums of each sequence, or of all that have a place of their own in what the matrices were expanded to.
    alone = blocks(chain.batch_shape, chain.batch_shape, 1, states.device)
    options = _log_form(rows)[1]
    logs = _backward_log(messages._replace(rows=_alone(rows)), factor, states, alone, {**options, "N": 1}, count=True)
    scaled = _sum_of_products(messages, left, right)
    counts = torch.where(passed, scaled * chances, logs)
    counts = counts.view(*chain.batch_shape, 1, K, K)
    counts = counts.sum_to_size(chain.transition.shape) if reduce else counts.squeeze(-3)
    return counts.to(states.dtype)


def _smooth_steps(
    chain: Chain,
    messages: Messages,
    factor: Tensor,
    states: Tensor,
    *,
    each: bool,
    reduce: bool,
    tangent: tuple | None = None,
) -> Tensor:
    """Fill in the state marginals, and return the transition marginals, without a look at what matrices have in common.

    With a tangent, fill in and return their derivatives.
    """
    rows, (B, T, K) = messages.rows, messages.values.shape
    if each or (reduce and chain.transition.shape[-3] != 1):
        pairs = states.new_empty(B, max(T - 1, 0), K, K)
        _backward_log(messages, factor, states, *_log_form(rows), pairs=pairs, tangent=tangent)
        pairs = pairs.view(*chain.batch_shape, -1, K, K)
        return pairs.sum_to_size(chain.transition.shape) if reduce else pairs
    # What the sequences of a block count is added up.
    shape = chain.transition.shape[:-3] if reduce else chain.batch_shape
    _, options = _log_form(rows)
    parts = blocks(shape, chain.batch_shape, options["N"], states.device)
    counts = _backward_log(messages, factor, states, parts, options, count=True, tangent=tangent)
    return counts.to(states.dtype).view(*shape, *((1,) if reduce else ()), K, K)


def _backward_scaled(
    messages: Messages,
    factor: Tensor,
    states: Tensor,
    *,
    count: bool = False,
    left: Tensor | None = None,
    right: Tensor | None = None,
    beyond: Tensor | None = None,
) -> Tensor:
    """Walk back where matrices have passed; the sums of products of each matrix (G, K, K), float64, where asked for."""
    rows, matrices, nothing = messages.rows, messages.rows.matrices, states[:0]
    assert matrices is not None
    parts, options = _scaled_form(rows)
    K = states.shape[-1]
    counts = states.new_zeros(parts.count if count else 0, K, K, dtype=torch.float64)
    launch(
        gpu_scaled.backward,
        (parts.count,),
        parts.order,
        parts.each,
        rows.grid.lengths,
        rows.grid.starts,
        rows.grid.num_steps,
        K,
        matrices.chances,
        matrices.passed,
        *rows.grid.observation,
        messages.values,
        messages.log_z,
        factor,
        nothing if beyond is None else beyond,
        states,
        nothing if left is None else left,
        nothing if right is None else right,
        counts,
        BEYOND=beyond is not None,
        COUNTS=count,
        KEEP=left is not None,
        FLUSH=FLUSH,
        **options,
    )
    return counts.view(parts.groups, -1, K, K).sum(1) if count else counts


def _backward_log(
    messages: Messages,
    factor: Tensor,
    states: Tensor,
    parts: Blocks,
    options: dict,
    *,
    count: bool = False,
    pairs: Tensor | None = None,
    onward: Tensor | None = None,
    beyond: Tensor | None = None,
    tangent: tuple | None = None,
) -> Tensor:
    """Walk back where matrices have not passed; the transition marginals of each group (G, K, K), where asked for."""
    rows, nothing = messages.rows, states[:0]
    (B, T, K), shared = messages.values.shape, rows.matrices is not None
    counts = states.new_zeros(parts.count if count else 0, K, K, dtype=torch.float64)
    index = starts(B, (T - 1) * K * K, states.device)
    none = Memory(nothing, index, 0)
    launch(
        gpu_log.backward,
        (parts.count,),
        parts.order,
        parts.each,
        rows.grid.lengths,
        rows.grid.starts,
        rows.grid.num_steps,
        K,
        *rows.grid.transition,
        _passed(rows),
        *rows.grid.observation,
        messages.values,
        messages.log_z,
        factor,
        *((nothing, *none, *none, nothing, nothing) if tangent is None else tangent)[:1],
        nothing if beyond is None else beyond,
        *((nothing, *none, *none, nothing, nothing) if tangent is None else tangent)[1:],
        states,
        nothing if onward is None else onward,
        nothing if pairs is None else pairs,
        index,
        counts,
        SHARED=shared,
        BEYOND=beyond is not None,
        TANGENT=tangent is not None,
        ONWARD=onward is not None,
        PAIRS=pairs is not None,
        COUNTS=count,
        FLUSH=FLUSH,
        **options,
    )
    return counts.view(parts.groups, -1, K, K).sum(1) if count else counts


def _condition(
    messages: Messages, v_initial: Memory, v_transition: Memory, v_observation: Memory, past: Tensor, mean: Tensor
) -> None:
    """Fill in the expectations of a direction given the state at each step, and of each sequence."""
    grid = messages.rows.grid
    parts, options = _log_form(messages.rows)
    launch(
        gpu_log.condition,
        (parts.count,),
        parts.order,
        grid.lengths,
        grid.starts,
        grid.num_states,
        *grid.transition,
        messages.values,
        messages.log_z,
        *v_initial[:2],
        *v_transition,
        *v_observation,
        past,
        mean,
        **options,
    )


def _sum_of_products(messages: Messages, left: Tensor, right: Tensor) -> Tensor:
    """sum_t left_t(i) right_t(j) of each sequence, (B, K, K), float64."""
    B, T, K = left.shape
    tile = min(max(16, power_of_two(K)), 64)
    tiles = -(-K // tile)
    splits = max(1, min(-(-T // 64), 1024 // max(1, B * tiles * tiles)))
    sums = left.new_empty(B, splits, K, K, dtype=torch.float64)
    launch(
        gpu_counts.products,
        (B * splits, tiles, tiles),
        *(splits, -(-T // splits), T, K, left, right, sums),
        STEPS=32,
        TILE=tile,
        PRECISION=PRECISION,
        num_warps=4,
    )
    return sums.sum(1)


def _scaled_form(rows: Rows) -> tuple[Blocks, dict]:
    """Blocks, and the options of kernels that keep probabilities."""
    side = max(16, power_of_two(rows.grid.num_states))
    options = {"N": 16, "S": side, "PRECISION": PRECISION, "STAGES": 3, "num_warps": max(1, side // 16)}
    return rows.blocks(16), options


def _log_form(rows: Rows) -> tuple[Blocks, dict]:
    """Blocks, and the options of kernels that keep log-probabilities."""
    side = max(2, power_of_two(rows.grid.num_states))
    count = max(1, min(16, 2048 // side**2))
    warps = max(1, min(8, count * side**2 // 512))
    return rows.blocks(count), {"N": count, "S": side, "STAGES": 2, "num_warps": warps}


def _passed(rows: Rows) -> Tensor:
    return rows.grid.lengths if rows.matrices is None else rows.matrices.passed


def _alone(rows: Rows) -> Rows:
    """The same rows, each with a matrix of its own."""
    assert rows.matrices is not None
    number = rows.number()
    chances, tops, passed = (x[number] for x in rows.matrices[1:])
    return rows._replace(matrices=Matrices(rows.batch_shape, chances, tops, passed))


def _per_sequence(chain: Chain, value: Tensor) -> Tensor:
    """A value for each sequence, (B,)."""
    return value.detach().expand(chain.batch_shape).contiguous().view(-1)
