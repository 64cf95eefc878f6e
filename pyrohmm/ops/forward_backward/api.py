"""Sum-product inference: log_partition, filter, smooth, entropy, and the one place that owns their derivatives.

The gradient of log Z is the vector of posterior marginals, and its Hessian is their covariance; an implementation
supplies messages (`partition`, `filter`, `smooth`, `hessian_product`) and never a derivative rule. See
`pyrohmm/ops/README.md`.
"""

import math
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrohmm.ops.chain import Chain, Impl, check_entries, choose, clear_padding, fit_chain


class FilterResult(NamedTuple):
    """Result of `filter`: log p(z_t | x_1..t), (..., T, K), and log p(x_t | x_<t), (..., T)."""

    log_probs: Tensor
    log_evidence: Tensor


class SmoothResult(NamedTuple):
    """Result of `smooth`: log Z (...), state marginals (..., T, K), transition marginals (..., [T-1,] K, K)."""

    log_partition: Tensor
    state_marginals: Tensor
    transition_marginals: Tensor


def log_partition(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Log of the sum over all state paths, exactly.

    .. math:: \log Z = \log \sum_{z_{1:T}} \exp\Big(\pi_{z_1} + \sum_{t<T} A_{t, z_t z_{t+1}} + \sum_t o_{t, z_t}\Big)

    The arguments are plain potentials: nothing is normalised. Differentiable any number of times: the gradient is the
    vector of expected counts (state and transition marginals), a Hessian product one more forward and backward pass,
    and what lies beyond plain autograd through the reference.

    Args:
        initial_logits: (..., K), potential of the first state.
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K), A_ij from state i to state j.
        observation_logits: (..., T, K), potential of each step's state, e.g. log p(x_t | z_t).
        lengths: (...), int64, valid steps of each sequence; all T when None. What lies beyond is never read.
        impl: which implementation; "auto" picks the fastest that is available.

    Returns:
        (...), natural logarithm. -inf where no path is possible (with zero gradient), 0 for length 0.

    Raises:
        TypeError, ValueError: see `pyrohmm.ops.chain.as_chain`.
        NotImplementedError: an implementation asked for by name is not available.

    Reference:
        Rabiner (1989), "A tutorial on hidden Markov models", section III.A.

    Example:
        >>> initial = torch.tensor([0.5, 0.5]).log()
        >>> transition = torch.tensor([[0.7, 0.3], [0.3, 0.7]]).log()
        >>> observation = torch.tensor([[0.9, 0.2], [0.9, 0.2], [0.1, 0.8]]).log()
        >>> print(f"{log_partition(initial, transition, observation).exp():.6f}")
        0.120445
    """
    chain, kernel = _begin(impl, initial_logits, transition_logits, observation_logits, lengths)
    if torch.is_grad_enabled() and any(logits.requires_grad for logits in chain[:3]):
        log_z = _LogPartition.apply(chain.initial, chain.transition, chain.observation, chain, kernel)
    else:
        log_z, _ = kernel.partition(_detached(chain), keep=False)
    _check(chain, log_z)
    return log_z


def value_and_gradient(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """`log_partition` and the gradient of its sum, the expected counts, without a graph; arguments and errors as there.

    Returns:
        log Z, (...); and three tensors of the shapes of the potentials.

    Example:
        >>> _, counts = value_and_gradient(torch.zeros(2), torch.zeros(2, 2), torch.zeros(5, 3, 2))
        >>> counts[1]
        tensor([[2.5000, 2.5000],
                [2.5000, 2.5000]])
    """
    with torch.no_grad():
        chain, kernel = _begin(impl, initial_logits, transition_logits, observation_logits, lengths)
        chain = _detached(chain)
        log_z, messages = kernel.partition(chain, keep=True)
        _check(chain, log_z)
        initial, transition, observation = _gradient(*chain[:3], torch.ones_like(log_z), chain, messages, kernel)
        return log_z, (initial, transition.reshape(transition_logits.shape), observation)


def filter(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> FilterResult:
    r"""Forward filtering: the law of each state given what was seen up to it.

    .. math:: \alpha_t(j) \propto e^{o_{t,j}} \sum_i \alpha_{t-1}(i)\, e^{A_{ij}}

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        lengths: (...), int64; all T when None.
        impl: which implementation.

    Returns:
        `FilterResult`: log_probs (..., T, K), normalised over states, and log_evidence (..., T), whose sum over time
        is `log_partition`. Past the length they are -inf and 0. Differentiable, by plain autograd through the
        reference: a gradient costs more than a filter.

    Raises:
        TypeError, ValueError, NotImplementedError: as `log_partition`.

    Reference:
        Rabiner (1989), equations 19-21, with the scaling of section V.A.

    Example:
        >>> result = filter(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> result.log_probs.exp()[1].round(decimals=3).tolist()
        [0.731..., 0.268...]
    """
    chain, kernel = _begin(impl, initial_logits, transition_logits, observation_logits, lengths)
    result = FilterResult(*_Filter.apply(chain.initial, chain.transition, chain.observation, chain, kernel))
    _check(chain, result.log_evidence)
    return result


def smooth(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    transitions: Literal["sum", "each"] = "sum",
    impl: Impl = "auto",
) -> SmoothResult:
    r"""Forward-backward smoothing: the posterior law of each state and of each pair of neighbouring states.

    .. math:: \gamma_t(k) = p(z_t = k \mid x), \qquad \xi_t(i, j) = p(z_t = i, z_{t+1} = j \mid x)

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        lengths: (...), int64; all T when None.
        transitions: "sum" adds the transition marginals over time (expected counts), "each" keeps every step's.
        impl: which implementation.

    Returns:
        `SmoothResult`: log_partition (...), state_marginals (..., T, K), transition_marginals (..., K, K) for "sum"
        or (..., T-1, K, K) for "each". Zero past the length and for a sequence that no path can explain.
        Differentiable.

    Raises:
        TypeError, ValueError, NotImplementedError: as `log_partition`.

    Reference:
        Rabiner (1989), equations 27 and 37.

    Example:
        >>> result = smooth(torch.zeros(2), torch.zeros(2, 2), torch.zeros(4, 2))
        >>> result.state_marginals[0].tolist(), result.transition_marginals.tolist()
        ([0.5, 0.5], [[0.75, 0.75], [0.75, 0.75]])
    """
    if transitions not in ("sum", "each"):
        raise ValueError(f"transitions: expected 'sum' or 'each', got {transitions!r}")
    chain, kernel = _begin(impl, initial_logits, transition_logits, observation_logits, lengths)
    return SmoothResult(*_smooth(chain, transitions == "each", kernel))


def entropy(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    *,
    lengths: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Entropy of the posterior law of whole paths.

    .. math:: H = \log Z - \mathrm{E}\Big[\pi_{z_1} + \sum_{t<T} A_{t, z_t z_{t+1}} + \sum_t o_{t, z_t}\Big]

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
        observation_logits: (..., T, K).
        lengths: (...), int64; all T when None.
        impl: which implementation.

    Returns:
        (...), nats. Zero for length 0 and where no path is possible. Differentiable.

    Raises:
        TypeError, ValueError, NotImplementedError: as `log_partition`.

    Reference:
        Hernando, Crespi and Cybenko (2005), "Efficient computation of the hidden Markov model entropy".

    Example:
        >>> entropy(torch.zeros(2), torch.zeros(2, 2), torch.zeros(10, 2)) / torch.tensor(2.0).log()
        tensor(10.)
    """
    chain, kernel = _begin(impl, initial_logits, transition_logits, observation_logits, lengths)
    chain = clear_padding(chain)
    per_step = chain.transition.shape[-3] > 1
    log_z, state_marginals, transition_marginals = _smooth(chain, per_step, kernel)
    if not per_step:
        transition_marginals = transition_marginals.unsqueeze(-3)
    energy = expected_potential(chain, state_marginals, transition_marginals)
    return torch.where(log_z.isfinite(), log_z - energy, 0.0)


def expected_potential(chain: Chain, state_marginals: Tensor, transition_marginals: Tensor) -> Tensor:
    """Expectation of a path's total potential under given marginals; an impossible event (0 times -inf) counts 0.

    Args:
        chain: the potentials.
        state_marginals: (*batch, T, K).
        transition_marginals: (*batch, 1 or T-1, K, K), summed over time when `chain.transition` is shared.

    Returns:
        (*batch). -inf where the marginals give mass to something that the potentials forbid.
    """
    total = expected(state_marginals, chain.observation, 2)
    if chain.num_steps > 0:
        total = total + expected(state_marginals[..., 0, :], chain.initial, 1)
    if chain.num_steps > 1:
        total = total + expected(transition_marginals, chain.transition, 3)
    return total.to(chain.observation.dtype)


def expected(marginals: Tensor, values: Tensor, dims: int) -> Tensor:
    """Sum of marginals times values over the last dimensions, in float64; 0 times -inf counts 0.

    Args:
        marginals: (..., *dims), not negative.
        values: broadcasts with them; -inf is allowed.
        dims: how many dimensions are summed.

    Returns:
        (...). -inf where the marginals give mass to -inf.

    Example:
        >>> expected(torch.tensor([0.25, 0.75, 0.0]), torch.tensor([4.0, 8.0, -torch.inf]), 1)
        tensor(7., dtype=torch.float64)
    """
    forbidden = values == -torch.inf
    product = marginals * torch.where(forbidden, 0.0, values)
    product = torch.where(forbidden & (marginals > 0), -torch.inf, product)
    return product.flatten(-dims).sum(-1, dtype=torch.float64)


def _begin(impl: str, *arguments: Tensor | None) -> tuple[Chain, ModuleType]:
    """The chain as the chosen implementation wants it, and that implementation."""
    chain = fit_chain(*arguments)  # pyright: ignore[reportArgumentType]
    match choose(impl, chain.observation):
        case "cpu":
            # Reads nothing beyond the lengths, and what is NaN or +inf makes its result NaN: see `_check`.
            from pyrohmm.ops.forward_backward import cpu as kernel
        case "gpu":
            from pyrohmm.ops.forward_backward import gpu as kernel
        case "reference":
            from pyrohmm.ops.forward_backward import reference as kernel

            check_entries(chain)
            chain = clear_padding(chain)
    return chain, kernel


def _check(chain: Chain, result: Tensor) -> None:
    """Look for the cause of a NaN in a result."""
    if not Distribution._validate_args:
        return  # on a GPU, to ask is to wait for it
    if math.isnan(result.detach().sum()):
        check_entries(chain)


def _smooth(chain: Chain, each: bool, kernel: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
    result = _Smooth.apply(chain.initial, chain.transition, chain.observation, chain, each, kernel)
    _check(chain, result[0])
    return result


def _hessian_product(
    ctx: Any, inputs: tuple[Tensor, ...], direction: tuple[Tensor, ...], *, weight: Tensor, offset: Tensor
) -> tuple[Tensor, ...]:
    """The implementation's product; where it has none, or a further derivative is wanted, the reference's."""
    chain, messages, kernel = ctx.chain, ctx.messages, ctx.kernel
    if torch.is_grad_enabled() or not kernel.has_hessian_product(chain):
        from pyrohmm.ops.forward_backward import reference as kernel

        initial, transition, observation = inputs
        chain = clear_padding(chain._replace(initial=initial, transition=transition, observation=observation))
        _, messages = kernel.partition(chain, keep=True)
    return kernel.hessian_product(chain, messages, direction, weight=weight, offset=offset)


def _gradient(
    initial: Tensor, transition: Tensor, observation: Tensor, weight: Tensor, chain: Chain, messages: Any, kernel: Any
) -> tuple[Tensor, ...]:
    """The gradient of sum(weight * log Z), of the shapes of the potentials."""
    states, transitions = kernel.smooth(chain, messages, each=False, weight=weight)
    first = states[..., 0, :] if chain.num_steps else states.sum(-2)
    return (
        first.sum_to_size(initial.shape),
        transitions.expand(transition.shape),
        states.sum_to_size(observation.shape),
    )


class _LogPartition(torch.autograd.Function):
    """log Z of (initial, transition, observation); its gradient is `_Gradient`."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, observation: Tensor, chain: Chain, kernel: Any
    ) -> Tensor:
        chain = _detached(chain)
        log_z, messages = kernel.partition(chain, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(initial, transition, observation)
        ctx.chain, ctx.messages, ctx.kernel = chain, messages, kernel
        return log_z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # A derivative of the gradient is rarely asked for.
        gradient: Any = _Gradient.apply if torch.is_grad_enabled() else _gradient
        return *gradient(*ctx.saved_tensors, grads[0], ctx.chain, ctx.messages, ctx.kernel), None, None


class _Filter(torch.autograd.Function):
    """The results of `filter`; their derivatives are those of the reference."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, observation: Tensor, chain: Chain, kernel: Any
    ) -> tuple[Tensor, Tensor]:
        chain = _detached(chain)
        ctx.save_for_backward(initial, transition, observation)
        ctx.chain = chain
        return kernel.filter(chain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from pyrohmm.ops.forward_backward import reference

        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [x if again and x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
            initial, transition, observation = inputs
            chain = ctx.chain._replace(initial=initial, transition=transition, observation=observation)
            # What is -inf has no derivative, whatever the caller does with it.
            results = [torch.where(x.isfinite(), x, 0.0) for x in reference.filter(clear_padding(chain))]
            found = torch.autograd.grad(results, inputs, grads, create_graph=again, materialize_grads=True)
        return *found, None, None


class _Gradient(torch.autograd.Function):
    """The gradient of sum(weight * log Z), as a function of the potentials and the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        initial: Tensor,
        transition: Tensor,
        observation: Tensor,
        weight: Tensor,
        chain: Chain,
        messages: Any,
        kernel: Any,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(initial, transition, observation, weight)
        ctx.chain, ctx.messages, ctx.kernel = chain, messages, kernel
        return _gradient(initial, transition, observation, weight, chain, messages, kernel)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weight = ctx.saved_tensors
        product = _hessian_product(ctx, tuple(inputs), grads, weight=weight, offset=torch.zeros_like(weight))
        return *product, None, None, None


class _Smooth(torch.autograd.Function):
    """log Z and the marginals of each sequence, as a function of the potentials."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, observation: Tensor, chain: Chain, each: bool, kernel: Any
    ) -> tuple[Tensor, ...]:
        chain = _detached(chain)
        log_z, messages = kernel.partition(chain, keep=True)
        ctx.save_for_backward(initial, transition, observation)
        ctx.chain, ctx.messages, ctx.each, ctx.kernel = chain, messages, each, kernel
        return log_z, *kernel.smooth(chain, messages, each=each)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        v_log_z, v_states, v_transitions = grads
        if not ctx.each:
            v_transitions = v_transitions.unsqueeze(-3)
        direction = (v_states.new_zeros(ctx.chain.num_states), v_transitions, v_states)
        initial, transition, observation, _ = _hessian_product(
            ctx, ctx.saved_tensors, direction, weight=torch.ones_like(v_log_z), offset=v_log_z
        )
        return initial, transition, observation, None, None, None


def _detached(chain: Chain) -> Chain:
    return chain._replace(
        initial=chain.initial.detach(),
        transition=chain.transition.detach(),
        observation=chain.observation.detach(),
    )
