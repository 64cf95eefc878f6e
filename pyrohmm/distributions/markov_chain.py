"""A distribution over the state paths of a (possibly conditioned) Markov chain."""

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from pyrohmm import ops
from pyrohmm.ops.chain import as_chain, finite, logsumexp, valid_steps
from pyrohmm.ops.forward_backward.api import expected_potential


class _Paths(constraints.Constraint):
    """State paths: integers 0..K-1 at every step within the length; anything beyond it."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_states: int, lengths: Tensor | None):
        self.num_states = num_states
        self.lengths = lengths

    def check(self, value: Tensor) -> Tensor:
        allowed = (value >= 0) & (value < self.num_states) & (value == value.floor())
        if self.lengths is not None:
            allowed = allowed | ~valid_steps(self.lengths, value.shape[-1])
        return allowed.all(-1)


class MarkovChain(TorchDistribution):
    r"""The law of a path z_1..z_T of a discrete Markov chain, optionally reweighted by unary potentials.

    .. math:: p(z_{1:T}) = \frac1Z\; p(z_1) \prod_{t<T} p(z_{t+1} \mid z_t) \prod_t e^{o_{t, z_t}}

    Initial and transition logits are normalised, as `Categorical` does; `observation_logits` are free potentials, so
    that the posterior of a hidden Markov model, or any linear-chain conditional random field, is a `MarkovChain` too.

    Args:
        initial_logits: (..., K), of p(z_1).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K), of p(z_{t+1} = j | z_t = i), [from, to].
        observation_logits: (..., T, K), optional.
        lengths: (...), int64, valid steps of each sequence; all T when None.
        num_steps: T, where no argument's shape tells it (shared transitions, no observation logits). When it is left
            open, `log_prob` takes T from the value, and methods that need T raise; the event shape is then (1,), as
            for `pyro.distributions.DiscreteHMM` without a duration.
        validate_args: as for every torch distribution.

    Batch shape: that of the arguments, broadcast. Event shape: (T,). Values: int64, -1 past the length.

    Raises:
        ValueError: shapes that do not fit, NaN or +inf potentials, lengths outside 0..T.

    Reference:
        Rabiner (1989); for the conditioned chain, Lafferty, McCallum and Pereira (2001).

    Example:
        >>> chain = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), num_steps=3)
        >>> chain.log_prob(torch.tensor([0, 0, 1])).exp()
        tensor(0.0525)
        >>> chain.viterbi().states, chain.stationary_distribution()
        (tensor([0, 0, 0]), tensor([0.5000, 0.5000]))
    """

    arg_constraints = {  # noqa: RUF012 (the name and form torch prescribes)
        "initial_logits": constraints.independent(constraints.real, 1),
        "transition_logits": constraints.independent(constraints.real, 2),
    }
    has_enumerate_support = False  # K^T paths: never listed

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_logits: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        num_steps: int | None = None,
        validate_args: bool | None = None,
    ):
        if transition_logits.dim() == 2:
            transition_logits = transition_logits.unsqueeze(0)
        num_steps = _resolve_num_steps(transition_logits, observation_logits, lengths, num_steps)
        if observation_logits is None:
            shape = (max(1, num_steps or 1), initial_logits.shape[-1])
            probe = initial_logits.new_zeros(()).expand(shape)
        else:
            probe = observation_logits
        checked = as_chain(initial_logits, transition_logits, probe, lengths)
        self.initial_logits = _normalize(initial_logits)
        self.transition_logits = _normalize(transition_logits)
        self.observation_logits = observation_logits
        self.lengths = lengths
        self._num_steps = num_steps
        event_shape = torch.Size((1 if num_steps is None else num_steps,))
        super().__init__(checked.batch_shape, event_shape, validate_args=validate_args)

    @classmethod
    def from_potentials(
        cls,
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_logits: Tensor,
        *,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> "MarkovChain":
        r"""The Gibbs law of plain potentials, none of them normalised: p(z) proportional to their exponentiated sum.

        The normalisers of the transition rows move into the unary potentials: with r_t(i) = logsumexp_j A_t,ij the
        law keeps the same path probabilities with A_t,ij - r_t(i) and o_t(i) + r_t(i).

        Args:
            initial_logits: (..., K).
            transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K).
            observation_logits: (..., T, K).
            lengths: (...), int64; all T when None.
            validate_args: as for every torch distribution.

        Example:
            >>> chain = MarkovChain.from_potentials(torch.zeros(2), torch.ones(2, 2), torch.zeros(3, 2))
            >>> chain.log_prob(torch.tensor([0, 1, 1])).exp()
            tensor(0.1250)
        """
        chain = as_chain(initial_logits, transition_logits, observation_logits, lengths)
        if chain.num_steps > 1:
            rows = logsumexp(chain.transition, -1)  # (..., 1 or T-1, K)
            # The step before t + 1 carries r_t, if step t + 1 exists.
            leaves = chain.valid[..., 1:].unsqueeze(-1)
            moved = torch.where(leaves, rows, 0.0)
            observation_logits = chain.observation + torch.nn.functional.pad(moved, (0, 0, 0, 1))
            # A forbidden row is forbidden through its unary potential; the row itself must still be a law.
            dead = (rows == -torch.inf).unsqueeze(-1)
            transition_logits = torch.where(dead, 0.0, chain.transition)
        return cls(
            initial_logits, transition_logits, observation_logits, lengths=lengths, validate_args=validate_args
        )

    @property
    def num_states(self) -> int:
        """Number of states K."""
        return self.initial_logits.shape[-1]

    @property
    def num_steps(self) -> int:
        """Number of steps T.

        Raises:
            ValueError: the chain was built without one.
        """
        if self._num_steps is None:
            raise ValueError("num_steps: expected a number of steps at construction (num_steps=T), got None")
        return self._num_steps

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """State paths: integers 0..K-1 within the length."""
        return _Paths(self.num_states, self.lengths)

    @property
    def potentials(self) -> tuple[Tensor, Tensor, Tensor]:
        """Initial, transition and observation log-potentials, as `pyrohmm.ops` takes them."""
        return self._potentials(self.num_steps)

    def _potentials(self, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        observation = self.observation_logits
        if observation is None:
            observation = self.initial_logits.new_zeros(num_steps, self.num_states)
        return self.initial_logits, self.transition_logits, observation

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of a path, (...).

        Args:
            value: (..., T), integers; entries past the length are not read.

        Raises:
            ValueError: a state outside 0..K-1, or another number of steps.
        """
        num_steps = value.shape[-1]
        if self._num_steps not in (None, num_steps):
            raise ValueError(f"value: expected {self._num_steps} steps in the last dimension, got {num_steps}")
        if self._validate_args and not self.support.check(value).all():
            raise ValueError(f"value: expected states in 0..{self.num_states - 1}, got {value}")
        initial, transition, _ = self._potentials(num_steps)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        states = value.expand(*shape, num_steps).long().clamp(0, self.num_states - 1)
        valid = None if self.lengths is None else valid_steps(self.lengths, num_steps)

        def total(terms: Tensor, first: int) -> Tensor:
            if valid is not None:
                terms = torch.where(valid[..., first:], terms, 0.0)
            return terms.sum(-1)

        log_prob = initial.new_zeros(shape)
        if num_steps > 0:
            start = initial.expand(*shape, -1).gather(-1, states[..., :1])
            log_prob = total(start, 0) if valid is None else torch.where(valid[..., :1], start, 0.0).sum(-1)
        if num_steps > 1:
            pairs = states[..., :-1] * self.num_states + states[..., 1:]
            matrices = transition.flatten(-2).expand(*shape, num_steps - 1, -1)
            log_prob = log_prob + total(matrices.gather(-1, pairs.unsqueeze(-1)).squeeze(-1), 1)
        if self.observation_logits is not None:
            unary = self.observation_logits.expand(*shape, -1, -1)
            log_prob = log_prob + total(unary.gather(-1, states.unsqueeze(-1)).squeeze(-1), 0)
            log_z = self.log_normalizer
            log_prob = torch.where(log_z == -torch.inf, -torch.inf, log_prob - finite(log_z))
        return log_prob

    @property
    def log_normalizer(self) -> Tensor:
        """log Z of the potentials, (*batch_shape); zero for a chain without observation logits."""
        if self.observation_logits is None:
            return self.initial_logits.new_zeros(self.batch_shape)
        return ops.log_partition(*self.potentials, lengths=self.lengths).expand(self.batch_shape)

    def sample(self, sample_shape: torch.Size = torch.Size(), generator: torch.Generator | None = None) -> Tensor:
        """Draw paths, (*sample_shape, *batch_shape, T) int64, -1 past the length.

        Args:
            sample_shape: shape of independent draws.
            generator: source of the random numbers; torch's global one when None.
        """
        initial, transition, observation = self.potentials
        initial = initial.expand(*self.batch_shape, -1)
        return ops.sample(
            initial,
            transition,
            observation,
            lengths=self.lengths,
            sample_shape=tuple(sample_shape),
            generator=generator,
        )

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Not available: there are K^T paths.

        Raises:
            NotImplementedError: always; `pyrohmm.testing` lists the paths of small chains.
        """
        raise NotImplementedError("a MarkovChain has K^T paths; use its exact methods instead of enumeration")

    def viterbi(self) -> ops.ViterbiResult:
        """Most probable path: states (*batch_shape, T) and its log-probability (*batch_shape)."""
        states, score = ops.viterbi(*self.potentials, lengths=self.lengths)
        return ops.ViterbiResult(states.expand(self.batch_shape + self.event_shape), score - finite(self.log_normalizer))

    def k_best(self, k: int) -> ops.KBestResult:
        """The k most probable paths (*batch_shape, k, T) and their log-probabilities (*batch_shape, k)."""
        states, score = ops.k_best(*self.potentials, k, lengths=self.lengths)
        shape = (*self.batch_shape, k)
        log_prob = (score - finite(self.log_normalizer).unsqueeze(-1)).expand(shape)
        return ops.KBestResult(states.expand(*shape, self.num_steps), log_prob)

    @property
    def mode(self) -> Tensor:
        """Most probable path, (*batch_shape, T)."""
        return self.viterbi().states

    @property
    def marginals(self) -> Tensor:
        """p(z_t = k), (*batch_shape, T, K); zero past the length."""
        result = ops.smooth(*self.potentials, lengths=self.lengths).state_marginals
        return result.expand(*self.batch_shape, -1, -1)

    @property
    def transition_marginals(self) -> Tensor:
        """p(z_t = i, z_{t+1} = j), (*batch_shape, T-1, K, K); zero past the length."""
        result = ops.smooth(*self.potentials, lengths=self.lengths, transitions="each").transition_marginals
        return result.expand(*self.batch_shape, -1, -1, -1)

    def entropy(self) -> Tensor:
        """Entropy of the law of whole paths, (*batch_shape), nats."""
        return ops.entropy(*self.potentials, lengths=self.lengths).expand(self.batch_shape)

    def expand(self, batch_shape: torch.Size, _instance: "MarkovChain | None" = None) -> "MarkovChain":
        """The same law with a larger batch shape (views, no copies)."""
        new = self._get_checked_instance(MarkovChain, _instance)
        batch_shape = torch.Size(batch_shape)
        new.initial_logits = self.initial_logits.expand(*batch_shape, -1)
        new.transition_logits = self.transition_logits
        new.observation_logits = self.observation_logits
        new.lengths = None if self.lengths is None else self.lengths.expand(batch_shape)
        new._num_steps = self._num_steps
        super(MarkovChain, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def stationary_distribution(self) -> Tensor:
        r"""The law left unchanged by one transition: :math:`\pi = \pi A`, :math:`\sum_i \pi_i = 1`.

        Returns:
            (..., K), probabilities, differentiable.

        Raises:
            ValueError: transitions differ between steps, or the chain has several recurrent classes (then the
                stationary distribution is not unique).

        Example:
            >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
            >>> MarkovChain(torch.zeros(2), probs.log(), num_steps=2).stationary_distribution()
            tensor([0.8333, 0.1667])
        """
        matrix = self._shared_matrix("stationary_distribution")
        # Replace one of the K dependent equations pi (A - I) = 0 by the normalisation.
        equations = (matrix - torch.eye(self.num_states, dtype=matrix.dtype, device=matrix.device)).mT
        singular = torch.linalg.svdvals(equations.detach())
        if self.num_states > 1:
            tolerance = singular[..., 0] * self.num_states * torch.finfo(matrix.dtype).eps
            if (singular[..., -2] <= tolerance).any():
                raise ValueError(
                    "transition_logits: expected one recurrent class of states; "
                    "with several the stationary distribution is not unique"
                )
        equations = torch.cat([equations[..., :-1, :], torch.ones_like(equations[..., -1:, :])], -2)
        target = torch.zeros_like(equations[..., 0])
        target[..., -1] = 1.0
        return torch.linalg.solve(equations, target).clamp(min=0)

    def power(self, n: int) -> Tensor:
        """Probabilities of n transitions in a row, the matrix power A^n.

        Args:
            n: number of transitions, at least 0.

        Returns:
            (..., K, K), [from, to].

        Raises:
            ValueError: transitions differ between steps, or n is negative.
        """
        if n < 0:
            raise ValueError(f"n: expected a number of transitions >= 0, got {n}")
        return torch.linalg.matrix_power(self._shared_matrix("power"), n)

    def _shared_matrix(self, method: str) -> Tensor:
        if self.transition_logits.shape[-3] != 1:
            raise ValueError(
                f"{method}: expected transitions shared over time, got {self.transition_logits.shape[-3]} of them"
            )
        return self.transition_logits.squeeze(-3).exp()


@register_kl(MarkovChain, MarkovChain)
def _kl_markov_chain(q: MarkovChain, p: MarkovChain) -> Tensor:
    """KL(q || p) = E_q[log q - log p], exact, from q's marginals."""
    if (q.num_states, q.num_steps) != (p.num_states, p.num_steps):
        raise ValueError(
            f"kl_divergence: expected chains of the same states and steps, "
            f"got K={q.num_states}, T={q.num_steps} and K={p.num_states}, T={p.num_steps}"
        )
    q_lengths, p_lengths = (
        torch.tensor(c.num_steps, device=c.initial_logits.device) if c.lengths is None else c.lengths for c in (q, p)
    )
    if (q_lengths != p_lengths).any():
        raise ValueError("kl_divergence: expected chains of the same lengths")
    q_chain, p_chain = (as_chain(*c.potentials, lengths=c.lengths) for c in (q, p))
    each = q_chain.transition.shape[-3] > 1 or p_chain.transition.shape[-3] > 1
    log_z, states, transitions = ops.smooth(*q.potentials, lengths=q.lengths, transitions="each" if each else "sum")
    if not each:
        transitions = transitions.unsqueeze(-3)
    energies = [expected_potential(chain, states, transitions) for chain in (q_chain, p_chain)]
    return (energies[0] - log_z) - (energies[1] - p.log_normalizer)


def _normalize(logits: Tensor) -> Tensor:
    """Rows that sum to one in probability; a row of -inf stays one."""
    return logits - finite(logsumexp(logits, -1)).unsqueeze(-1)


def _resolve_num_steps(
    transition: Tensor, observation: Tensor | None, lengths: Tensor | None, num_steps: int | None
) -> int | None:
    told = {}
    if num_steps is not None:
        told["num_steps"] = num_steps
    if observation is not None:
        told["observation_logits"] = observation.shape[-2]
    if transition.shape[-3] > 1:
        told["transition_logits"] = transition.shape[-3] + 1
    if len(set(told.values())) > 1:
        raise ValueError(f"arguments disagree on the number of steps: {told}")
    if told:
        return next(iter(told.values()))
    return None if lengths is None else int(lengths.max())
