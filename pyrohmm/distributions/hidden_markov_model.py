"""A distribution over observation sequences whose state path is summed out exactly."""

from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyrohmm import ops
from pyrohmm.distributions.markov_chain import MarkovChain
from pyrohmm.distributions.padding import fill_unread
from pyrohmm.ops.chain import logsumexp, valid_steps


class HMMSample(NamedTuple):
    """A draw of `HiddenMarkovModel.sample_with_states`: states (..., T), -1 past the length; observations (..., T, *event)."""

    states: Tensor
    observations: Tensor


class HiddenMarkovModel(TorchDistribution):
    r"""A hidden Markov model with any emission distribution.

    .. math:: p(x_{1:T}) = \sum_{z_{1:T}} p(z_{1:T}) \prod_t p(x_t \mid z_t)

    The first observation is emitted from the initial state.

    Args:
        prior: the chain of states, batch shape (...).
        emission: any torch or Pyro distribution whose batch shape ends in the states: (..., K) when it is the same at
            each step, or (..., T, K). With n batch dimensions in `prior`, up to n + 1 batch dimensions are read as
            (..., K) and n + 2 as (..., T, K). Event dimensions 0, 1 or 2.
        validate_args: as for every torch distribution.

    Batch shape: that of the prior and the emission, broadcast. Event shape: (T, *emission.event_shape).
    Observations past the prior's `lengths` are never read (they may be NaN); samples hold zeros there.

    Raises:
        ValueError: the emission's batch shape does not fit the prior.

    Example:
        >>> prior = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), num_steps=4)
        >>> hmm = HiddenMarkovModel(prior, dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
        >>> x = torch.tensor([-1.1, -0.9, 1.0, 1.2])
        >>> hmm.posterior(x).viterbi().states
        tensor([0, 0, 1, 1])
        >>> hmm.log_prob(x)
        tensor(-4.0060)
    """

    arg_constraints = {}  # noqa: RUF012 (the name and form torch prescribes)

    def __init__(
        self, prior: MarkovChain, emission: torch.distributions.Distribution, validate_args: bool | None = None
    ):
        self._build(prior, emission, len(emission.batch_shape) > len(prior.batch_shape) + 1, validate_args)

    def _build(
        self,
        prior: MarkovChain,
        emission: torch.distributions.Distribution,
        time_varying: bool,
        validate_args: bool | None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        self.prior, self.emission, self._time_varying = prior, emission, time_varying
        shape = emission.batch_shape
        if not shape or shape[-1] != prior.num_states:
            raise ValueError(
                f"emission: expected a batch shape that ends in the {prior.num_states} states, got {tuple(shape)}"
            )
        num_steps = prior._num_steps
        if time_varying:
            if num_steps is not None and shape[-2] not in (1, num_steps):
                raise ValueError(
                    f"emission: expected batch shape (..., {num_steps}, {prior.num_states}) "
                    f"(T, K) for a prior of batch shape {tuple(prior.batch_shape)}, got {tuple(shape)}"
                )
            num_steps = shape[-2] if num_steps is None else num_steps
        self._num_steps = num_steps
        if batch_shape is None:
            batch_shape = torch.broadcast_shapes(prior.batch_shape, shape[: -2 if time_varying else -1])
        event_shape = torch.Size((1 if num_steps is None else num_steps,)) + emission.event_shape
        TorchDistribution.__init__(self, batch_shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> dist.constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The emission's support at each step."""
        return dist.constraints.independent(self.emission.support, 1)

    @property
    def num_steps(self) -> int:
        """Number of steps T.

        Raises:
            ValueError: neither the prior nor the emission tells it.
        """
        return self.prior.num_steps if self._num_steps is None else self._num_steps

    def observation_logits(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x_t | z_t = k), (..., T, K); zero where a step is missing or past the length.

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.

        Raises:
            ValueError: the value's shape does not fit.
        """
        event_dim = len(self.emission.event_shape)
        time = value.dim() - 1 - event_dim
        if time < 0 or value.shape[time + 1 :] != self.emission.event_shape:
            raise ValueError(
                f"value: expected shape (..., T, *{tuple(self.emission.event_shape)}), got {tuple(value.shape)}"
            )
        num_steps = value.shape[time]
        if self._num_steps not in (None, num_steps):
            raise ValueError(f"value: expected {self._num_steps} steps in dimension {-1 - event_dim}, got {num_steps}")
        read = None if self.prior.lengths is None else valid_steps(self.prior.lengths, num_steps)
        if mask is not None:
            read = mask if read is None else mask & read
        if read is not None:
            value = fill_unread(value, read, self.emission)
            time = value.dim() - 1 - event_dim
        value = value.unsqueeze(time + 1)
        if self._time_varying:
            logits = self.emission.log_prob(value)
        else:
            # Time goes to the left of the batch, where an emission without a time dimension broadcasts.
            logits = self.emission.log_prob(value.movedim(time, 0)).movedim(0, -2)
        return logits if read is None else torch.where(read.unsqueeze(-1), logits, 0.0)

    def _conditioned(self, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.observation_logits(value, mask)
        initial, transition, unary = self.prior._potentials(logits.shape[-2])
        return initial.expand(*self.prior.batch_shape, -1), transition, logits + unary

    def log_prob(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-density of a sequence, the state path summed out, (...).

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.
        """
        log_z = ops.log_partition(*self._conditioned(value, mask), lengths=self.prior.lengths)
        log_prob = log_z - self.prior.log_normalizer
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def posterior(self, value: Tensor, mask: Tensor | None = None) -> MarkovChain:
        """The law of the state path given a sequence, as a `MarkovChain`.

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.
        """
        return MarkovChain(*self._conditioned(value, mask), lengths=self.prior.lengths)

    def filter(self, value: Tensor, mask: Tensor | None = None) -> ops.FilterResult:
        """log p(z_t | x_1..t), (..., T, K), and log p(x_t | x_<t), (..., T).

        Args:
            value: (..., T, *event).
            mask: (..., T) bool, True where the step was observed.

        Raises:
            ValueError: the prior has unary potentials of its own (its filtered law then looks ahead).
        """
        self._check_causal("filter")
        return ops.filter(*self._conditioned(value, mask), lengths=self.prior.lengths)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw sequences, (*sample_shape, *batch_shape, T, *event); zero past the length."""
        return self.sample_with_states(sample_shape).observations

    def sample_with_states(self, sample_shape: torch.Size = torch.Size()) -> HMMSample:
        """Draw state paths and the sequences that they emit.

        Args:
            sample_shape: shape of independent draws.

        Returns:
            `HMMSample`: states (*sample_shape, *batch_shape, T), observations (*sample_shape, *batch_shape, T, *event).
        """
        sample_shape, num_steps = torch.Size(sample_shape), self.num_steps
        chain = self.prior if self.prior._num_steps is not None else self._timed_prior(num_steps)
        num_states, event_dim = chain.num_states, len(self.emission.event_shape)
        with torch.no_grad():
            states = chain.expand(self.batch_shape).sample(sample_shape)
            if self._time_varying:
                every = self.emission.expand(self.batch_shape + (num_steps, num_states)).sample(sample_shape)
            else:
                every = self.emission.expand(self.batch_shape + (num_states,)).sample((*sample_shape, num_steps))
                every = every.movedim(len(sample_shape), len(sample_shape) + len(self.batch_shape))
            index = states.clamp(min=0)[(..., None, *(None,) * event_dim)]
            index = index.expand(*states.shape, 1, *self.emission.event_shape)
            chosen = every.gather(states.dim(), index).squeeze(states.dim())
            alive = (states >= 0)[(..., *(None,) * event_dim)]
            return HMMSample(states, torch.where(alive, chosen, torch.zeros_like(chosen)))

    @property
    def mean(self) -> Tensor:
        r"""Mean of each step's marginal law, :math:`\sum_k p(z_t = k)\,\mathrm{E}[x_t \mid k]`, (..., T, *event)."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of each step's marginal law (elementwise), (..., T, *event)."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        chain = self.prior if self.prior._num_steps is not None else self._timed_prior(self.num_steps)
        event_dim = len(self.emission.event_shape)
        weight = chain.marginals[(..., *(None,) * event_dim)]
        mean, variance = self.emission.mean, self.emission.variance
        if not self._time_varying:
            mean, variance = mean.unsqueeze(-2 - event_dim), variance.unsqueeze(-2 - event_dim)
        states = -1 - event_dim
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
                differ between steps.
            emission: batch shape (..., steps, K), the future emissions; needed where the model's differ between steps.

        Raises:
            ValueError: steps < 1, a time-varying part without its future, or a prior with unary potentials.

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
            if self.prior.transition_logits.shape[-3] != 1:
                raise ValueError("transition_logits: expected (..., steps, K, K), since they differ between steps")
            onward = later = self.prior.transition_logits
        else:
            future = torch.log_softmax(transition_logits, -1)
            if future.dim() < 3 or future.shape[-3] != steps:
                raise ValueError(
                    f"transition_logits: expected (..., {steps}, K, K), got {tuple(transition_logits.shape)}"
                )
            onward, later = future[..., :1, :, :], future[..., 1:, :, :]
        if emission is None:
            if self._time_varying:
                raise ValueError("emission: expected batch shape (..., steps, K), since it differs between steps")
            emission, time_varying = self.emission, False
        else:
            time_varying = True
        filtered = self.filter(value, mask).log_probs
        num_steps = filtered.shape[-2]
        lengths = self.prior.lengths
        if lengths is None:
            last = filtered[..., -1, :]
        else:
            index = (lengths - 1).clamp(min=0).expand(filtered.shape[:-2])[..., None, None]
            last = filtered.gather(-2, index.expand(*filtered.shape[:-2], 1, filtered.shape[-1])).squeeze(-2)
        following = logsumexp(last.unsqueeze(-1) + onward.squeeze(-3), -2)
        empty = torch.tensor(num_steps == 0) if lengths is None else lengths == 0
        following = torch.where(empty.unsqueeze(-1), self.prior.initial_logits, following)
        future_prior = MarkovChain(following, later, num_steps=steps)
        new = HiddenMarkovModel.__new__(HiddenMarkovModel)
        new._build(future_prior, emission, time_varying, None)
        return new

    def expand(self, batch_shape: torch.Size, _instance: "HiddenMarkovModel | None" = None) -> "HiddenMarkovModel":
        """The same law with a larger batch shape (views, no copies)."""
        new = self._get_checked_instance(HiddenMarkovModel, _instance)
        batch_shape = torch.Size(batch_shape)
        new._build(self.prior.expand(batch_shape), self.emission, self._time_varying, False, batch_shape)
        new._validate_args = self._validate_args
        return new

    @classmethod
    def from_discrete_hmm(cls, hmm: dist.DiscreteHMM) -> "HiddenMarkovModel":
        """From Pyro's convention, where a transition comes before the first observation.

        Pyro's initial state x_0 emits nothing; its first transition is folded into the initial law here.

        Args:
            hmm: a `pyro.distributions.DiscreteHMM`.

        Returns:
            The same distribution over observations.

        Example:
            >>> pyro_hmm = dist.DiscreteHMM(torch.zeros(2), torch.eye(2), dist.Normal(torch.tensor([0.0, 3.0]), 1.0), duration=5)
            >>> x = pyro_hmm.sample()
            >>> torch.allclose(HiddenMarkovModel.from_discrete_hmm(pyro_hmm).log_prob(x), pyro_hmm.log_prob(x))
            True
        """
        initial, transition = torch.log_softmax(hmm.initial_logits, -1), torch.log_softmax(hmm.transition_logits, -1)
        emission = hmm.observation_dist
        first = logsumexp(initial.unsqueeze(-1) + transition[..., 0, :, :], -2)
        later = transition if transition.shape[-3] == 1 else transition[..., 1:, :, :]
        num_steps = hmm.duration
        if num_steps is None and max(transition.shape[-3], emission.batch_shape[-2]) > 1:
            num_steps = max(transition.shape[-3], emission.batch_shape[-2])
        new = cls.__new__(cls)
        new._build(MarkovChain(first, later, num_steps=num_steps), emission, True, None, hmm.batch_shape)
        if num_steps is None:
            new._num_steps = None
        return new

    def to_discrete_hmm(self) -> dist.DiscreteHMM:
        """To Pyro's convention: a `DiscreteHMM` with the same distribution over observations.

        Its first transition has this model's initial law in each row, so that the silent state before it does not
        matter; with shared transitions the matrix is repeated for the later steps.

        Raises:
            ValueError: the model has ragged lengths or a prior with unary potentials, which `DiscreteHMM` cannot hold.
        """
        self._check_causal("to_discrete_hmm")
        if self.prior.lengths is not None:
            raise ValueError("to_discrete_hmm: expected a model without lengths; DiscreteHMM has none")
        num_steps, num_states = self.num_steps, self.prior.num_states
        initial = self.prior.initial_logits
        later = self.prior.transition_logits
        shape = torch.broadcast_shapes(initial.shape[:-1], later.shape[:-3])
        first = initial[..., None, None, :].expand(*shape, 1, num_states, num_states)
        later = later.expand(*shape, num_steps - 1, num_states, num_states)
        emission = self.emission
        if not self._time_varying:
            batch = emission.batch_shape[:-1]
            if batch:
                raise ValueError(
                    "to_discrete_hmm: expected an emission of batch shape (K,) or (..., T, K), "
                    f"got {tuple(emission.batch_shape)}"
                )
            emission = emission.expand((num_steps, num_states))
        return dist.DiscreteHMM(
            torch.zeros(num_states, dtype=initial.dtype, device=initial.device),
            torch.cat([first, later], -3),
            emission,
            duration=num_steps,
        )

    def _check_causal(self, method: str) -> None:
        if self.prior.observation_logits is not None:
            raise ValueError(f"{method}: expected a prior without observation_logits; they look ahead in time")

    def _timed_prior(self, num_steps: int) -> MarkovChain:
        """The prior of an open number of steps, with the number that the emission tells."""
        prior = self.prior
        return MarkovChain(prior.initial_logits, prior.transition_logits, num_steps=num_steps)
