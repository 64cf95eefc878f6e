"""Forward-filtering and smoothing in Triton: which form for which chain, and memory for the results.

Nothing here waits for the device. Whether a matrix allows for probabilities instead of their logarithms is known there
only: both kernels are launched, and each works on the blocks that are its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops import spans
from pyrohmm.ops.certificate import smallest_log_ratio
from pyrohmm.ops.chain import Chain, Tangent, logsumexp
from pyrohmm.ops.forward_backward import gpu_counts, gpu_walk, gpu_wide
from pyrohmm.ops.forward_backward.gpu_walk import Results, Rows, Walk
from pyrohmm.ops.grid import (
    Grid,
    Matrices,
    blocks,
    memory,
    nothing_of,
    numbers,
    per_sequence,
    starts,
)
from pyrohmm.ops.spans import Cut

# Up to so many states, a program holds the messages of its sequences and a matrix in registers.
WALK = {torch.float32: 64, torch.float64: 32}


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


def explain(chain: Chain) -> tuple[str, str]:
    """The form that this chain takes, "scaled" or "log", and why; and how programs share the work."""
    rows = _rows(chain)
    steps = _steps_of_span(rows)
    if not _walks(chain):
        how = f"more than {WALK[chain.observation.dtype]} states take a launch a step"
    elif steps:
        how = f"few long sequences are cut into spans of {steps} steps"
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
    out = _filter(_rows(chain), chain.observation)
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
        log_probs = _filter(rows, messages.values).log_probs
    # One matrix for all steps is a matrix of each step, with the same place in memory.
    rows = rows._replace(matrices=None)
    messages = Messages(rows, messages.log_z, log_probs)
    past, expectation = torch.empty_like(messages.values), messages.values.new_zeros(B)
    v_initial, v_transition, v_observation = (
        memory(v, chain.batch_shape, dims) for v, dims in zip(direction, (1, 3, 2), strict=True)
    )
    gpu_walk.condition(rows, log_probs, messages.log_z, v_initial, v_transition, v_observation, past, expectation)
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


def _partition(rows: Rows, like: Tensor, *, keep: bool) -> Messages:
    """Messages of a pass forward, without values unless they are to be kept."""
    steps = _steps_of_span(rows)
    if steps is None:
        out = gpu_walk.forward(rows, like, keep=keep)
        return Messages(rows, out.log_z, out.messages)
    cut = Cut.of(rows.grid, steps)
    outer_grid, ending, lowered = _outer(rows, cut, like, ends=True)
    outer = _partition(Rows(outer_grid, cut.goes_on.shape[:1], None), like, keep=keep)
    inside = rows.divided(cut.spans, cut.count)
    values = like.new_empty(len(rows.grid.lengths), 0, rows.grid.num_states)
    if keep:
        # Each span starts from what is predicted for its first step: the last one without what follows.
        initial = torch.where(ending > -torch.inf, outer.values - ending, outer.values)
        inside = inside._replace(grid=cut.beginning(initial))
        values = gpu_walk.forward(inside, like, keep=True, shape=_shape(rows)).messages
    return Messages(rows, outer.log_z + lowered, values, Spans(inside, outer, cut.count))


def _filter(rows: Rows, like: Tensor) -> Results:
    """Results of a pass forward that filters."""
    steps = _steps_of_span(rows)
    if steps is None:
        return gpu_walk.forward(rows, like, filtered=True)
    cut = Cut.of(rows.grid, steps)
    outer_grid, _, _ = _outer(rows, cut, like, ends=False)
    # Without observations, filtering is predicting.
    outer = _filter(Rows(outer_grid, cut.goes_on.shape[:1], None), like)
    parts = rows.divided(cut.beginning(outer.log_probs), cut.count)
    out = gpu_walk.forward(parts, like, filtered=True, shape=_shape(rows))
    # Spans start from normalised predictions; initial potentials and rows of transitions need not be.
    last = parts._replace(grid=cut.last_steps(out.log_probs))
    onward = gpu_walk.forward(last, like, goes_on=cut.goes_on.int().view(-1)).onward
    mass = torch.where(cut.goes_on, logsumexp(onward, -1).view(cut.goes_on.shape), 0.0)
    out.evidence[:, 0] += outer.evidence[:, 0]
    out.evidence[:, steps::steps] += mass[:, : (rows.grid.num_steps - 1) // steps]
    return out


def _outer(rows: Rows, cut: Cut, like: Tensor, *, ends: bool) -> tuple[Grid, Tensor, Tensor]:
    """The chain of the states at the first step of each span; see `Cut.outer`."""
    # The law of the first state after a span, and the evidence within, given each state at its first step.
    K = rows.grid.num_states
    within = rows.divided(cut.spans, cut.count).divided(cut.each, K)
    out = gpu_walk.forward(within, like, goes_on=cut.goes_on.int().view(-1).repeat_interleave(K))
    return cut.outer(out.log_z, out.onward, ends=ends)


def _steps_of_span(rows: Rows) -> int | None:
    return spans.steps_of_span(rows.grid.num_steps, len(rows.grid.lengths), rows.grid.num_states)


def _shape(rows: Rows) -> tuple[int, int]:
    return len(rows.grid.lengths), rows.grid.num_steps


def _walk_back(messages: Messages, factor: Tensor) -> Walk:
    """What a pass backward reads."""
    rows, cut = messages.rows, messages.spans
    B, T, K = messages.values.shape
    pairs = starts(B, (T - 1) * K * K, factor.device)
    if cut is None:
        return Walk(rows, messages.log_z, messages.values, factor, None, pairs)
    # What follows a span, given the first state after it, is the outer chain's message backward.
    count, outer = cut.count, _walk_back(cut.outer, factor)
    onward = torch.full_like(cut.outer.values, -torch.inf)
    gpu_walk.backward_log(outer, torch.empty_like(onward), *gpu_walk.log_form(outer.rows), onward=onward)
    beyond = torch.full_like(onward, -torch.inf)
    beyond[:, :-1] = onward[:, 1:]
    first = torch.arange(count, device=factor.device) * (K * K * cut.rows.grid.num_steps)
    return Walk(
        cut.rows,
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
        if K <= gpu_walk.COUNT[states.dtype]:
            scaled = gpu_walk.backward_scaled(walk, states, count=True)
        else:
            left, right = torch.zeros_like(states), torch.zeros_like(states)
            gpu_walk.backward_scaled(walk, states, left=left, right=right)
            groups = blocks(shape, batch, max(1, B // max(1, shape.numel())), states.device)
            scaled = gpu_counts.sums_of_scaled(groups, messages.rows.grid.lengths, matrices.passed, left, right)
        logs = gpu_walk.backward_log(walk, states, *gpu_walk.log_form(walk.rows), count=True)
        counts = torch.where((matrices.passed > 0)[:, None, None], scaled * matrices.chances, logs)
        # Where there is no second step, there may be no matrices.
        return counts.to(states.dtype).view(*shape, 1, K, K)[..., : chain.transition.shape[-3], :, :]
    number = numbers(matrices.shape, batch, states.device)
    chances, tops, passed = (x[number] for x in matrices[1:])
    left, right = torch.zeros_like(states), torch.zeros_like(states)
    gpu_walk.backward_scaled(walk, states, left=left, right=right)
    if each and not reduce:
        pairs = states.new_zeros(B, max(T - 1, 0), K, K)
        gpu_walk.backward_log(walk, states, *gpu_walk.log_form(walk.rows), pairs=pairs)
        scaled = left[:, :-1, :, None] * right[:, :-1, None, :] * chances[:, None]
        return torch.where(passed[:, None, None, None] > 0, scaled, pairs).view(*batch, -1, K, K)
    # The sums of each sequence; then of those that share a place in what the matrices were expanded to.
    own = Matrices(_with_spans(batch, walk.rows, batch), chances, tops, passed)
    own_walk = walk._replace(rows=walk.rows._replace(matrices=own))
    logs = gpu_walk.backward_log(own_walk, states, *gpu_walk.log_form(own_walk.rows), count=True)
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
    parts, options = gpu_walk.log_form(walk.rows)
    if each or (reduce and chain.transition.shape[-3] != 1):
        pairs = states.new_zeros(B, max(T - 1, 0), K, K)
        gpu_walk.backward_log(walk, states, parts, options, pairs=pairs, tangent=tangent)
        pairs = pairs.view(*chain.batch_shape, -1, K, K)
        return pairs.sum_to_size(chain.transition.shape) if reduce else pairs
    # What the sequences of a block count is added up.
    shape = chain.transition.shape[:-3] if reduce else chain.batch_shape
    shape_of_rows = _with_spans(shape, walk.rows, chain.batch_shape)
    parts = blocks(shape_of_rows, walk.rows.batch_shape, options["N"], states.device)
    counts = gpu_walk.backward_log(walk, states, parts, options, count=True, tangent=tangent)
    return counts.to(states.dtype).view(*shape, *((1,) if reduce else ()), K, K)


def _with_spans(shape: torch.Size, rows: Rows, batch_shape: torch.Size) -> torch.Size:
    """A shape that broadcasts to the rows', where one that does to the sequences' is given."""
    return torch.Size([*shape, *(1,) * (len(rows.batch_shape) - len(batch_shape))])
