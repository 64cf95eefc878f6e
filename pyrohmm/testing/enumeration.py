"""The oracle: exact inference on a linear chain by listing every path.

A chain of K states and T steps has K^T paths z = (z_1, ..., z_T), each with the potential

    s(z) = initial[z_1] + sum_{t<T} transition[t][z_t, z_{t+1}] + sum_t observation[t, z_t]        (logs)

Every quantity here is read off that list: sums, maxima and averages over paths, with no recursion over time. It is
slow by design and shares no idea with the fast code it judges. The functions have the names, arguments and results
of `pyrohmm.ops`, one difference apart: no `impl`. They are plain torch, so autograd gives their derivatives of any
order, in any dtype.

Sequences are cut at their length before anything is read, and paths with potential -inf are dropped before anything
is summed. So padding may hold NaN, and neither padding nor impossible paths receive anything but zero gradient.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

INFINITY = float("inf")
MAX_PATHS = 2**20


class FilterResult(NamedTuple):
    """log p(z_t | x_1..x_t), shape (..., T, K), and log p(x_t | x_1..x_{t-1}), shape (..., T)."""

    log_probs: Tensor
    log_evidence: Tensor


class SmoothResult(NamedTuple):
    """log Z (...), p(z_t | x) (..., T, K), and expected transitions (..., K, K) or (..., T-1, K, K)."""

    log_partition: Tensor
    state_marginals: Tensor
    transition_marginals: Tensor


class ViterbiResult(NamedTuple):
    """A most probable path (..., T) and its potential (...)."""

    states: Tensor
    log_prob: Tensor


class KBestResult(NamedTuple):
    """The k most probable paths (..., k, T), best first, and their potentials (..., k)."""

    states: Tensor
    log_prob: Tensor


def paths(num_states: int, num_steps: int) -> Tensor:
    """All paths of `num_steps` steps, in lexicographic order: int64 of shape (K^T, T).

    No steps have one path, the empty one.

    Raises:
        ValueError: if there are more than about a million paths.

    >>> paths(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    num_paths = num_states**num_steps
    if num_paths > MAX_PATHS:
        raise ValueError(
            f"enumeration lists at most {MAX_PATHS} paths, but num_states={num_states} and num_steps={num_steps} "
            f"have {num_states}**{num_steps}"
        )
    listed = list(product(range(num_states), repeat=num_steps))
    return torch.tensor(listed, dtype=torch.int64).reshape(num_paths, num_steps)


def path_log_probs(initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor) -> Tensor:
    """The potential s(z) of every path of one chain, in the order of `paths`: shape (K^T,).

    Args:
        initial_logits: (K,).
        transition_logits: (T-1, K, K), (1, K, K) or (K, K), the last two dimensions [from, to].
        observation_logits: (T, K).

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> path_log_probs(half, torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.zeros(2, 2)).exp()
    tensor([0.4500, 0.0500, 0.1000, 0.4000])
    """
    num_steps, num_states = observation_logits.shape
    time = torch.arange(num_steps)
    z = paths(num_states, num_steps)
    transition_logits = transition_logits.expand(max(num_steps - 1, 0), num_states, num_states)
    return (
        initial_logits[z[:, :1]].sum(-1)
        + transition_logits[time[:-1], z[:, :-1], z[:, 1:]].sum(-1)
        + observation_logits[time, z].sum(-1)
    )


def log_partition(
    initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """log Z = log sum_z exp s(z), shape (...). -inf without a possible path, 0 for a sequence of length 0.

    Args:
        initial_logits: (..., K).
        transition_logits: (..., T-1, K, K), (..., 1, K, K) or (K, K).
        observation_logits: (..., T, K).
        lengths: (...) integers, the valid steps of each sequence; all T if None.

    The batch shapes `...` are broadcast against each other, and must hold at least one sequence. So for every
    function below.

    >>> log_partition(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2)).exp()
    tensor(8.)
    """

    def one(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
        return _possible(initial, transition, observation)[1].logsumexp(0)

    return _each_sequence(one, initial_logits, transition_logits, observation_logits, lengths)[0]


def filter(
    initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor, *, lengths: Tensor | None = None
) -> FilterResult:
    """log p(z_t | x_1..t) and log p(x_t | x_<t), from the paths of each prefix x_1..t.

    With Z_t the partition function of the first t steps, log p(x_t | x_<t) = log Z_t - log Z_{t-1} and Z_0 = 1. Past
    the length, log_probs are -inf and log_evidence is 0. From the first impossible prefix on, both are -inf.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> seen = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> result = filter(half, torch.zeros(2, 2), seen)
    >>> result.log_probs.exp()
    tensor([[0.9000, 0.1000],
            [0.9000, 0.1000]])
    """
    num_steps, num_states = observation_logits.shape[-2:]

    def one(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        length = observation.shape[0]
        impossible = observation.new_tensor(-INFINITY)
        log_probs, log_evidence, before = [], [], observation.new_zeros(())
        for t in range(1, length + 1):
            z, score = _possible(initial, transition[: t - 1], observation[:t])
            if len(score):
                log_z = score.logsumexp(0)
                log_probs += [torch.stack([score[z[:, -1] == k].logsumexp(0) for k in range(num_states)]) - log_z]
                log_evidence += [log_z - before]
                before = log_z
            else:
                log_probs += [impossible.expand(num_states)]
                log_evidence += [impossible]
        log_probs = torch.stack(log_probs) if length else observation
        log_evidence = torch.stack(log_evidence) if length else observation.sum(-1)
        return _pad_time(log_probs, num_steps, -INFINITY), pad(log_evidence, (0, num_steps - length))

    return FilterResult(*_each_sequence(one, initial_logits, transition_logits, observation_logits, lengths))


def smooth(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    transitions: Literal["sum", "each"] = "sum",
) -> SmoothResult:
    """log Z, p(z_t = k | x) and p(z_t = i, z_{t+1} = j | x), each a sum of exp(s(z) - log Z) over the paths meant.

    `transitions="sum"` adds the transition marginals up over time: expected counts (..., K, K). `transitions="each"`
    keeps them apart: (..., T-1, K, K). Past the length, and without a possible path, marginals are 0.

    >>> result = smooth(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2))
    >>> result.state_marginals[0], result.transition_marginals
    (tensor([0.5000, 0.5000]), tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]]))
    """
    if transitions not in ("sum", "each"):
        raise ValueError(f"transitions must be 'sum' or 'each', but got {transitions!r}")
    num_steps, num_states = observation_logits.shape[-2:]

    def one(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, score = _possible(initial, transition, observation)
        log_z = score.logsumexp(0)
        prob = (score - log_z).exp()
        at = one_hot(z, num_states).to(prob)
        states = torch.einsum("n,nti->ti", prob, at)
        pairs = torch.einsum("n,nti,ntj->tij", prob, at[:, :-1], at[:, 1:])
        pairs = pairs.sum(0) if transitions == "sum" else _pad_time(pairs, max(num_steps - 1, 0), 0.0)
        return log_z, _pad_time(states, num_steps, 0.0), pairs

    return SmoothResult(*_each_sequence(one, initial_logits, transition_logits, observation_logits, lengths))


def viterbi(
    initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor, *, lengths: Tensor | None = None
) -> ViterbiResult:
    """argmax_z s(z) and max_z s(z). Among equals, the first in lexicographic order.

    States past the length are -1; without a possible path they all are, and log_prob is -inf.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> viterbi(half, torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.zeros(2, 2))
    ViterbiResult(states=tensor([0, 0]), log_prob=tensor(-0.7985))
    """
    best = k_best(initial_logits, transition_logits, observation_logits, 1, lengths=lengths)
    return ViterbiResult(best.states[..., 0, :], best.log_prob[..., 0])


def k_best(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
) -> KBestResult:
    """The k paths of largest potential, best first; equals in lexicographic order.

    Where fewer than k paths are possible, the rest have states -1 and log_prob -inf.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> k_best(half, torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.zeros(2, 2), 2).states.tolist()
    [[0, 0], [1, 1]]
    """
    num_steps = observation_logits.shape[-2]

    def one(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        z, score = _possible(initial, transition, observation)
        order = score.argsort(descending=True, stable=True)[:k]
        missing = k - len(order)
        states = pad(z[order], (0, num_steps - z.shape[-1], 0, missing), value=-1)
        return states, pad(score[order], (0, missing), value=-INFINITY)

    return KBestResult(*_each_sequence(one, initial_logits, transition_logits, observation_logits, lengths))


def entropy(
    initial_logits: Tensor, transition_logits: Tensor, observation_logits: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """- sum_z p(z | x) log p(z | x) in nats, shape (...). 0 without a possible path and for length 0.

    >>> entropy(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2))  # 3 log 2
    tensor(2.0794)
    """

    def one(initial: Tensor, transition: Tensor, observation: Tensor) -> Tensor:
        score = _possible(initial, transition, observation)[1]
        log_prob = score - score.logsumexp(0)
        return -(log_prob.exp() * log_prob).sum()

    return _each_sequence(one, initial_logits, transition_logits, observation_logits, lengths)[0]


def _possible(initial: Tensor, transition: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
    """The paths of one chain whose potential is not -inf, and these potentials."""
    score = path_log_probs(initial, transition, observation)
    possible = score > -INFINITY
    z = paths(observation.shape[-1], observation.shape[-2]).to(score.device)
    return z[possible], score[possible]


def _pad_time(values: Tensor, num_steps: int, value: float) -> Tensor:
    return torch.cat([values, values.new_full((num_steps - len(values), *values.shape[1:]), value)])


def _each_sequence(
    one: Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, ...]],
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """Apply `one` to each sequence of the broadcast batch, and stack each of its results over the batch."""
    if transition_logits.dim() == 2:
        transition_logits = transition_logits.unsqueeze(0)
    batch_shape = torch.broadcast_shapes(
        initial_logits.shape[:-1],
        transition_logits.shape[:-3],
        observation_logits.shape[:-2],
        () if lengths is None else lengths.shape,
    )
    results = [
        one(*chain) for chain in _cut(initial_logits, transition_logits, observation_logits, lengths, batch_shape)
    ]
    columns = zip(*(result if isinstance(result, tuple) else (result,) for result in results), strict=True)
    return tuple(torch.stack(column).reshape(batch_shape + column[0].shape) for column in columns)


def _cut(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None,
    batch_shape: torch.Size,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each sequence by itself, without its padding: (K,), (length - 1, K, K), (length, K)."""
    num_steps, num_states = observation_logits.shape[-2:]
    initial_logits = initial_logits.expand(*batch_shape, num_states)
    transition_logits = transition_logits.expand(*batch_shape, max(num_steps - 1, 0), num_states, num_states)
    observation_logits = observation_logits.expand(*batch_shape, num_steps, num_states)
    lengths = torch.full(batch_shape, num_steps) if lengths is None else lengths.expand(batch_shape)
    for index in product(*map(range, batch_shape)):
        length = int(lengths[index])
        yield initial_logits[index], transition_logits[index][: max(length - 1, 0)], observation_logits[index][:length]
