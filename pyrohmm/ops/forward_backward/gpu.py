"""Forward-filtering and smoothing in Triton: which form for which chain, and memory for the results.

Nothing here waits for the device. Whether a matrix allows for probabilities instead of their logarithms is known there
only: both kernels are launched, and each works on the blocks that are its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.certificate import smallest_log_ratio
from pyrohmm.ops.chain import Chain, Tangent, finite
from pyrohmm.ops.forward_backward import gpu_counts, gpu_log, gpu_scaled, gpu_wide
from pyrohmm.ops.grid import (
    PRECISION,
    Blocks,
    Grid,
    Matrices,
    Memory,
    blocks,
    launch,
    memory,
    nothing_of,
    numbers,
    per_sequence,
    power_of_two,
    starts,
)

# Up to so many states, a program holds the messages of its sequences and a matrix in registers.
WALK = {torch.float32: 64, torch.float64: 32}
# Up to so many, it counts transitions as well; beyond, that is a product over time afterwards.
COUNT = {torch.float32: 32, torch.float64: 16}
# Steps whose transition marginals are added up in the precision of the potentials before float64 takes over.
FLUSH = 32
# Time is cut into spans for at least so many steps, and at most so many rows of the messages that walk side by side.
LONG, FEW = 2048, 4096


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


class Messages(NamedTuple):
    """What the forward pass leaves for the backward pass.

    Attributes:
        rows: the sequences.
        log_z: (B,) float64.
        values: (B, T, K), a_t up to a factor where the sequence's matrix has passed, else log alpha_t.
        spans: where time is cut.
    """

    rows: Rows
    log_z: Tensor
    values: Tensor
    spans: "Spans | None" = None


class Spans(NamedTuple):
    """Long sequences cut into spans of time that walk side by side: see "Spans of time" in `pyrohmm/ops/README.md`.

    Attributes:
        rows: the spans, of batch shape (*batch, C).
        outer: messages of the chain whose states are those at the first step of each span.
        count: C.
    """

    rows: Rows
    outer: Messages
    count: int


class Walk(NamedTuple):
    """What a pass backward reads.

    Attributes:
        rows: sequences, or spans of them.
        log_z: (n,), of the whole sequence.
        values: as in `Messages`.
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
    """The form that this chain takes, "scaled" or "log", and why; and how programs share the work."""
    rows = _rows(chain)
    span = _span(rows)
    if not _walks(chain):
        how = f"more than {WALK[chain.observation.dtype]} states take a launch a step"
    elif span:
        how = f"few long sequences are cut into spans of {span} steps"
    else:
        how = "each program walks through time with a block of sequences"
    if rows.matrices is None:
        return "log", f"transitions that change over time are read once, as logarithms; {how}"
    passed = bool((rows.matrices.passed > 0).all())
    bound = -smallest_log_ratio(chain.observation.dtype, chain.num_states)
    return (
        "scaled" if passed else "log",
        f"{'no' if passed else 'a'} transition potential is more than {bound:.1f} nats below the largest of its matrix"
        + ("" if passed else " (sequences whose matrix has none are scaled all the same)")
        + f"; {how}",
    )


def partition(chain: Chain, *, keep: bool) -> tuple[Tensor, Messages | gpu_wide.Messages]:
    """Log Z (*batch), and the messages, without values unless they are to be kept."""
    if not _walks(chain):
        return gpu_wide.partition(chain, keep=keep)
    messages = _partition(_rows(chain), chain.observation, keep=keep)
    return messages.log_z.to(chain.observation.dtype).view(chain.batch_shape), messages


def filter(chain: Chain) -> tuple[Tensor, Tensor]:
    """Filtered state log-probabilities (*batch, T, K) and log-evidence of each step (*batch, T)."""
    if not _walks(chain):
        return gpu_wide.filter(chain)
    out = _forward(_rows(chain), chain.observation, filtered=True)
    shape = (*chain.batch_shape, chain.num_steps)
    return out.log_probs.view(*shape, chain.num_states), out.evidence.view(shape)


def smooth(
    chain: Chain, messages: Messages | gpu_wide.Messages, *, each: bool, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """State marginals (*batch, T, K) and transition marginals; arguments as in the reference."""
    if isinstance(messages, gpu_wide.Messages):
        return gpu_wide.smooth(chain, messages, each=each, weight=weight)
    B, T, K = messages.values.shape
    if B == 0:
        return nothing_of(chain, each=each, reduce=weight is not None)
    factor = messages.values.new_ones(B) if weight is None else per_sequence(chain, weight)
    # Spans do not write past the lengths.
    states = torch.empty_like(messages.values) if messages.spans is None else torch.zeros_like(messages.values)
    smooth_some = _smooth_steps if messages.rows.matrices is None else _smooth_shared
    transitions = smooth_some(chain, messages, factor, states, each=each, reduce=weight is not None)
    return states.view(*chain.batch_shape, T, K), transitions


def has_hessian_product(chain: Chain) -> bool:
    """Whether there is one for this chain."""
    return _walks(chain)


def hessian_product(
    chain: Chain, messages: Messages, direction: tuple[Tensor, ...], *, weight: Tensor, offset: Tensor
) -> Tangent:
    """Product of the Hessian of log Z with a direction, in log space; arguments as in the reference."""
    rows, (B, T, K) = messages.rows, messages.values.shape
    if B == 0:
        zeros = (torch.zeros_like(logits) for logits in (chain.initial, chain.transition, chain.observation))
        return Tangent(*zeros, expectation=messages.values.new_zeros(chain.batch_shape))
    log_probs = messages.values
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
        per_sequence(chain, weight),
        states,
        each=False,
        reduce=True,
        tangent=(per_sequence(chain, offset), *v_transition, *v_observation, past, expectation),
    )
    states = states.view(*chain.batch_shape, T, K)
    first = states[..., 0, :] if T else states.sum(-2)
    return Tangent(
        first.sum_to_size(chain.initial.shape),
        transitions,
        states.sum_to_size(chain.observation.shape),
        expectation.view(chain.batch_shape),
    )


def _walks(chain: Chain) -> bool:
    """Whether programs walk through time, instead of meeting at every step."""
    return chain.num_states <= WALK[chain.observation.dtype]


def _rows(chain: Chain) -> Rows:
    return Rows(Grid.of(chain), chain.batch_shape, Matrices.of(chain))


def _forward(
    rows: Rows,
    like: Tensor,
    *,
    keep: bool = False,
    goes_on: Tensor | None = None,
    filtered: bool = False,
    into: Tensor | None = None,
) -> Results:
    """Walk forward and return what is asked for, in the dtype of `like`; messages in the memory that is given.

    The law of the step after the last is asked for by telling where there is one, goes_on (B,) int32.
    """
    grid, matrices = rows.grid, rows.matrices
    B, T, K = len(grid.lengths), grid.num_steps, grid.num_states
    log_probs = like.new_full((B, T if filtered else 0, K), -torch.inf)
    out = Results(
        like.new_zeros(B, dtype=torch.float64),
        like.new_empty(B, T if keep else 0, K) if into is None else into,
        like.new_empty(0 if goes_on is None else B, K),
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
            ONWARD=goes_on is not None,
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
        T,
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


def _partition(rows: Rows, like: Tensor, *, keep: bool) -> Messages:
    """Messages of a pass forward, without values unless they are to be kept."""
    span = _span(rows)
    if span is None:
        out = _forward(rows, like, keep=keep)
        return Messages(rows, out.log_z, out.messages)
    # The law of the first state after a span, and the evidence within, given each state at its first step.
    grid, count = rows.grid, rows.grid.num_steps // span + 1
    B, K = len(grid.lengths), grid.num_states
    inside = _cut(rows, span, count)
    start = torch.eye(K, device=like.device, dtype=like.dtype).log()
    within = _each_start(inside, start)
    goes_on = torch.arange(1, count + 1, device=like.device) * span < grid.num_steps
    out = _forward(within, like, goes_on=goes_on.int().repeat(B).repeat_interleave(K))
    evidence = out.log_z.view(B, count, K)
    top = finite(evidence.amax(-1, keepdim=True))
    evidence = (evidence - top).to(like.dtype)
    law = evidence[:, :-1, :, None] + out.onward.view(B, count, K, K)[:, :-1]
    # A chain over spans, whose last observation is what follows in the last span.
    spans = (grid.lengths + span - 1) // span
    step = torch.arange(count, device=like.device)
    last = (step == (spans - 1).unsqueeze(-1)).unsqueeze(-1)
    follows = torch.where(last, evidence, 0.0)
    outer_grid = Grid(
        spans,
        starts(B, count, like.device),
        count,
        K,
        grid.initial,
        Memory(law, starts(B, (count - 1) * K * K, like.device), K * K),
        Memory(follows, starts(B, count * K, like.device), K),
    )
    outer = _partition(Rows(outer_grid, torch.Size([B]), None), like, keep=keep)
    log_z = outer.log_z + torch.where(step < spans.unsqueeze(-1), top.squeeze(-1), 0.0).sum(-1)
    values = like.new_empty(B, grid.num_steps if keep else 0, K)
    if keep:
        # Each span starts from what is predicted for its first step: the last one without what follows.
        initial = torch.where(last & (follows > -torch.inf), outer.values - follows, outer.values)
        initial = Memory(initial, starts(B * count, K, like.device), 0)
        inside = inside._replace(grid=inside.grid._replace(initial=initial))
        _forward(inside, like, keep=True, into=values)
    return Messages(rows, log_z, values, Spans(inside, outer, count))


def _span(rows: Rows) -> int | None:
    """Steps of a span of time, if sequences are few and long enough for that to pay."""
    grid = rows.grid
    # Another K + 1 walks for each sequence keep no more programs busy than there is room for.
    if grid.num_steps < LONG or len(grid.lengths) * (grid.num_states + 2) > FEW:
        return None
    return 64 if grid.num_steps < 1 << 16 else 256


def _cut(rows: Rows, span: int, count: int) -> Rows:
    """The spans of all sequences, as sequences. The last is shorter than the others, or empty."""
    grid = rows.grid
    first = torch.arange(count, device=grid.lengths.device) * span

    def later(memory: Memory) -> Memory:
        return Memory(memory.values, (memory.index[:, None] + first * memory.step).view(-1), memory.step)

    cut = Grid(
        (grid.lengths[:, None] - first).clamp(0, span).view(-1),
        (grid.starts[:, None] + first).view(-1),
        span,
        grid.num_states,
        grid.initial,
        later(grid.transition),
        later(grid.observation),
    )
    return rows.divided(cut, count)


def _each_start(rows: Rows, start: Tensor) -> Rows:
    """Each row K times, the k-th with the k-th row of `start` as its initial potentials."""
    grid, K = rows.grid, len(start)

    def repeated(memory: Memory) -> Memory:
        return Memory(memory.values, memory.index.repeat_interleave(K), memory.step)

    grid = grid._replace(
        lengths=grid.lengths.repeat_interleave(K),
        starts=grid.starts.repeat_interleave(K),
        initial=Memory(start, starts(K, K, start.device).repeat(len(grid.lengths)), 0),
        transition=repeated(grid.transition),
        observation=repeated(grid.observation),
    )
    return rows.divided(grid, K)


def _walk_back(messages: Messages, factor: Tensor) -> Walk:
    """What a pass backward reads."""
    rows, spans = messages.rows, messages.spans
    B, T, K = messages.values.shape
    pairs = starts(B, (T - 1) * K * K, factor.device)
    if spans is None:
        return Walk(rows, messages.log_z, messages.values, factor, None, pairs)
    # What follows a span, given the first state after it, is the outer chain's message backward.
    count, outer = spans.count, _walk_back(spans.outer, factor)
    onward = torch.full_like(spans.outer.values, -torch.inf)
    _backward_log(outer, torch.empty_like(onward), *_log_form(outer.rows), onward=onward)
    beyond = torch.full_like(onward, -torch.inf)
    beyond[:, :-1] = onward[:, 1:]
    first = torch.arange(count, device=factor.device) * (K * K * spans.rows.grid.num_steps)
    return Walk(
        spans.rows,
        messages.log_z.repeat_interleave(count),
        messages.values,
        factor.repeat_interleave(count),
        beyond.view(-1, K),
        (pairs[:, None] + first).view(-1),
    )


def _smooth_shared(
    chain: Chain, messages: Messages, factor: Tensor, states: Tensor, *, each: bool, reduce: bool
) -> Tensor:
    """Fill in the state marginals, and return the transition marginals, of matrices that do not change."""
    walk, matrices, (B, T, K) = _walk_back(messages, factor), messages.rows.matrices, states.shape
    assert matrices is not None
    shape, batch = chain.transition.shape[:-3], chain.batch_shape
    if reduce and matrices.shape == shape:
        # Both kernels count for each block; one of the two has not run.
        if K <= COUNT[states.dtype]:
            scaled = _backward_scaled(walk, states, count=True)
        else:
            left, right = torch.zeros_like(states), torch.zeros_like(states)
            _backward_scaled(walk, states, left=left, right=right)
            groups = blocks(shape, batch, max(1, B // max(1, shape.numel())), states.device)
            scaled = gpu_counts.sums_of_scaled(groups, messages.rows.grid.lengths, matrices.passed, left, right)
        logs = _backward_log(walk, states, *_log_form(walk.rows), count=True)
        counts = torch.where((matrices.passed > 0)[:, None, None], scaled * matrices.chances, logs)
        # Where there is no second step, there may be no matrices.
        return counts.to(states.dtype).view(*shape, 1, K, K)[..., : chain.transition.shape[-3], :, :]
    number = numbers(matrices.shape, batch, states.device)
    chances, tops, passed = (x[number] for x in matrices[1:])
    left, right = torch.zeros_like(states), torch.zeros_like(states)
    _backward_scaled(walk, states, left=left, right=right)
    if each and not reduce:
        pairs = states.new_zeros(B, max(T - 1, 0), K, K)
        _backward_log(walk, states, *_log_form(walk.rows), pairs=pairs)
        scaled = left[:, :-1, :, None] * right[:, :-1, None, :] * chances[:, None]
        return torch.where(passed[:, None, None, None] > 0, scaled, pairs).view(*batch, -1, K, K)
    # The sums of each sequence; then of those that share a place in what the matrices were expanded to.
    own = Matrices(_with_spans(batch, walk.rows, batch), chances, tops, passed)
    own_walk = walk._replace(rows=walk.rows._replace(matrices=own))
    logs = _backward_log(own_walk, states, *_log_form(own_walk.rows), count=True)
    alone = blocks(batch, batch, 1, states.device)
    scaled = gpu_counts.sums_of_scaled(alone, messages.rows.grid.lengths, passed, left, right)
    counts = torch.where(passed[:, None, None] > 0, scaled * chances, logs).to(states.dtype)
    counts = counts.view(*batch, 1, K, K)
    if not reduce:
        return counts.squeeze(-3)
    return counts[..., : chain.transition.shape[-3], :, :].sum_to_size(chain.transition.shape)


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
    """Fill in the state marginals, and return the transition marginals, whatever matrices have in common.

    With a tangent, fill in and return their derivatives.
    """
    walk, (B, T, K) = _walk_back(messages, factor), states.shape
    parts, options = _log_form(walk.rows)
    if each or (reduce and chain.transition.shape[-3] != 1):
        pairs = states.new_zeros(B, max(T - 1, 0), K, K)
        _backward_log(walk, states, parts, options, pairs=pairs, tangent=tangent)
        pairs = pairs.view(*chain.batch_shape, -1, K, K)
        return pairs.sum_to_size(chain.transition.shape) if reduce else pairs
    # What the sequences of a block count is added up.
    shape = chain.transition.shape[:-3] if reduce else chain.batch_shape
    shape_of_rows = _with_spans(shape, walk.rows, chain.batch_shape)
    parts = blocks(shape_of_rows, walk.rows.batch_shape, options["N"], states.device)
    counts = _backward_log(walk, states, parts, options, count=True, tangent=tangent)
    return counts.to(states.dtype).view(*shape, *((1,) if reduce else ()), K, K)


def _with_spans(shape: torch.Size, rows: Rows, batch_shape: torch.Size) -> torch.Size:
    """A shape that broadcasts to the rows', where one that does to the sequences' is given."""
    return torch.Size([*shape, *(1,) * (len(rows.batch_shape) - len(batch_shape))])


def _backward_scaled(
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


def _backward_log(
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


def _scaled_form(rows: Rows) -> tuple[Blocks, dict]:
    """Blocks, and the options of kernels that keep probabilities."""
    side = max(16, power_of_two(rows.grid.num_states))
    # Of 16 states in float32 there is too little to do for more than one.
    single = side == 16 and rows.grid.observation.values.dtype == torch.float32
    warps = 1 if single else side // 8
    options = {"N": 16, "S": side, "PRECISION": PRECISION, "STAGES": 3, "num_warps": warps}
    return rows.blocks(16), options


def _log_form(rows: Rows) -> tuple[Blocks, dict]:
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
