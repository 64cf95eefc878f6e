"""Two oracles for chains that enumeration cannot list. They share no idea with the recursions that they judge.

`exact` works in linear space with 50 digits and unbounded exponents: nothing can underflow, and nothing that is
subtracted is near cancelling. It is for some tens of steps. `in_log_space` is float64 and walks no recursion over time:
it multiplies the steps' (K, K) matrices in pairs, pairs of pairs and so on, log2(T) times. It is for long sequences of
few states.

`assert_accurate` holds every result of the sum-product and max-product ops to one of them.
"""

from functools import lru_cache
from typing import NamedTuple

import mpmath
import numpy as np
import torch
from torch import Tensor

from pyrohmm import ops
from pyrohmm.testing import Chain, assert_close_to_oracle, assert_within_budget

# The same cutting at the lengths and stacking over the batch as the oracle by enumeration has.
from pyrohmm.testing.enumeration import _each_sequence, _pad_time


class Exact(NamedTuple):
    """What is known of a batch of chains, float64; past the length as the ops leave it."""

    log_partition: Tensor  # (...)
    log_probs: Tensor  # (..., T, K), filtered
    log_evidence: Tensor  # (..., T)
    state_marginals: Tensor  # (..., T, K)
    transition_marginals: Tensor  # (..., T-1, K, K)
    best: Tensor  # (...), potential of the best path
    entropy: Tensor  # (...)


def exact(chain: Chain) -> Exact:
    """Forward, backward and the best path as they are written in textbooks, in numbers that can hold them."""
    return _of_each_sequence(_exact, chain)


def in_log_space(chain: Chain) -> Exact:
    """The same in float64 log space, by products of neighbouring steps' matrices."""
    return _of_each_sequence(_in_log_space, chain)


def _of_each_sequence(one, chain: Chain) -> Exact:
    num_steps, num_states = chain.observation_logits.shape[-2:]

    def padded(*logits: Tensor) -> tuple[Tensor, ...]:
        if len(logits[2]) == 0:
            zero = torch.zeros((), dtype=torch.float64)
            found = Exact(zero, zero.new_zeros(0, num_states), zero.new_zeros(0), *_no_steps(num_states), zero, zero)
        else:
            found = Exact(*(torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in one(*map(_array, logits))))
        return found._replace(
            log_probs=_pad_time(found.log_probs, num_steps, -torch.inf),
            log_evidence=_pad_time(found.log_evidence, num_steps, 0.0),
            state_marginals=_pad_time(found.state_marginals, num_steps, 0.0),
            transition_marginals=_pad_time(found.transition_marginals, max(num_steps - 1, 0), 0.0),
        )

    return Exact(*_each_sequence(padded, *chain.to(torch.float64).logits, chain.lengths))


def _no_steps(num_states: int) -> tuple[Tensor, Tensor]:
    empty = torch.zeros(0, num_states, dtype=torch.float64)
    return empty, empty.unsqueeze(-1).expand(0, num_states, num_states)


def _array(logits: Tensor) -> np.ndarray:
    return logits.detach().numpy()


# Many digits.

_numbers = mpmath.MPContext()
_numbers.dps = 50
_exp = np.frompyfunc(lru_cache(2**16)(_numbers.exp), 1, 1)  # shared transitions repeat at every step
_log = np.frompyfunc(lambda x: _numbers.log(x) if x else -_numbers.inf, 1, 1)
_zero, _one = _numbers.mpf(0), _numbers.mpf(1)


def _exact(initial: np.ndarray, transition: np.ndarray, observation: np.ndarray) -> tuple:
    start, move, emit = _exp(initial), _exp(transition), _exp(observation)
    num_steps, num_states = observation.shape
    alpha, beta, best = [start * emit[0]], [np.full(num_states, _one)], start * emit[0]
    for t in range(1, num_steps):
        alpha.append(alpha[-1] @ move[t - 1] * emit[t])
        best = (best[:, None] * move[t - 1]).max(0) * emit[t]
        beta.insert(0, move[-t] @ (emit[-t] * beta[0]))
    alpha, beta = np.stack(alpha), np.stack(beta)
    evidence = alpha.sum(-1)
    z = evidence[-1]
    log_evidence = _log(evidence)
    step_evidence = np.diff(np.where(evidence > 0, log_evidence, _zero), prepend=_zero)
    step_evidence[evidence == 0] = -_numbers.inf
    log_probs = _log(alpha) - np.where(evidence > 0, log_evidence, _zero)[:, None]
    states = alpha * beta / (z or _one)
    pairs = alpha[:-1, :, None] * move * (emit * beta)[1:, None, :] / (z or _one)
    energy = sum(
        (marginals[marginals > 0] * potentials[marginals > 0]).sum()
        for marginals, potentials in ((states[0], initial), (pairs, transition), (states, observation))
    )
    return _log(z), log_probs, step_evidence, states, pairs, _log(best.max()), (_log(z) - energy if z else _zero)


# Long sequences.


def _in_log_space(initial: np.ndarray, transition: np.ndarray, observation: np.ndarray) -> tuple:
    first, steps = initial + observation[0], transition + observation[1:, None, :]
    log_probs, log_evidence = _forward(first, steps, np.logaddexp)
    _, best_evidence = _forward(first, steps, np.maximum)
    after = _prefixes(steps[::-1].swapaxes(1, 2), np.logaddexp)[::-1].swapaxes(1, 2)
    log_beta = np.concatenate([np.logaddexp.reduce(after, 2), np.zeros((1, len(initial)))])
    log_z = log_evidence.sum(dtype=np.longdouble)
    if log_z == -np.inf:
        states, pairs, entropy = np.zeros_like(log_probs), np.zeros_like(steps), 0.0
    else:
        states = _normalised(log_probs + log_beta, np.logaddexp, 1)
        onward = _normalised(steps + log_beta[1:, None, :], np.logaddexp, 2)
        pairs = np.exp(states[:-1, :, None] + onward)
        # H(z_1) + the sum of H(z_t+1 | z_t): all terms of one sign.
        entropy = -_inner(np.exp(states[0]), states[0]) - _inner(pairs, onward)
        states = np.exp(states)
    return log_z, log_probs, log_evidence, states, pairs, best_evidence.sum(dtype=np.longdouble), entropy


def _forward(first: np.ndarray, steps: np.ndarray, plus: np.ufunc) -> tuple[np.ndarray, np.ndarray]:
    """Messages whose sum (or maximum) over the states is one, and the factor by which each step shrinks it, in logs."""
    later = plus.reduce(first[:, None] + _prefixes(steps, plus), 1)
    messages = _normalised(np.concatenate([first[None], later]), plus, 1)
    evidence = plus.reduce(plus.reduce(messages[:-1, :, None] + steps, 2), 1)
    return messages, np.concatenate([[plus.reduce(first)], evidence])


def _prefixes(matrices: np.ndarray, plus: np.ufunc) -> np.ndarray:
    """The products of the first 1, 2, ..., n matrices (n, K, K), each up to a constant: its largest entry is 0."""
    if len(matrices) < 2:
        return matrices

    def times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        product = plus.reduce(left[:, :, :, None] + right[:, None, :, :], 2)
        return product - _finite(product.max((1, 2), keepdims=True))

    even, odd = matrices[::2], matrices[1::2]
    result = np.empty_like(matrices)
    result[0] = matrices[0]
    result[1::2] = _prefixes(times(even[: len(odd)], odd), plus)
    result[2::2] = times(result[1::2][: len(even) - 1], even[1:])
    return result


def _normalised(logits: np.ndarray, plus: np.ufunc, axis: int) -> np.ndarray:
    return logits - _finite(np.expand_dims(plus.reduce(logits, axis), axis))


def _finite(logits: np.ndarray) -> np.ndarray:
    return np.where(np.isneginf(logits), 0.0, logits)


def _inner(probabilities: np.ndarray, logs: np.ndarray) -> np.longdouble:
    """The sum of p times log p', where an impossible event counts zero."""
    return (probabilities * np.where(probabilities > 0, logs, 0.0)).sum(dtype=np.longdouble)


# What the ops are held to.


def assert_accurate(
    chain: Chain, expected: Exact, impl: str, *, rounding: float = 4.0, budget: str | None = "reference"
) -> None:
    """Every result on `chain` agrees with the oracle.

    In float64 to 1e-10. In float32 the error is at most twice that of the reference on the same chain. Each sequence
    must meet this by itself; its neighbours' errors are no excuse. In particular nothing is NaN, and -inf is where it
    belongs and nowhere else.

    Args:
        chain: float32 or float64.
        expected: the oracle's results on the same numbers.
        impl: which implementation to judge.
        rounding: how many eps an error in float32 may have in any case, see `assert_within_budget`.
        budget: the implementation whose errors in float32 set the limit. None for long chains, where the reference
            takes minutes: then `rounding` alone is the limit.
    """
    single = chain.observation_logits.dtype == torch.float32
    truth = _results_of_oracle(chain, expected)
    ours = _results_of_ops(chain, expected, impl)
    if budget is None:
        allowed = {name: true.to(torch.float32) for name, true in truth.items()}
    else:
        allowed = ours if budget == impl or not single else _results_of_ops(chain, expected, budget)
    for name, true in truth.items():
        # The gradient of a potential that sequences share belongs to all of them.
        rows = 0 if name.startswith("gradient") else len(chain.batch_shape)
        for index in np.ndindex(true.shape[:rows]):
            try:
                if single:
                    assert_within_budget(ours[name][index], allowed[name][index], true[index], rounding=rounding)
                else:
                    assert_close_to_oracle(ours[name][index], true[index])
            except AssertionError as error:
                raise AssertionError(f"{name} {list(index)}: {error}") from error


def weights_of(chain: Chain) -> Tensor:
    """What multiplies each sequence's log Z before the gradient is taken: of either sign, thousandths to thousands."""
    sign, size = torch.randn((2, *chain.batch_shape), generator=torch.Generator().manual_seed(0))
    return sign.sign() * 10 ** (2 * size).clamp(-3, 3)


def path_potential(chain: Chain, states: Tensor) -> Tensor:
    """The potential of given paths (..., T), summed in float64; -inf for a path of -1 alone."""
    num_steps, num_states = chain.observation_logits.shape[-2:]
    initial, transition, observation = chain.to(torch.float64).logits
    initial = initial.expand(*chain.batch_shape, num_states)
    pairs = transition.expand(*chain.batch_shape, max(num_steps - 1, 0), num_states, num_states)
    observation = observation.expand(*chain.batch_shape, num_steps, num_states)
    valid, z = states >= 0, states.clamp(min=0).unsqueeze(-1)
    pairs = pairs.take_along_dim(z[..., :-1, :, None], -2).squeeze(-2).take_along_dim(z[..., 1:, :], -1)
    total = observation.take_along_dim(z, -1).squeeze(-1).where(valid, 0).sum(-1)
    total = total + pairs.squeeze(-1).where(valid[..., 1:], 0).sum(-1)
    if num_steps:
        total = total + initial.take_along_dim(z[..., 0, :], -1).squeeze(-1).where(valid[..., 0], 0)
    lengths = torch.tensor(num_steps) if chain.lengths is None else chain.lengths
    return total.masked_fill((lengths > 0) & ~valid.any(-1), -torch.inf)


def _results_of_ops(chain: Chain, expected: Exact, impl: str) -> dict[str, Tensor]:
    arguments = {"lengths": chain.lengths, "impl": impl}
    leaves = chain.requires_grad().logits
    log_z = ops.log_partition(*leaves, **arguments)
    gradient = torch.autograd.grad(log_z, leaves, weights_of(chain).to(log_z.dtype))
    filtered = ops.filter(*chain.logits, **arguments)
    each = ops.smooth(*chain.logits, **arguments, transitions="each")
    summed = ops.smooth(*chain.logits, **arguments)
    states, best = ops.viterbi(*chain.logits, **arguments)
    return {
        **{f"gradient of {name}": grad for name, grad in zip(Chain._fields, gradient, strict=False)},
        "log_partition": log_z.detach(),
        "log_partition by smooth": summed.log_partition,
        "log_probs": _relative(filtered.log_probs, expected.log_probs),
        "log_evidence": _before_impossible(filtered.log_evidence, expected),
        "state_marginals": summed.state_marginals,
        "state_marginals with each transition": each.state_marginals,
        "transition_marginals": summed.transition_marginals,
        "transition_marginals of each step": each.transition_marginals,
        "viterbi log_prob": best,
        "viterbi path": path_potential(chain, states).to(best.dtype),
        "entropy": _relative(ops.entropy(*chain.logits, **arguments), expected.log_partition),
    }


def _results_of_oracle(chain: Chain, expected: Exact) -> dict[str, Tensor]:
    weights = weights_of(chain).double()
    states = weights[..., None, None] * expected.state_marginals
    pairs = weights[..., None, None, None] * expected.transition_marginals
    first = states[..., 0, :] if states.shape[-2] else states.sum(-2)
    shape = (1,) * (3 - chain.transition_logits.dim()) + chain.transition_logits.shape
    return {
        "gradient of initial_logits": first.sum_to_size(chain.initial_logits.shape),
        "gradient of transition_logits": pairs.sum_to_size(shape).reshape(chain.transition_logits.shape),
        "gradient of observation_logits": states.sum_to_size(chain.observation_logits.shape),
        "log_partition": expected.log_partition,
        "log_partition by smooth": expected.log_partition,
        "log_probs": _relative(expected.log_probs, expected.log_probs),
        "log_evidence": _before_impossible(expected.log_evidence, expected),
        "state_marginals": expected.state_marginals,
        "state_marginals with each transition": expected.state_marginals,
        "transition_marginals": expected.transition_marginals.sum(-3),
        "transition_marginals of each step": expected.transition_marginals,
        "viterbi log_prob": expected.best,
        "viterbi path": expected.best,
        "entropy": _relative(expected.entropy, expected.log_partition),
    }


def _relative(values: Tensor, size: Tensor) -> Tensor:
    """Errors count in proportion to 1 + size: -300 must be -300, to as many digits as -3.

    The entropy is the difference of log Z and an expectation; it is as exact as these, so its size is that of log Z.
    """
    return (values.double() / (1 + size.where(size.isfinite(), 0).abs())).to(values.dtype)


def _before_impossible(log_evidence: Tensor, expected: Exact) -> Tensor:
    """After the first impossible step p(x_t | x_<t) has no meaning, and may be anything."""
    return log_evidence.masked_fill((expected.log_evidence == -torch.inf).cumsum(-1) > 1, 0)
