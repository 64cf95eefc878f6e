"""Forward filtering and backward smoothing in plain torch, in log space: the oracle.

Every function is written with ordinary differentiable torch operations, for any device and dtype. The recursions are
derived in `pyrohmm/ops/README.md`; the letters there are the names here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.chain import Chain, Tangent, finite, logsumexp


class Messages(NamedTuple):
    """What the forward pass leaves for the backward pass: the results of `filter`."""

    log_probs: Tensor
    log_evidence: Tensor


def partition(chain: Chain, *, keep: bool) -> tuple[Tensor, Messages]:
    """Log Z (*batch), and the messages (whether they are to be kept or not).

    The evidence is summed over time in float64, whatever the dtype of the messages.
    """
    messages = Messages(*filter(chain))
    return messages.log_evidence.sum(-1, dtype=torch.float64).to(chain.observation.dtype), messages


def filter(chain: Chain) -> tuple[Tensor, Tensor]:
    """Filtered state log-probabilities (*batch, T, K) and log-evidence of each step (*batch, T).

    Messages are normalised at each step, so that float32 keeps its relative accuracy at any T.
    """
    log_probs, log_evidence = [], []
    predicted = chain.initial.expand(*chain.batch_shape, -1)
    for t in range(chain.num_steps):
        joint = predicted + chain.observation[..., t, :]
        evidence = logsumexp(joint, -1)
        log_prob = joint - finite(evidence).unsqueeze(-1)
        log_probs.append(log_prob)
        log_evidence.append(evidence)
        if t + 1 < chain.num_steps:
            predicted = logsumexp(log_prob.unsqueeze(-1) + chain.transition_at(t), -2)
    if not log_probs:
        shape = (*chain.batch_shape, 0)
        return chain.initial.new_zeros(*shape, chain.num_states), chain.initial.new_zeros(shape)
    valid = chain.valid
    return (
        torch.where(valid.unsqueeze(-1), torch.stack(log_probs, -2), -torch.inf),
        torch.where(valid, torch.stack(log_evidence, -1), 0.0),
    )


def smooth(chain: Chain, messages: Messages, *, each: bool, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """State marginals (*batch, T, K) and transition marginals.

    Args:
        chain: the chain.
        messages: from `partition`.
        each: transition marginals of each step (*batch, T-1, K, K) instead of their sum over time (*batch, K, K).
        weight: (*batch). When given, state marginals are multiplied by it and the transition marginals by it too and
            summed to the shape of `chain.transition`: the gradient, without one (K, K) matrix a sequence.
    """
    log_probs, log_evidence = messages
    lengths = _possible_lengths(chain, log_evidence)
    state_marginals, transition_marginals = [], []
    if weight is None:
        total = _zeros(chain, (*chain.batch_shape, chain.num_states, chain.num_states))
    else:
        total = torch.zeros_like(chain.transition[..., :1, :, :])
        each = chain.transition.shape[-3] > 1
    mass = torch.ones_like(lengths, dtype=chain.observation.dtype) if weight is None else weight
    total = total.double()  # counts grow with T; float32 would lose the small terms
    log_beta = onward = _zeros(chain, (*chain.batch_shape, chain.num_states))
    for t in reversed(range(chain.num_steps)):
        if t + 1 < chain.num_steps:
            log_beta, onward = _backward_step(chain, t, log_beta, lengths)
        gamma = _softmax(log_probs[..., t, :] + log_beta, -1) * torch.where(t < lengths, mass, 0.0).unsqueeze(-1)
        if t + 1 < chain.num_steps:
            xi = (gamma * (t + 1 < lengths).unsqueeze(-1)).unsqueeze(-1) * onward
            if weight is not None:
                xi = xi.unsqueeze(-3).sum_to_size(total.shape)
            if each:
                transition_marginals.append(xi)
            else:
                total = total + xi
        state_marginals.append(gamma)
    total = total.to(chain.observation.dtype)
    if each and transition_marginals:
        join = torch.stack if weight is None else torch.cat
        total = join(transition_marginals[::-1], dim=-3)
    elif each:
        total = _zeros(chain, (*chain.batch_shape, 0, chain.num_states, chain.num_states))
    if not state_marginals:
        return _zeros(chain, (*chain.batch_shape, 0, chain.num_states)), total
    return torch.stack(state_marginals[::-1], -2), total


def has_hessian_product(chain: Chain) -> bool:
    """Whether there is one for this chain."""
    return True


def hessian_product(
    chain: Chain, messages: Messages, direction: tuple[Tensor, ...], *, weight: Tensor, offset: Tensor
) -> Tangent:
    """Product of the Hessian of log Z with a direction, by one more forward and one more backward pass.

    With f(path) the sum of the direction's entries along the path, the product is the posterior covariance of each
    indicator with f. Returned is, for each potential, the sum over the sequences that share it of
    `marginal * (weight * (E[f | indicator] - E[f]) + offset)`, and E[f] of each sequence.

    Args:
        chain: the chain.
        messages: from `partition`.
        direction: of shapes that broadcast to (*batch, K), (*batch, 1 or T-1, K, K), (*batch, T, K).
        weight: (*batch).
        offset: (*batch).
    """
    log_probs, log_evidence = messages
    lengths = _possible_lengths(chain, log_evidence)
    v_initial, v_transition, v_observation = direction
    batch_vector = (*chain.batch_shape, chain.num_states)

    def v_at(t: int) -> Tensor:
        return v_transition[..., t if v_transition.shape[-3] > 1 else 0, :, :]

    # F_t(k) = E[f up to step t | z_t = k], by the backward kernel P(z_{t-1} = i | z_t = j, x_{1..t}).
    expectation = _zeros(chain, chain.batch_shape)
    past: list[Tensor] = []
    for t in range(chain.num_steps):
        if t == 0:
            here = v_initial.expand(batch_vector)
        else:
            origin = _softmax(log_probs[..., t - 1, :].unsqueeze(-1) + chain.transition_at(t - 1), -2)
            here = (origin * (past[-1].unsqueeze(-1) + v_at(t - 1))).sum(-2)
        past.append(here + v_observation[..., t, :])
        at_end = (log_probs[..., t, :].exp() * past[-1]).sum(-1)
        expectation = torch.where(lengths == t + 1, at_end, expectation)

    # G_t(k) = E[f after step t | z_t = k], by the forward kernel P(z_{t+1} = j | z_t = i, x).
    initial = torch.zeros_like(chain.initial)
    shared = chain.transition.shape[-3] == 1
    counts = torch.zeros_like(chain.transition, dtype=torch.float64 if shared else None)
    transition: list[Tensor] = []
    observation: list[Tensor] = []
    log_beta = future = onward = ahead = _zeros(chain, batch_vector)

    def pull(marginal: Tensor, conditional: Tensor, extra_dims: int) -> Tensor:
        def wide(value: Tensor) -> Tensor:
            return value[(..., *(None,) * extra_dims)]

        change = wide(weight) * (conditional - wide(expectation)) + wide(offset)
        return torch.where(marginal == 0, 0.0, marginal * change)  # potentials near the end of the range overflow

    for t in reversed(range(chain.num_steps)):
        if t + 1 < chain.num_steps:
            log_beta, onward = _backward_step(chain, t, log_beta, lengths)
            onward = onward * (t + 1 < lengths)[..., None, None]
            ahead = v_at(t) + (v_observation[..., t + 1, :] + future).unsqueeze(-2)
            future = (onward * ahead).sum(-1)
        gamma = _softmax(log_probs[..., t, :] + log_beta, -1) * (t < lengths).unsqueeze(-1)
        observation.append(pull(gamma, past[t] + future, 1))
        if t + 1 < chain.num_steps:
            xi = pull(gamma.unsqueeze(-1) * onward, past[t].unsqueeze(-1) + ahead, 2)
            xi = xi.unsqueeze(-3).sum_to_size(chain.transition[..., :1, :, :].shape)
            if shared:
                counts = counts + xi
            else:
                transition.append(xi)
    if observation:
        initial = observation[-1].sum_to_size(chain.initial.shape)
        product = torch.stack(observation[::-1], -2).sum_to_size(chain.observation.shape)
    else:
        product = torch.zeros_like(chain.observation)
    if transition:
        counts = torch.cat(transition[::-1], -3)
    return Tangent(initial, counts.to(product.dtype), product, expectation)


def _backward_step(chain: Chain, t: int, log_beta: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """From the message after step t+1 to the one after step t, and P(z_{t+1} = j | z_t = i, x)."""
    message = chain.transition_at(t) + (chain.observation[..., t + 1, :] + log_beta).unsqueeze(-2)
    # One exponential serves both the message and the conditional law.
    shift = finite(message.detach().amax(-1))
    scores = (message - shift.unsqueeze(-1)).exp()
    total = scores.sum(-1)
    possible = total > 0
    total = torch.where(possible, total, 1.0)
    new = torch.where(possible, total.log() + shift, -torch.inf)
    # Only ratios of the message matter: the largest entry is kept at zero. Past the end it is all zero.
    new = new - finite(new.detach().amax(-1, keepdim=True))
    return torch.where((t + 1 < lengths).unsqueeze(-1), new, 0.0), scores / total.unsqueeze(-1)


def _possible_lengths(chain: Chain, log_evidence: Tensor) -> Tensor:
    """The lengths, with zero for a sequence that no path can explain: its marginals are all zero."""
    return torch.where(log_evidence.sum(-1) > -torch.inf, chain.lengths, 0)


def _softmax(logits: Tensor, dim: int) -> Tensor:
    """Softmax, with zeros where all entries are -inf."""
    return (logits - finite(logsumexp(logits, dim)).unsqueeze(dim)).exp()


def _zeros(chain: Chain, shape: tuple[int, ...]) -> Tensor:
    return chain.observation.new_zeros(shape)
