"""Multinomial logistic regression of states on inputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import allowed, context_inputs, count, forbid
from pyrohmm.nn._free import num_free
from pyrohmm.nn._prior import normal_log_prob, normal_prior
from pyrohmm.nn._relabel import as_permutation, permute
from pyrohmm.nn.part import Part
from pyrohmm.nn.transition import MatrixTransition, sticky_logits


class RegressionInitial(Part):
    """The first state by multinomial logistic regression on inputs c: p(z_1 = k | c) = softmax_k(logits_k + w_k . c).

    Args:
        num_states: K.
        context: C, the size of the inputs.
        mask: (K,) bool, True where the chain may start; the other logits are always -inf.
        prior: `Normal` on the weights, with parameters that broadcast to (K, C).
        logits_prior: `Normal` on the logits of states that are allowed, likewise with (K,).
        generator: source of the random start of the logits; torch's global one if None.

    Attributes:
        logits: (K,) parameter, small noise at the start.
        weights: (K, C) parameter, zero at the start.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `mask` of another shape or dtype or that allows
            nothing, a `prior` that does not fit.

    >>> initial = RegressionInitial(3, context=2)
    >>> initial(torch.zeros(5, 1, 2)).shape
    torch.Size([5, 1, 3])
    """

    mask: Tensor | None
    prior: Tensor | None
    prior_logits: Tensor | None

    def __init__(
        self,
        num_states: int,
        context: int,
        mask: Tensor | None = None,
        *,
        prior: Any = None,
        logits_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__()
        self.num_states = count("num_states", num_states)
        self.context = count("context", context)
        self.register_buffer("mask", allowed(mask, (num_states,)))
        self.logits = nn.Parameter(0.1 * torch.randn(num_states, generator=generator))
        self.weights = nn.Parameter(torch.zeros(num_states, context))
        self.register_buffer("prior", normal_prior(prior, (num_states, context)))
        self.register_buffer("prior_logits", normal_prior(logits_prior, (num_states,), "logits_prior"))

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """The logits of the first state, not normalised; -inf where the chain may not start.

        Args:
            inputs: (..., C).

        Returns:
            (..., K).

        Raises:
            ValueError: `inputs` missing or of another size than `context`.
        """
        logits = self.logits
        inputs = context_inputs(inputs, self.context).to(logits.dtype)
        return forbid(logits + torch.einsum("...c,...kc->...k", inputs, self.weights), self.mask)

    def log_probs(self, inputs: Tensor | None = None) -> Tensor:
        """The normalised logits, log p(z_1 = k | inputs), of the same shape and with the same errors as `forward`.

        >>> RegressionInitial(3, context=1).log_probs(torch.ones(1)).shape
        torch.Size([3])
        """
        return self(inputs).log_softmax(-1)

    def log_prior(self) -> Tensor:
        """The log-density of weights and logits under their priors, up to a constant, (); see `Part`."""
        return super().log_prior() + _log_prior(self)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation, or a parameter has a `PyroSample` prior.

        >>> initial = RegressionInitial(3, context=1, mask=torch.tensor([True, True, False]))
        >>> initial.relabel([2, 0, 1])
        >>> initial(torch.ones(1)).isfinite()
        tensor([False,  True,  True])
        """
        names = ["logits", "weights", "mask", "prior", "prior_logits"]
        permute(self, as_permutation(permutation, self.num_states), names)

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, of the logits and of each input's weights one less than the states that may be first.

        >>> RegressionInitial(3, context=2).num_free_parameters
        6
        """
        free = num_free(self, mask=self.mask)
        idle = 1 + (0 if self.mask is None else int((~self.mask).sum()))
        return free - (idle * self.context if _trained(self, "weights") else 0)


class RegressionTransition(MatrixTransition):
    """Transitions by multinomial logistic regression on inputs c, those of the step that is entered.

    p(z_{t+1} = j | z_t = i, c) = softmax_j(logits_ij + w_ij . c), or w_j instead of w_ij if the weights are `shared`
    by the present states. With K = 2 this is a logistic regression of each state's leaving.

    Smooth effects of a time of day h, of P hours, are those of harmonics: the inputs cos(2 pi m h / P) and
    sin(2 pi m h / P) for m = 1, 2, ... (Zucchini, MacDonald and Langrock 2016, "Hidden Markov models for time series",
    section 10.2); `PeriodicTransition` has a table for each hour.

    Args:
        num_states: K.
        context: C, the size of the inputs.
        shared: whether an input favours each next state alike, whatever the present one (as `InputDrivenTransitions`
            of the package ssm).
        mask: (K, K) bool, [from, to], True where an edge is allowed; the other logits are always -inf.
        sticky: log-odds added to the diagonal at the start.
        prior: `Normal` on the weights, with parameters that broadcast to them, e.g. `Normal(0.0, 1.0)` for inputs of
            unit variance (a ridge penalty).
        logits_prior: `Normal` on the logits of edges that are allowed, likewise with (K, K).
        generator: source of the random start of the logits; torch's global one if None.

    Attributes:
        logits: (K, K) parameter, `sticky` times the unit matrix plus small noise at the start: the transitions where
            the inputs are 0.
        weights: (K, K, C) parameter, [from, to, input], or (K, C), [to, input], if shared; zero at the start. A number
            added to the weights of all next states changes nothing; `coefficients` are without this freedom.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `mask` of another shape or dtype or with a row that
            allows nothing, a `prior` that does not fit.

    Reference:
        Hughes, Guttorp and Charles (1999), "A non-homogeneous hidden Markov model for precipitation occurrence".

    >>> transition = RegressionTransition(3, context=2)
    >>> transition(torch.arange(3).reshape(3, 1, 1), torch.zeros(4, 5, 2)).shape
    torch.Size([3, 4, 5, 3])
    >>> hour = torch.arange(24.0)
    >>> angle = 2 * torch.pi / 24 * hour.unsqueeze(-1) * torch.tensor([1.0, 2.0])
    >>> smooth = RegressionTransition(3, context=4)
    >>> smooth.log_probs(torch.cat([angle.cos(), angle.sin()], -1)).shape
    torch.Size([24, 3, 3])
    """

    prior: Tensor | None
    prior_logits: Tensor | None

    def __init__(
        self,
        num_states: int,
        context: int,
        *,
        shared: bool = False,
        mask: Tensor | None = None,
        sticky: float = 1.0,
        prior: Any = None,
        logits_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, mask)
        self.context = count("context", context)
        self.shared = shared
        shape = (num_states, context) if shared else (num_states, num_states, context)
        self.logits = nn.Parameter(sticky_logits(num_states, sticky, generator))
        self.weights = nn.Parameter(torch.zeros(shape))
        self.register_buffer("prior", normal_prior(prior, shape))
        self.register_buffer("prior_logits", normal_prior(logits_prior, (num_states, num_states), "logits_prior"))

    def _logits(self, inputs: Tensor | None) -> Tensor:
        logits = self.logits
        inputs = context_inputs(inputs, self.context).to(logits.dtype)
        if self.shared:
            return logits + torch.einsum("...c,...jc->...j", inputs, self.weights).unsqueeze(-2)
        return logits + torch.einsum("...c,...ijc->...ij", inputs, self.weights)

    @property
    def coefficients(self) -> Tensor:
        """w_ij - w_ii, (K, K, C): by how much one unit of an input changes the log-odds of going to j over staying.

        >>> RegressionTransition(3, context=2, shared=True).coefficients.shape
        torch.Size([3, 3, 2])
        """
        weights = self.weights
        if self.shared:
            return weights.unsqueeze(-3) - weights.unsqueeze(-2)
        return weights - weights.diagonal(0, -3, -2).mT.unsqueeze(-2)

    def log_prior(self) -> Tensor:
        """The log-density of weights and logits under their priors, up to a constant, (); see `Part`."""
        return super().log_prior() + _log_prior(self)

    def _relabel(self, permutation: Tensor) -> None:
        permute(self, permutation, ["logits", "prior_logits"], (0, 1))
        permute(self, permutation, ["weights", "prior"], (0,) if self.shared else (0, 1))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, of each row one less than the edges that are allowed.

        >>> RegressionTransition(3, context=2).num_free_parameters
        18
        >>> RegressionTransition(3, context=2, shared=True).num_free_parameters
        10
        """
        free = num_free(self, mask=self.mask)
        forbidden = 0 if self.mask is None else int((~self.mask).sum())
        idle = 1 if self.shared else self.num_states + forbidden
        return free - (idle * self.context if _trained(self, "weights") else 0)


def _log_prior(part: "RegressionInitial | RegressionTransition") -> Tensor | float:
    total: Tensor | float = 0.0
    if part.prior is not None:
        total = total + normal_log_prob(part.weights, part.prior).sum()
    if part.prior_logits is not None:
        density = normal_log_prob(part.logits, part.prior_logits)
        total = total + (density if part.mask is None else density.masked_fill(~part.mask, 0.0)).sum()
    return total


def _trained(part: nn.Module, name: str) -> bool:
    """Whether a parameter is neither frozen nor replaced by a `PyroSample` prior."""
    parameter = part._parameters.get(name)
    return parameter is not None and parameter.requires_grad
