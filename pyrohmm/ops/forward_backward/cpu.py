"""Forward filtering and backward smoothing compiled for the CPU: which recursion, on what memory, on which threads.

The recursions themselves are `cpu_scaled.py`, for chains that pass the certificate, `cpu_wide.py`, for those with very
many states, and `cpu_log.py`, for all others.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.certificate import log_ratio, smallest_log_ratio
from pyrohmm.ops.chain import Chain, Tangent, clear_padding
from pyrohmm.ops.forward_backward import cpu_log, cpu_scaled, cpu_wide
from pyrohmm.ops.layout import Batch, flat
from pyrohmm.ops.matrices import Matrices, Packed
from pyrohmm.ops.memory import empty
from pyrohmm.ops.places import groups

# From so many states on, the matrix is in the way: it does not fit a core's own cache.
WIDE = 1024

NO_INDEX = np.zeros((1, 1), np.int64)


class Messages(NamedTuple):
    """What the forward pass leaves for the backward pass.

    Attributes:
        batch: the chain as kernels read it.
        scaled: (B,) bool, whether a sequence's values are scaled probabilities; the others' are log-probabilities.
        log_z: (B,) float64.
        values: the memory of (B, T, K).
        shared: the transition matrices A and exp(A - top) as kernels read it, if they are shared over time.
        tops: top, the largest entry of each matrix: (G,) of shared ones, else (B T,) of the one that leads to a step.
    """

    batch: Batch
    scaled: np.ndarray
    log_z: np.ndarray
    values: np.ndarray
    shared: tuple[Matrices, Packed] | None
    tops: np.ndarray


class Room(NamedTuple):
    """Memory for transition marginals of each step or, in float64, for their sums over time.

    Attributes:
        shape: of the result.
        copies: how many results. Threads that work on sequences which share a part of it have copies of their own.
        each, sums: the memory, of which one is empty.
        index: (shares, B), where the part of a sequence begins.
        own: whether every part is written to by one sequence only, and all are.
    """

    shape: tuple[int, ...]
    copies: int
    each: np.ndarray
    sums: np.ndarray
    index: np.ndarray
    own: bool

    @classmethod
    def of(cls, chain: Chain, batch: Batch, each: bool, reduce: bool) -> "Room":
        """Room for the marginals of each sequence, or for their sum over those with the same transitions (reduce)."""
        each = chain.transition.shape[-3] > 1 if reduce else each
        shares = len(batch.bounds) - 1
        shape, alone, index = _places(chain.transition.shape, chain.batch_shape, chain.num_steps, each, reduce, shares)
        own, copies = each and alone and len(batch.order) == len(batch.lengths), 1 if alone else shares
        size, dtype = copies * math.prod(shape), chain.observation.dtype if each else torch.float64
        memory = (empty(size, dtype=dtype) if own else torch.zeros(size, dtype=dtype)).numpy()
        if each:
            return cls(shape, copies, memory, _nothing(np.dtype(float)), index, own)
        return cls(shape, copies, _nothing(batch.observation.values.dtype), memory, index, own)

    def counted(self) -> Tensor:
        """All copies of the result, (copies, *shape)."""
        return torch.from_numpy(self.each if self.each.size else self.sums).view(self.copies, *self.shape)

    def total(self, dtype: torch.dtype) -> Tensor:
        """The result, in this dtype."""
        if self.own:
            return torch.from_numpy(self.each).view(self.shape)
        return (self.counted()[0] if self.copies == 1 else self.counted().sum(0)).to(dtype)


@lru_cache(maxsize=16)
def _places(
    transition: torch.Size, batch_shape: torch.Size, num_steps: int, each: bool, reduce: bool, shares: int
) -> tuple[tuple[int, ...], bool, np.ndarray]:
    """`Room.shape`, whether no two sequences share a part of it, and `Room.index`."""
    shape, number = tuple(transition), groups(transition[:-3], batch_shape)
    if not reduce:
        shape = (*batch_shape, *((max(num_steps - 1, 0),) if each else ()), *shape[-2:])
        number = np.arange(len(number))
    alone = not reduce or math.prod(shape[:-3]) == len(number)
    part = (num_steps - 1 if each else 1) * math.prod(shape[-2:])
    index = number * part + np.arange(shares)[:, None] * (0 if alone else math.prod(shape))
    return shape, alone, index


@cache
def _nothing(dtype: np.dtype) -> np.ndarray:
    return np.empty(0, dtype)


@lru_cache(maxsize=16)
def _ones(count: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(count, dtype)


def explain(chain: Chain) -> tuple[str, str]:
    """The form that this chain takes, "scaled" or "log", and why."""
    ratio = log_ratio(clear_padding(chain).transition)
    bound = smallest_log_ratio(chain.observation.dtype, chain.num_states)
    worst, passed = float(ratio.min()) if ratio.numel() else 0.0, bool((ratio >= bound).all())
    dtype = str(chain.observation.dtype).removeprefix("torch.")
    return (
        "scaled" if passed else "log",
        f"the smallest transition potential lies {-worst:.4g} nats below the largest of its matrix, "
        f"{'within' if passed else 'beyond'} the {-bound:.1f} that are safe for {chain.num_states} states in {dtype}"
        + ("" if passed else " (sequences that keep within them are scaled all the same)"),
    )


def partition(chain: Chain, *, keep: bool) -> tuple[Tensor, Messages]:
    """Log Z (*batch), and the messages, without values unless they are to be kept."""
    return _forward(chain, keep=keep)[:2]


def filter(chain: Chain) -> tuple[Tensor, Tensor]:
    """Filtered state log-probabilities (*batch, T, K) and log-evidence of each step (*batch, T)."""
    _, _, log_probs, log_evidence = _forward(chain, filtered=True)
    shape = (*chain.batch_shape, chain.num_steps)
    return torch.from_numpy(log_probs).view(*shape, chain.num_states), torch.from_numpy(log_evidence).view(shape)


def smooth(chain: Chain, messages: Messages, *, each: bool, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """State marginals (*batch, T, K) and transition marginals; arguments as in the reference."""
    batch, reduce, parts = messages.batch, weight is not None, []
    ones = _ones(len(batch.lengths), batch.observation.values.dtype)
    weights = ones if weight is None else _per_sequence(chain, weight)
    states = empty(messages.values.size, dtype=chain.observation.dtype)
    some, memory = batch.where(messages.scaled), states.numpy()
    if len(some.order):
        smooth_some = _smooth_steps if messages.shared is None else _smooth_shared
        parts.append(smooth_some(chain, some, messages, weights, memory, each, reduce))
    if some is not batch:
        some = batch.where(~messages.scaled)
        parts.append(_backward_log(chain, some, messages.values, messages.log_z, memory, each, reduce, ones, weights))
    transitions = parts[0] if parts else Room.of(chain, batch, each, reduce).total(chain.observation.dtype)
    return states.view(*chain.batch_shape, chain.num_steps, chain.num_states), sum(parts[1:], transitions)


def has_hessian_product(chain: Chain) -> bool:
    """Whether there is one for this chain."""
    return True


def hessian_product(
    chain: Chain, messages: Messages, direction: tuple[Tensor, ...], *, weight: Tensor, offset: Tensor
) -> Tangent:
    """Product of the Hessian of log Z with a direction, in log space; arguments as in the reference."""
    batch = messages.batch
    B, T, K = len(batch.order), chain.num_steps, chain.num_states
    log_probs = _forward(chain, filtered=True)[2] if messages.scaled.any() else messages.values
    past = np.zeros(B * T * K, batch.observation.values.dtype)
    expectation = np.zeros(B, past.dtype)
    v_initial, v_transition, v_observation = (
        flat(v, chain.batch_shape, dims) for v, dims in zip(direction, (1, 3, 2), strict=True)
    )
    batch.run(
        cpu_log.condition,
        *batch.transition,
        log_probs,
        *v_initial[:2],
        *v_transition,
        *v_observation,
        past,
        expectation,
        lengths=np.where(messages.log_z > -np.inf, batch.lengths, 0),
    )
    states = empty(B * T * K, dtype=chain.observation.dtype)
    weights, offsets = _per_sequence(chain, weight), _per_sequence(chain, offset)
    tangent = (*v_transition, *v_observation, past, expectation)
    transitions = _backward_log(
        chain, batch, log_probs, messages.log_z, states.numpy(), False, True, weights, offsets, tangent
    )
    states = states.view(*chain.batch_shape, T, K)
    first = states[..., 0, :] if T else states.sum(-2)
    return Tangent(
        first.sum_to_size(chain.initial.shape),
        transitions,
        states.sum_to_size(chain.observation.shape),
        torch.from_numpy(expectation).view(chain.batch_shape),
    )


def _forward(
    chain: Chain, *, keep: bool = False, filtered: bool = False
) -> tuple[Tensor, Messages, np.ndarray, np.ndarray]:
    """Log Z (*batch), messages and, where filtered, the memory of log-probabilities and evidence."""
    batch = Batch.of(chain)
    B, T, K = len(batch.order), chain.num_steps, chain.num_states
    real, nothing = chain.observation.dtype, _nothing(batch.observation.values.dtype)
    messages = empty(B * T * K, dtype=real).numpy() if keep else nothing
    posterior = empty(B * T * K, dtype=real).numpy() if filtered else nothing
    evidence = np.empty(B * T, nothing.dtype) if filtered else nothing
    bound, log_z, shared = smallest_log_ratio(real, K), np.empty(B), None
    if chain.transition.shape[-3] > 1:
        scaled, tops = np.ones(B, np.bool_), np.empty(B * T, nothing.dtype) if keep else nothing
        batch.run(
            cpu_scaled.forward_steps,
            *batch.initial[:2],
            *batch.transition,
            bound,
            *batch.observation,
            scaled,
            tops,
            messages,
            log_z,
            posterior,
            evidence,
        )
    else:
        matrices = Matrices.of(chain)
        packed, tops, passed = matrices.scaled(bound)
        scaled, shared = passed[matrices.number], (matrices, packed)
        arguments = (*batch.initial[:2], *packed, tops, matrices.number, *batch.observation, messages, log_z)
        some = batch.where(scaled)
        if K >= WIDE and not filtered:
            _run_wide(cpu_wide.forward, some, *arguments)
        else:
            some.run(cpu_scaled.forward, *arguments, posterior, evidence)
    if not scaled.all():
        # The kernel's log-probabilities are its messages.
        outputs = (messages, np.empty(B * T, nothing.dtype)) if keep else (posterior, evidence)
        batch.where(~scaled).run(
            cpu_log.forward, *batch.initial[:2], *batch.transition, *batch.observation, log_z, *outputs
        )
    result = torch.from_numpy(log_z).to(real).view(chain.batch_shape)
    return result, Messages(batch, scaled, log_z, messages, shared, tops), posterior, evidence


def _smooth_shared(
    chain: Chain, batch: Batch, messages: Messages, weights: np.ndarray, states: np.ndarray, each: bool, reduce: bool
) -> Tensor:
    """Fill in the state marginals of a batch of scaled messages, and return the transition marginals."""
    assert messages.shared is not None
    (matrices, packed), B, T, K = messages.shared, len(batch.lengths), chain.num_steps, chain.num_states
    each = each and not reduce
    # Of few states, counts are added up on the way back; of many, they are a matrix product afterwards.
    few = len(batch.lanes) % 2 == 0 and not each and K < WIDE
    room = Room.of(chain, batch, False, reduce) if few else None
    values = torch.from_numpy(messages.values).view(B, T, K)
    onward = empty(0 if few else B, T, K, dtype=values.dtype)
    if not few and len(batch.order) < B:  # log-probabilities of the others would make NaN
        values = values.where(torch.from_numpy(messages.scaled)[:, None, None], 0.0)
        onward.zero_()
    arguments = (
        *matrices.transposed(packed),
        *batch.observation,
        messages.values,
        messages.log_z,
        weights,
        states,
        onward.view(-1).numpy(),
    )
    if K >= WIDE:
        _run_wide(cpu_wide.backward, batch, *arguments)
    else:
        sums, index = (room.sums, room.index) if room else (_nothing(np.dtype(float)), NO_INDEX)
        batch.run(cpu_scaled.backward, *arguments, sums, index)
    if T < 2:
        return Room.of(chain, batch, each, reduce).total(chain.observation.dtype)
    if each:
        tops = torch.from_numpy(messages.tops)[:, None, None]
        # Of the exact difference, as that which the recursions take.
        odds = (matrices.values.double() - tops).exp_().to(tops.dtype)
        odds = odds.where(tops.isfinite(), 0.0).view(matrices.shape)
        return (values[:, :-1, :, None] * onward[:, :-1, None, :]).view(*chain.batch_shape, T - 1, K, K).mul_(odds)
    shape = chain.transition.shape if reduce else (*chain.batch_shape, 1, K, K)
    if room:
        counts = room.counted().view(-1, *shape)
    elif reduce and math.prod(shape[:-3]) == 1:
        # The last step of a sequence has no v, so that nothing is counted across a boundary.
        counts = _sum_of_products(values.view(1, -1, K), onward.view(1, -1, K)).view(1, *shape)
    else:
        counts = _sum_of_products(values, onward).view(1, *chain.batch_shape, 1, K, K)
    counts = matrices.weigh(counts, messages.tops)
    return counts.sum_to_size(shape) if reduce else counts.squeeze(-3)


def _smooth_steps(
    chain: Chain, batch: Batch, messages: Messages, weights: np.ndarray, states: np.ndarray, each: bool, reduce: bool
) -> Tensor:
    """As `_smooth_shared`, for transitions that change."""
    room = Room.of(chain, batch, each, reduce)
    batch.run(
        cpu_scaled.backward_steps,
        *batch.transition,
        *batch.observation,
        messages.tops,
        messages.values,
        messages.log_z,
        weights,
        states,
        room.each,
        room.sums,
        room.index,
        room.own,
    )
    return room.total(chain.observation.dtype)


def _backward_log(
    chain: Chain,
    batch: Batch,
    log_probs: np.ndarray,
    log_z: np.ndarray,
    states: np.ndarray,
    each: bool,
    reduce: bool,
    weight: np.ndarray,
    offset: np.ndarray,
    tangent: tuple | None = None,
) -> Tensor:
    """Fill in the state marginals of a batch, or their derivatives, and return those of the transitions."""
    room = Room.of(chain, batch, each, reduce)
    if tangent is None:
        nothing, none = _nothing(states.dtype), np.zeros(len(log_z), np.int64)
        tangent = (nothing, none, 0, nothing, none, 0, nothing, np.zeros(len(log_z), nothing.dtype))
    batch.run(
        cpu_log.backward,
        *batch.transition,
        *batch.observation,
        log_probs,
        log_z,
        weight,
        offset,
        *tangent,
        states,
        room.each,
        room.sums,
        room.index,
        room.own,
    )
    return room.total(chain.observation.dtype)


def _run_wide(kernel: Callable[..., Any], batch: Batch, *arguments: Any) -> None:
    """Call a kernel whose shares are columns, of all sequences."""
    K = batch.num_states
    bounds = threads.split_evenly(K, float(K * batch.lengths[batch.order].sum()))
    common = (batch.lanes, batch.order, batch.lengths, batch.num_steps, K)
    threads.run(kernel, bounds, *common, *arguments, together=True)


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """sum_n left[b, n, i] * right[b, n, j], (B, K, K).

    Only a block of terms is added up in the precision of the arguments, because N may be a million. A block is long
    enough for the products to take longer than adding them up.
    """
    B, N, K = left.shape
    block = max(2048, 2 * K)
    whole = N // block * block
    result = torch.bmm(left[:, whole:].mT, right[:, whole:])
    if whole == 0:
        return result
    if B == 1:
        left, right = (x[:, :whole].view(-1, block, K) for x in (left, right))
        return (result + torch.bmm(left.mT, right).sum(0, dtype=torch.float64)).to(left.dtype)
    total = result.double()
    for begin in range(0, whole, block):
        total += torch.bmm(left[:, begin : begin + block].mT, right[:, begin : begin + block])
    return total.to(left.dtype)


def _per_sequence(chain: Chain, value: Tensor) -> np.ndarray:
    """A value for each sequence, (B,)."""
    return value.detach().expand(chain.batch_shape).contiguous().view(-1).numpy()
