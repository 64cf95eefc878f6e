"""A distribution over observation sequences whose state path is summed out exactly."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrohmm import ops
from pyrohmm.distributions import statewise
from pyrohmm.distributions.markov_chain import MarkovChain, normalize
from pyrohmm.ops.chain import finite, logsumexp, valid_steps


class HMMSample(NamedTuple):
    """Result of `HiddenMarkovModel.sample_with_states`: states (..., T), observations (..., T, *event)."""

    states: Tensor
    observations: Tensor


class HiddenMarkovModel(TorchDistribution):
    r"""A hidden Markov model with any emission distribution.

    .. math:: p(x_{1:T}) = \sum_{z_{1:T}} p(z_{1:T}) \prod_t p(x_t \mid z_t)

    The first observation is emitted from the initial state.

    Args:
        prior: the chain of states, batch shape (...).
        emission: any torch or Pyro distribution whose batch shape ends in the states: (..., K) when it is the same at
            each step, or (..., T, K). Event dimensions 0, 1 or 2.
        time_varying: whether the emission's batch shape is (..., T, K) (True; a T of 1 is shared by all steps) or
            (..., K) (False). By default it is (..., T, K) if it has at least two dimensions more than the batch shape
            of `prior`. Say it where an emission of batch shape (B, K) meets a prior without a batch shape.
        validate_args: as for every torch distribution; values are checked by the emission.

    Batch shape: that of the prior and the emission, broadcast. Event shape: (T, *emission.event_shape).
    Observations past the prior's `lengths` are never read (they may be NaN); samples hold zeros there.

    Raises:
        ValueError: the emission's batch shape does not fit the prior.

    Reference:
        Rabiner (1989), "A tutorial on hidden Markov models".

    Example:
        >>> prior = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), num_steps=4)
        >>> hmm = HiddenMarkovModel(prior, dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
        >>> x = torch.tensor([-1.1, -0.9, 1.0, 1.2])
        >>> hmm.posterior(x).viterbi().states
        tensor([0, 0, 1, 1])
        >>> hmm.log_prob(x)
        tensor(-4.0960)
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(
        self,
        prior: MarkovChain,
        emission: torch.distributions.Distribution,
        *,
        time_varying: bool | None = None,
        validate_args: bool | None = None,
    ):
        if not isinstance(prior, MarkovChain):
            raise TypeError(f"prior: expected a MarkovChain, got {type(prior).__name__}")
        if not isinstance(emission, torch.distributions.Distribution):
            raise TypeError(f"emission: expected a distribution, got {type(emission).__name__}")
        shape = emission.batch_shape
        if time_varying is None:
            time_varying = len(shape) > len(prior.batch_shape) + 1
        if len(shape) < 1 + time_varying or shape[-1] != prior.num_states:
            raise ValueError(
                f"emission: expected batch shape (..., {'T, ' if time_varying else ''}{prior.num_states}) "
                f"that ends in the prior's {prior.num_states} states, got {tuple(shape)}"
            )
        if time_varying and shape[-2] != 1:
            prior = _with_num_steps(prior, shape)
        try:
            batch_shape = torch.broadcast_shapes(prior.batch_shape, shape[: -1 - time_varying])
        except RuntimeError as error:
            raise ValueError(
                f"emission: expected a batch shape that broadcasts with the prior's {tuple(prior.batch_shape)}, got "
                f"{tuple(shape)}, read as (..., {'T, K' if time_varying else 'K'}); see the argument time_varying"
            ) from error
        self.prior, self.emission, self._time_varying = prior, emission, time_varying
        super().__init__(batch_shape, prior.event_shape + emission.event_shape, validate_args=validate_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prior}, {self.emission})"

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The emission's support at each step."""
        return constraints.independent(self.emission.support, 1)

    @property
    def num_steps(self) -> int:
        """Number of steps T.

        Raises:
            ValueError: neither the prior nor the emission tells it.
        """
        return self.prior.num_steps

    def observation_logits(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x_t | z_t = k), (..., T, K); zero where a step is missing or past the length.

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.

        Raises:
            TypeError: the mask is not boolean.
            ValueError: the value's or the mask's shape does not fit.
        """
        event_shape = self.emission.event_shape
        time = value.dim() - 1 - len(event_shape)
        if time < 0 or value.shape[time + 1 :] != event_shape:
            expected = ", ".join(map(str, ("...", "T", *event_shape)))
            raise ValueError(f"value: expected shape ({expected}), got {tuple(value.shape)}")
        num_steps = value.shape[time]
        self.prior._check_steps(num_steps, -1 - len(event_shape))
        read = None if self.prior.lengths is None else valid_steps(self.prior.lengths, num_steps)
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"mask: expected a bool tensor, got {mask.dtype}")
            if not mask.dim() or mask.shape[-1] != num_steps:
                raise ValueError(f"mask: expected shape (..., {num_steps}), got {tuple(mask.shape)}")
            read = mask if read is None else mask & read
        # One value for all states, with as many batch dimensions as it meets.
        value = value.unsqueeze(-1 - len(event_shape))
        batch_dims = max(time, len(self.batch_shape), 0 if read is None else read.dim() - 1)
        value = value[(None,) * (batch_dims - time)]
        if read is not None:
            read = read[(None,) * (batch_dims + 1 - read.dim())].unsqueeze(-1)
        if not self._time_varying:
            # Time goes to the left of the batch, where an emission without a time dimension broadcasts.
            value = value.movedim(batch_dims, 0)
            read = None if read is None else read.movedim(batch_dims, 0)
        logits = statewise.log_prob(self.emission, value, read)
        if read is not None:
            logits = torch.where(read, logits, 0.0)
        return logits if self._time_varying else logits.movedim(0, -2)

    def _conditioned(self, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.observation_logits(value, mask)
        initial, transition, unary = self.prior._potentials(logits.shape[-2])
        return initial, transition, logits + unary

    def log_prob(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-density of a sequence, the state path summed out, (...).

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.

        Raises:
            TypeError, ValueError: as `observation_logits`.
        """
        potentials, lengths = self._conditioned(value, mask), self.prior.lengths
        log_normalizer = self.prior._log_normalizer(potentials[2].shape[-2], lengths)
        return ops.log_partition(*potentials, lengths=lengths) - finite(log_normalizer)

    def posterior(self, value: Tensor, mask: Tensor | None = None) -> MarkovChain:
        """The law of the state path given a sequence, as a `MarkovChain`.

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.

        Raises:
            TypeError, ValueError: as `observation_logits`.
        """
        return MarkovChain(*self._conditioned(value, mask), lengths=self.prior.lengths)

    def filter(self, value: Tensor, mask: Tensor | None = None) -> ops.FilterResult:
        """log p(z_t | x_1..t), (..., T, K), and log p(x_t | x_<t), (..., T).

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.

        Raises:
            ValueError: the prior has unary potentials of its own (its filtered law then looks ahead).
            TypeError, ValueError: as `observation_logits`.
        """
        self._check_causal("filter")
        return ops.filter(*self._conditioned(value, mask), lengths=self.prior.lengths)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw sequences, (*sample_shape, *batch_shape, T, *event); zero past the length."""
        return self.sample_with_states(sample_shape).observations

    def sample_with_states(self, sample_shape: Sequence[int] = ()) -> HMMSample:
        """Draw state paths and the sequences that they emit.

        Args:
            sample_shape: shape of independent draws.

        Returns:
            `HMMSample`: states (*sample_shape, *batch_shape, T), -1 past the length, and observations
            (*sample_shape, *batch_shape, T, *event), zero there.
        """
        sample_shape, num_steps = torch.Size(sample_shape), self.num_steps
        with torch.no_grad():
            states = self.prior.expand(self.batch_shape).sample(sample_shape)
            # A draw from every state's emission, of which the path picks one a step.
            if self._time_varying:
                emission = self.emission.expand((*self.batch_shape, num_steps, self.prior.num_states))
                every = emission.sample(sample_shape)
            else:
                emission = self.emission.expand((*self.batch_shape, self.prior.num_states))
                every = emission.sample((num_steps, *sample_shape)).movedim(0, states.dim() - 1)
            event_shape = self.emission.event_shape
            wide = states[(..., None, *(None,) * len(event_shape))]
            index = wide.clamp(min=0).expand(*states.shape, 1, *event_shape)
            chosen = every.gather(states.dim(), index)
            return HMMSample(states, torch.where(wide >= 0, chosen, 0).squeeze(states.dim()))

    @property
    def mean(self) -> Tensor:
        r"""Mean of each step's marginal law, :math:`\sum_k p(z_t = k)\,\mathrm{E}[x_t \mid k]`, (..., T, *event).

        Zero past the length.
        """
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of each step's marginal law (elementwise), (..., T, *event); zero past the length."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        event_dim = len(self.emission.event_shape)
        states = -1 - event_dim
        weight = self.prior.marginals[(..., *(None,) * event_dim)]
        mean, variance = self.emission.mean, self.emission.variance
        if not self._time_varying:
            mean, variance = mean.unsqueeze(states - 1), variance.unsqueeze(states - 1)
        first = (weight * mean).sum(states)
        # Var = E[Var | z] + Var(E | z), with the second term centred before it is squared.
        spread = (weight * (mean - first.unsqueeze(states)).square()).sum(states)
        return first, (weight * variance).sum(states) + spread

    def forecast(
        self,
        value: Tensor,
        steps: int,
        *,
        mask: Tensor | None = None,
        transition_logits: Tensor | None = None,
        emission: torch.distributions.Distribution | None = None,
    ) -> "HiddenMarkovModel":
        """The predictive law of the next states and observations, given a sequence.

        The result is a `HiddenMarkovModel` over the future: `.prior.marginals` are the state probabilities of each
        future step, `.mean` and `.variance` the moments of each future observation, `.sample` draws futures and
        `.log_prob` scores one. Each sequence's future begins after its own length.

        Args:
            value: (..., T, *event), the past.
            steps: how many future steps, at least 1.
            mask: (..., T) bool, True where the step was observed.
            transition_logits: (..., steps, K, K), the transitions into each future step; needed where the prior's
                differ between steps. A sequence of length 0 starts from the initial law, whatever the first of them.
            emission: batch shape (..., steps, K), the future emissions; needed where the model's differ between steps.

        Raises:
            ValueError: steps < 1, a time-varying part without its future, or a prior with unary potentials.
            TypeError, ValueError: as `observation_logits`.

        Example:
            >>> prior = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
            >>> hmm = HiddenMarkovModel(prior, dist.Normal(torch.tensor([-1.0, 1.0]), 0.1))
            >>> hmm.forecast(torch.tensor([1.0, 1.1]), 2).mean
            tensor([0.7616, 0.5800])
        """
        self._check_causal("forecast")
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        if transition_logits is None:
            into_first = later = self.prior.transition_logits
            if later.shape[-3] != 1:
                raise ValueError("transition_logits: expected (..., steps, K, K), since they differ between steps")
        else:
            if transition_logits.dim() < 3 or transition_logits.shape[-3] != steps:
                raise ValueError(
                    f"transition_logits: expected (..., {steps}, K, K), got {tuple(transition_logits.shape)}"
                )
            into_first, later = normalize(transition_logits[..., :1, :, :]), transition_logits[..., 1:, :, :]
        time_varying = self._time_varying
        if emission is not None:
            time_varying = True
        elif time_varying and self.emission.batch_shape[-2] != 1:
            raise ValueError("emission: expected batch shape (..., steps, K), since it differs between steps")
        filtered = self.filter(value, mask).log_probs
        lengths = self.prior.lengths
        if lengths is None:
            lengths = torch.full((), filtered.shape[-2], device=filtered.device)
        # The last valid row of each; the one put in front is only there for length 0.
        rows = torch.nn.functional.pad(filtered, (0, 0, 1, 0))
        index = lengths.expand(rows.shape[:-2])[..., None, None].expand(*rows.shape[:-2], 1, rows.shape[-1])
        last = rows.gather(-2, index)
        following = logsumexp(last.mT + into_first.squeeze(-3), -2)
        following = torch.where((lengths == 0).unsqueeze(-1), self.prior.initial_logits, following)
        return HiddenMarkovModel(
            MarkovChain(following, later, num_steps=steps),
            self.emission if emission is None else emission,
            time_varying=time_varying,
        )

    def expand(self, batch_shape: Sequence[int], _instance: "HiddenMarkovModel | None" = None) -> "HiddenMarkovModel":
        """The same law with a larger batch shape (views, no copies)."""
        new = cast(HiddenMarkovModel, self._get_checked_instance(HiddenMarkovModel, _instance))
        prior = self.prior.expand(self.batch_shape).expand(batch_shape)
        HiddenMarkovModel.__init__(
            new, prior, self.emission, time_varying=self._time_varying, validate_args=self._validate_args
        )
        return new

    @classmethod
    def from_discrete_hmm(cls, hmm: dist.DiscreteHMM) -> "HiddenMarkovModel":
        """From Pyro's convention, where a transition comes before the first observation.

        Pyro's initial state emits nothing; its first transition is folded into the initial law here.

        Args:
            hmm: a `pyro.distributions.DiscreteHMM`.

        Returns:
            The same distribution over observations.

        Example:
            >>> emission = dist.Normal(torch.tensor([0.0, 3.0]), 1.0)
            >>> theirs = dist.DiscreteHMM(torch.zeros(2), torch.eye(2).unsqueeze(0), emission, duration=5)
            >>> x = torch.tensor([0.0, 0.5, 2.0, 3.0, 4.0])
            >>> torch.allclose(HiddenMarkovModel.from_discrete_hmm(theirs).log_prob(x), theirs.log_prob(x))
            True
        """
        transition = hmm.transition_logits
        if transition.dim() == 2:
            transition = transition.unsqueeze(0)
        first = logsumexp(hmm.initial_logits.unsqueeze(-1) + transition[..., 0, :, :], -2)
        later = transition if transition.shape[-3] == 1 else transition[..., 1:, :, :]
        prior = MarkovChain(first, later, num_steps=hmm.duration)
        emission = hmm.observation_dist
        return cls(prior, emission, time_varying=len(emission.batch_shape) > 1)

    def to_discrete_hmm(self) -> dist.DiscreteHMM:
        """To Pyro's convention: a `DiscreteHMM` with the same distribution over observations.

        Its first transition has this model's initial law in each row, so that the silent state before it does not
        matter; with shared transitions the matrix is repeated for the later steps.

        Raises:
            ValueError: the model has ragged lengths, an open number of steps, a prior with unary potentials, or an
                emission of batch shape (B, K), which `DiscreteHMM` cannot hold.
        """
        self._check_causal("to_discrete_hmm")
        if self.prior.lengths is not None:
            raise ValueError("to_discrete_hmm: expected a model without lengths; DiscreteHMM has none")
        emission, num_steps, num_states = self.emission, self.num_steps, self.prior.num_states
        if not self._time_varying:
            if len(emission.batch_shape) > 1:
                raise ValueError(
                    "to_discrete_hmm: expected an emission of batch shape (K,) or (..., T, K), "
                    f"got {tuple(emission.batch_shape)}"
                )
            emission = emission.expand((num_steps, num_states))
        initial, later = self.prior.initial_logits, self.prior.transition_logits
        shape = torch.broadcast_shapes(initial.shape[:-1], later.shape[:-3])
        first = initial[..., None, None, :].expand(*shape, 1, num_states, num_states)
        later = later.expand(*shape, num_steps - 1, num_states, num_states)
        return dist.DiscreteHMM(torch.zeros_like(initial), torch.cat([first, later], -3), emission, duration=num_steps)

    def _check_causal(self, method: str) -> None:
        if self.prior.observation_logits is not None:
            raise ValueError(f"{method}: expected a prior without observation_logits; they look ahead in time")


def _with_num_steps(prior: MarkovChain, shape: torch.Size) -> MarkovChain:
    """The prior with the number of steps that an emission of batch shape (..., T, K) tells."""
    num_steps = shape[-2]
    if prior._num_steps is None:
        return MarkovChain(prior.initial_logits, prior.transition_logits, lengths=prior.lengths, num_steps=num_steps)
    if prior._num_steps != num_steps:
        raise ValueError(
            f"emission: expected batch shape (..., {prior._num_steps}, {prior.num_states}), (..., T, K) for a prior of "
            f"batch shape {tuple(prior.batch_shape)}, got {tuple(shape)}; see the argument time_varying"
        )
    return prior
