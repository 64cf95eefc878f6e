"""Forward filtering and backward smoothing compiled for the CPU: which recursion, on what memory, on which threads.

The recursions themselves are `cpu_scaled.py`, for chains that pass the certificate, and `cpu_log.py`, for all others.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrohmm.ops import threads
from pyrohmm.ops.certificate import log_ratio, smallest_log_ratio
from pyrohmm.ops.chain import Chain
from pyrohmm.ops.forward_backward import cpu_log, cpu_scaled
from pyrohmm.ops.layout import Batch, Matrices, Packed, flat, groups

NOTHING = np.empty(0)


class Tangent(NamedTuple):
    """Inner products with the Hessian of log Z; see `hessian_product` of the reference."""

    initial: Tensor
    transition: Tensor
    observation: Tensor
    expectation: Tensor


class Messages(NamedTuple):
    """What the forward pass leaves for the backward pass.

    Attributes:
        scaled: whether `values` are scaled probabilities, else log-probabilities.
        log_z: (B,) float64.
        values: (B, T, K).
        matrices: the transition matrices, for scaled messages.
        packed: exp(A - top) as kernels read it, top being the largest entry of each matrix.
    """

    scaled: bool
    log_z: np.ndarray
    values: Tensor
    matrices: Matrices
    packed: Packed


def explain(chain: Chain) -> tuple[str, str]:
    """The form that this chain takes, "scaled" or "log", and why."""
    if chain.transition.shape[-3] > 1:
        return "log", "the transition changes from step to step"
    found = log_ratio(chain.transition)
    bound = smallest_log_ratio(chain.observation.dtype, chain.num_states)
    relation = ">=" if found >= bound else "<"
    return (
        "scaled" if found >= bound else "log",
        f"the smallest transition potential lies {found:.4g} nats from the largest, {relation} {bound:.1f} "
        f"for {chain.num_states} states in {str(chain.observation.dtype).removeprefix('torch.')}",
    )


def partition(chain: Chain, *, keep: bool) -> tuple[Tensor, Messages]:
    """Log Z (*batch), and the messages, without values unless they are to be kept."""
    return _forward(chain, keep=keep)[:2]


def filter(chain: Chain) -> tuple[Tensor, Tensor]:
    """Filtered state log-probabilities (*batch, T, K) and log-evidence of each step (*batch, T)."""
    _, _, log_probs, log_evidence = _forward(chain, keep=False, filtered=True)
    shape = (*chain.batch_shape, chain.num_steps)
    return log_probs.view(*shape, chain.num_states), log_evidence.view(shape)


def smooth(chain: Chain, messages: Messages, *, each: bool, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """State marginals (*batch, T, K) and transition marginals; arguments as in the reference."""
    if not messages.scaled:
        ones = _per_sequence(chain, torch.ones((), dtype=chain.observation.dtype))
        offset = ones if weight is None else _per_sequence(chain, weight)
        return _backward_log(chain, messages.values, messages.log_z, each, weight is not None, ones, offset)
    batch = Batch.of(chain)
    B, T, K = len(batch.order), chain.num_steps, chain.num_states
    packed = messages.packed
    transposed = np.zeros_like(packed.values)
    blocks = np.full(packed.values.size // (K * batch.lanes.width), float(K * batch.lanes.width))
    threads.run(cpu_scaled.transpose, threads.split(blocks), batch.lanes, K, packed.values, transposed)
    states, onward = torch.empty(B, T, K, dtype=chain.observation.dtype), torch.empty_like(messages.values)
    batch.run(
        cpu_scaled.backward,
        transposed,
        packed.index,
        *batch.observation,
        messages.values.view(-1).numpy(),
        messages.log_z,
        _per_sequence(chain, torch.ones((), dtype=states.dtype) if weight is None else weight),
        states.view(-1).numpy(),
        onward.view(-1).numpy(),
    )
    return states.view(*chain.batch_shape, T, K), _transitions(chain, messages, onward, each, weight is not None)


def hessian_product(
    chain: Chain, messages: Messages, direction: tuple[Tensor, ...], *, weight: Tensor, offset: Tensor
) -> Tangent:
    """Product of the Hessian of log Z with a direction; arguments as in the reference."""
    batch = Batch.of(chain)
    B, T, K = len(batch.order), chain.num_steps, chain.num_states
    log_probs = filter(chain)[0] if messages.scaled else messages.values
    past = np.zeros(B * T * K, batch.observation.values.dtype)
    expectation = np.zeros(B, past.dtype)
    v_initial, v_transition, v_observation = (
        flat(v, chain.batch_shape, dims) for v, dims in zip(direction, (1, 3, 2), strict=True)
    )
    log_probs_flat = log_probs.reshape(-1).numpy()
    batch.run(
        cpu_log.condition,
        *batch.transition,
        log_probs_flat,
        *v_initial[:2],
        *v_transition,
        *v_observation,
        past,
        expectation,
        lengths=np.where(messages.log_z > -np.inf, batch.lengths, 0),
    )
    states, transitions = _backward_log(
        chain,
        log_probs,
        messages.log_z,
        chain.transition.shape[-3] > 1,
        True,
        _per_sequence(chain, weight),
        _per_sequence(chain, offset),
        tangent=(*v_transition, *v_observation, past, expectation),
    )
    first = states[..., 0, :] if T else states.sum(-2)
    return Tangent(
        first.sum_to_size(chain.initial.shape),
        transitions,
        states.sum_to_size(chain.observation.shape),
        torch.from_numpy(expectation).view(chain.batch_shape),
    )


def _forward(chain: Chain, *, keep: bool, filtered: bool = False) -> tuple[Tensor, Messages, Tensor, Tensor]:
    """Log Z, messages and, where filtered, log-probabilities and evidence, all of them (B, ...)."""
    batch = Batch.of(chain)
    B, T, K = len(batch.order), chain.num_steps, chain.num_states
    dtype = chain.observation.dtype
    scaled = explain(chain)[0] == "scaled"
    filtered |= keep and not scaled
    values = torch.empty((B, T, K) if keep and scaled else (0,), dtype=dtype)
    log_probs = torch.empty((B, T, K) if filtered else (0,), dtype=dtype)
    log_evidence = torch.empty((B, T) if filtered else (0,), dtype=dtype)
    log_z = np.empty(B)
    outputs = (log_probs.view(-1).numpy(), log_evidence.view(-1).numpy())
    matrices, packed = Matrices.of(chain), Packed(NOTHING, NOTHING)
    if scaled:
        top = matrices.values.amax((-1, -2)) if len(matrices.values) else matrices.values.new_zeros(B)
        packed = matrices.pack(cpu_scaled.pack, top.numpy())
        batch.run(
            cpu_scaled.forward,
            *batch.initial[:2],
            packed.values,
            packed.index,
            top.double().numpy()[matrices.number],
            *batch.observation,
            values.view(-1).numpy(),
            log_z,
            *outputs,
        )
    else:
        batch.run(
            cpu_log.forward,
            *batch.initial[:2],
            *batch.transition,
            *batch.observation,
            log_z,
            *outputs,
        )
        values = log_probs
    result = torch.from_numpy(log_z).to(dtype).view(chain.batch_shape)
    return result, Messages(scaled, log_z, values, matrices, packed), log_probs, log_evidence


def _transitions(chain: Chain, messages: Messages, onward: Tensor, each: bool, reduce: bool) -> Tensor:
    """Transition marginals alpha_t(i) exp(A_ij) v_t+1(j), or their sums, from scaled messages."""
    B, T, K = messages.values.shape
    if T < 2:
        if reduce:
            return torch.zeros_like(chain.transition)
        return messages.values.new_zeros(*chain.batch_shape, *(0,) * each, K, K)
    shape, matrices = chain.transition.shape, messages.matrices.values
    odds = (matrices - matrices.amax((-1, -2), keepdim=True)).exp_()
    if len(odds) > 1:
        odds = odds[torch.from_numpy(messages.matrices.number)]
    if each and not reduce:
        pairs = messages.values[:, :-1, :, None] * onward[:, :-1, None, :]
        return pairs.mul_(odds.unsqueeze(1)).view(*chain.batch_shape, T - 1, K, K)
    # The last step of a sequence has no v, so that nothing is counted across a boundary.
    sequences = 1 if reduce and math.prod(shape[:-3]) == 1 else B
    counts = _sum_of_products(messages.values.view(sequences, -1, K), onward.view(sequences, -1, K)).mul_(odds)
    counts = counts.to(odds.dtype)
    if not reduce:
        return counts.view(*chain.batch_shape, K, K)
    return counts.view(shape) if sequences == 1 else counts.view(*chain.batch_shape, 1, K, K).sum_to_size(shape)


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """sum_n left[b, n, i] * right[b, n, j], (B, K, K), in float64 where there are many terms.

    Only a block of terms is added up in the precision of the arguments, because N may be a million. A block is long
    enough for the products to take longer than adding them up.
    """
    B, N, K = left.shape
    block = max(64, 2 * K)
    whole = N // block * block
    result = torch.bmm(left[:, whole:].mT, right[:, whole:])
    if N <= block:
        return result
    if B == 1:
        left, right = (x[:, :whole].view(-1, block, K) for x in (left, right))
        return result.double() + torch.bmm(left.mT, right).sum(0, dtype=torch.float64)
    result = result.double()
    for begin in range(0, whole, block):
        result += torch.bmm(left[:, begin : begin + block].mT, right[:, begin : begin + block])
    return result


def _backward_log(
    chain: Chain,
    log_probs: Tensor,
    log_z: np.ndarray,
    each: bool,
    reduce: bool,
    weight: np.ndarray,
    offset: np.ndarray,
    tangent: tuple | None = None,
) -> tuple[Tensor, Tensor]:
    """Marginals, or their derivatives, in log space; transitions for each sequence or reduced to the chain's shape."""
    batch = Batch.of(chain)
    B, T, K = len(batch.order), chain.num_steps, chain.num_states
    dtype = log_probs.dtype
    shares = len(batch.bounds) - 1
    if reduce:
        shape, target = chain.transition.shape, groups(chain.transition.shape[:-3], chain.batch_shape)
        each = shape[-3] > 1
    else:
        shape, target = (*chain.batch_shape, *((max(T - 1, 0),) if each else ()), K, K), np.arange(B)
    size = math.prod(shape)
    part = (T - 1 if each else 1) * K * K
    alone = len(np.unique(target)) == B
    # Where sequences share a matrix, each thread adds up its own.
    copies = 1 if alone else shares
    own = each and alone  # then written, not added to
    out = (torch.empty if own else torch.zeros)(copies, size, dtype=dtype if each else torch.float64)
    out_index = target * part + np.arange(shares)[:, None] * (size if copies > 1 else 0)
    nothing = NOTHING.astype(batch.observation.values.dtype)
    states = torch.empty(B, T, K, dtype=dtype)
    memory = out.view(-1).numpy()
    if tangent is None:
        none = np.zeros(B, np.int64)
        tangent = (nothing, none, 0, nothing, none, 0, nothing, np.zeros(B, nothing.dtype))
    batch.run(
        cpu_log.backward,
        *batch.transition,
        *batch.observation,
        log_probs.reshape(-1).numpy(),
        log_z,
        weight,
        offset,
        *tangent,
        states.view(-1).numpy(),
        memory if each else nothing,
        NOTHING if each else memory,
        out_index,
        own,
    )
    total = out[0] if copies == 1 else out.sum(0)
    return states.view(*chain.batch_shape, T, K), total.view(shape).to(dtype)


def _per_sequence(chain: Chain, value: Tensor) -> np.ndarray:
    """A value for each sequence, (B,)."""
    return value.detach().to(chain.observation.dtype).expand(chain.batch_shape).contiguous().view(-1).numpy()
