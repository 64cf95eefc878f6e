"""A distribution over the state paths of a (possibly conditioned) Markov chain."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from pyrohmm import ops
from pyrohmm.distributions.padding import waits
from pyrohmm.ops.chain import as_chain, finite, logsumexp, valid_steps
from pyrohmm.ops.forward_backward.api import expected, expected_potential


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
        lengths: (...), int64, valid steps of each sequence; all T when None. Entries beyond are never read.
        num_steps: T, where no argument's shape tells it (shared transitions, no observation logits). When it is left
            open, `log_prob` takes T from the value; all else takes the longest of `lengths`, or raises without them.
            The event shape of an open chain without lengths is (1,), as for `pyro.distributions.DiscreteHMM`.
        validate_args: whether `log_prob` checks its value; by default as torch and Pyro are set.

    A row of -inf is no law. The chain is then the law of the paths that never leave by such a row, which is what
    the formula says, with Z their total probability.

    Batch shape: that of the arguments, broadcast. Event shape: (T,). Values: int64, -1 past the length.

    Raises:
        TypeError: an argument is no tensor of the right kind.
        ValueError: shapes that do not fit, or (where torch's and Pyro's validation is on) NaN or +inf potentials
            that are read, lengths outside 0..T.

    Reference:
        Rabiner (1989); for the conditioned chain, Lafferty, McCallum and Pereira (2001).

    Example:
        >>> chain = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), num_steps=3)
        >>> chain.log_prob(torch.tensor([0, 0, 1])).exp()
        tensor(0.0525)
        >>> chain.viterbi().states, chain.stationary_distribution()
        (tensor([0, 0, 0]), tensor([0.5000, 0.5000]))
    """

    # Real; but the check is left to `as_chain`, which knows the entries that count.
    arg_constraints = {  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        "initial_logits": constraints.dependent(event_dim=1),  # pyright: ignore[reportArgumentType]
        "transition_logits": constraints.dependent(event_dim=2),  # pyright: ignore[reportArgumentType]
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
        required = {"initial_logits": initial_logits, "transition_logits": transition_logits}
        optional = {"observation_logits": observation_logits, "lengths": lengths}
        for name, value in (required | {k: v for k, v in optional.items() if v is not None}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        self._num_steps = _fixed_num_steps(transition_logits, observation_logits, num_steps)
        shown = self._num_steps
        if shown is None:
            shown = 1 if lengths is None else int(max([0, *lengths.flatten().tolist()]))
        unary = observation_logits
        if unary is None:
            # Stands for the absent ones in the checks, with a transition to check even where T is open.
            num_checked = 2 if self._num_steps is None and lengths is None else shown
            unary = initial_logits.new_zeros(num_checked, initial_logits.shape[-1] if initial_logits.dim() else 1)
        checked = as_chain(initial_logits, transition_logits, unary, lengths)
        # Padding may hold NaN. All else stays as given: a sequence of length 0 too has an initial law.
        self.initial_logits = normalize(torch.where(initial_logits.isnan(), checked.initial, initial_logits))
        self.transition_logits = normalize(
            torch.where(transition_logits.isnan(), checked.transition, transition_logits)
        )
        self.observation_logits = None if observation_logits is None else checked.observation
        self.lengths = None if lengths is None else checked.lengths.long()
        super().__init__(checked.batch_shape, torch.Size((shown,)), validate_args=validate_args)

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
            validate_args: as for the class.

        Returns:
            A chain whose batch shape is that of the arguments, broadcast.

        Raises:
            TypeError, ValueError: as for the class.

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
        return cls(initial_logits, transition_logits, observation_logits, lengths=lengths, validate_args=validate_args)

    @property
    def num_states(self) -> int:
        """Number of states K."""
        return self.initial_logits.shape[-1]

    @property
    def num_steps(self) -> int:
        """Number of steps T.

        Raises:
            ValueError: the chain was built without one, and without lengths.
        """
        if self._num_steps is None and self.lengths is None:
            raise ValueError("num_steps: expected a number of steps at construction (num_steps=T), got None")
        return self.event_shape[0]

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """State paths: integers 0..K-1 within the length."""
        return _Paths(self.num_states, self.lengths)

    @property
    def potentials(self) -> tuple[Tensor, Tensor, Tensor]:
        """Initial, transition and observation log-potentials, as `pyrohmm.ops` takes them."""
        return self._potentials(self.num_steps)

    def _potentials(self, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        unary = self.observation_logits
        if unary is None:
            unary = self.initial_logits.new_zeros(num_steps, self.num_states)
        return self.initial_logits, self.transition_logits, unary

    def _check_steps(self, num_steps: int, dim: int) -> None:
        """Raise unless a value of `num_steps` steps, its dimension `dim`, is one of this chain."""
        if self._num_steps is not None and num_steps != self._num_steps:
            raise ValueError(f"value: expected {self._num_steps} steps in dimension {dim}, got {num_steps}")
        if self.lengths is not None and num_steps < self.num_steps:
            raise ValueError(
                f"value: expected at least {self.num_steps} steps, the largest of lengths, in dimension {dim}, "
                f"got {num_steps}"
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of a path, (...).

        Args:
            value: (..., T), integers; entries past the length are not read.

        Returns:
            (...), -inf for a path that is impossible, and for any path where none is possible.

        Raises:
            ValueError: another number of steps, or (where validation is on) a state outside 0..K-1.
        """
        if value.dim() == 0:
            raise ValueError("value: expected shape (..., T), got ()")
        num_steps = value.shape[-1]
        self._check_steps(num_steps, -1)
        log_z = self._log_normalizer(num_steps, self.lengths)
        is_path = self.support.check(value)
        if self._validate_args:
            # Where no path is possible, decoding and sampling give -1 throughout.
            bad = ~is_path & (log_z > -torch.inf)
            if bad.any():
                index = tuple(bad.nonzero()[0].tolist())
                path = value.expand(*bad.shape, -1)[index].tolist()
                raise ValueError(f"value: expected states in 0..{self.num_states - 1}, got {path} at index {index}")
        states = value.long().clamp(0, self.num_states - 1)
        lengths = torch.full((), num_steps, device=value.device) if self.lengths is None else self.lengths
        valid = valid_steps(lengths, num_steps)
        pairs = states[..., :-1] * self.num_states + states[..., 1:]
        log_prob = (
            _sum_entries(self.initial_logits.unsqueeze(-2), states[..., :1], valid[..., :1])
            + _sum_entries(self.transition_logits.flatten(-2), pairs, valid[..., 1:])
            - finite(log_z)
        )
        if self.observation_logits is not None:
            log_prob = log_prob + _sum_entries(self.observation_logits, states, valid)
        return torch.where(is_path & (log_z > -torch.inf), log_prob, -torch.inf)

    @property
    def log_normalizer(self) -> Tensor:
        """log Z, (*batch_shape); zero for a chain without observation logits whose rows are laws."""
        return self._log_normalizer(self.num_steps, self.lengths)

    def _log_normalizer(self, num_steps: int, lengths: Tensor | None) -> Tensor:
        # Elsewhere than on the CPU to ask for rows that are no law is to wait, unless one waits anyway.
        if self.observation_logits is None and (self._validate_args or not waits(self.initial_logits)):
            rows = (self.initial_logits, self.transition_logits)
            if not any((logits.amax(-1) == -torch.inf).any() for logits in rows):
                return self.initial_logits.new_zeros(self.batch_shape)
        return ops.log_partition(*self._potentials(num_steps), lengths=lengths)

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw paths, (*sample_shape, *batch_shape, T) int64, -1 past the length.

        Args:
            sample_shape: shape of independent draws.
            generator: source of the random numbers; torch's global one when None.
        """
        return ops.sample(*self.potentials, lengths=self.lengths, sample_shape=sample_shape, generator=generator)

    def viterbi(self) -> ops.ViterbiResult:
        """Most probable path: states (*batch_shape, T) and its log-probability (*batch_shape)."""
        states, score = ops.viterbi(*self.potentials, lengths=self.lengths)
        return ops.ViterbiResult(states, score - finite(self.log_normalizer))

    def k_best(self, k: int) -> ops.KBestResult:
        """The k most probable paths (*batch_shape, k, T) and their log-probabilities (*batch_shape, k)."""
        states, score = ops.k_best(*self.potentials, k, lengths=self.lengths)
        return ops.KBestResult(states, score - finite(self.log_normalizer).unsqueeze(-1))

    @property
    def mode(self) -> Tensor:
        """Most probable path, (*batch_shape, T)."""
        return self.viterbi().states

    @property
    def marginals(self) -> Tensor:
        """p(z_t = k), (*batch_shape, T, K); zero past the length."""
        return ops.smooth(*self.potentials, lengths=self.lengths).state_marginals

    @property
    def transition_marginals(self) -> Tensor:
        """p(z_t = i, z_{t+1} = j), (*batch_shape, T-1, K, K); zero past the length."""
        return ops.smooth(*self.potentials, lengths=self.lengths, transitions="each").transition_marginals

    def entropy(self) -> Tensor:
        """Entropy of the law of whole paths, (*batch_shape), nats."""
        return ops.entropy(*self.potentials, lengths=self.lengths)

    def expectation(self, values: Tensor) -> Tensor:
        r"""Expectation of a sum of functions of the state at each step, in closed form.

        .. math:: E\Big[\sum_t f_t(z_t)\Big] = \sum_t \sum_k p(z_t = k)\, f_t(k)

        Differentiable in the chain's potentials and in the values. A value of -inf at a state whose marginal is 0 adds
        0, as in the limit; at any other it makes the expectation -inf.

        Args:
            values: f_t(k), (..., T, K); it broadcasts, so (K,) is the same function at each step. Entries past the
                length are not read.

        Returns:
            (...), the batch shapes of the chain and of the values, broadcast.

        Raises:
            ValueError: a shape that does not fit, or (where validation is on) NaN or +inf within the length.

        Example:
            >>> chain = MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_steps=3)
            >>> chain.expectation(torch.tensor([0.0, 1.0]))  # how often state 1 is expected
            tensor(1.5000)
        """
        steps = (self.num_steps, self.num_states)
        if values.dim() == 0 or any(
            n not in (1, m) for n, m in zip(values.shape[-2:][::-1], steps[::-1], strict=False)
        ):
            raise ValueError(f"values: expected shape (..., {steps[0]}, {steps[1]}), got {tuple(values.shape)}")
        if self._validate_args:
            bad = ~(values < torch.inf)
            if self.lengths is not None:
                bad = bad & valid_steps(self.lengths, self.num_steps).unsqueeze(-1)
            if bad.any():
                raise ValueError(f"values: expected no NaN and no +inf, got one at {tuple(bad.nonzero()[0].tolist())}")
        return expected_values(self.marginals, values, self.lengths)

    def expand(self, batch_shape: Sequence[int], _instance: "MarkovChain | None" = None) -> "MarkovChain":
        """The same law with a larger batch shape (views, no copies)."""
        new = cast(MarkovChain, self._get_checked_instance(MarkovChain, _instance))
        batch_shape = torch.Size(batch_shape)
        # First to its own batch shape: one that does not hold it is then an error. The others broadcast.
        new.initial_logits = self.initial_logits.expand(*self.batch_shape, -1).expand(*batch_shape, -1)
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
            (*batch_shape, K), probabilities, differentiable.

        Raises:
            ValueError: transitions differ between steps, a row of them is -inf throughout, or the chain has several
                recurrent classes (then the stationary distribution is not unique).

        Example:
            >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
            >>> MarkovChain(torch.zeros(2), probs.log()).stationary_distribution()
            tensor([0.8333, 0.1667])
        """
        matrix = self._shared_matrix("stationary_distribution")
        if (self.transition_logits.amax(-1) == -torch.inf).any():
            raise ValueError("transition_logits: expected a possible transition from every state, got a row of -inf")
        # One recurrent class is the same as a state that every state leads to.
        leads = (matrix.detach() > 0).to(matrix.dtype) + torch.eye(self.num_states).to(matrix)
        for _ in range(self.num_states.bit_length()):
            leads = (leads @ leads > 0).to(matrix.dtype)
        if not (leads > 0).all(-2).any(-1).all():
            raise ValueError(
                "transition_logits: expected one recurrent class of states; "
                "with several the stationary distribution is not unique"
            )
        # A - I, its diagonal from the other entries: 1 - A_ii would lose the digits of a state that is seldom left.
        moves = matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
        equations = (moves - torch.diag_embed(moves.sum(-1))).mT
        # One of the K dependent equations pi (A - I) = 0 gives way to the normalisation.
        equations = torch.cat([equations[..., :-1, :], torch.ones_like(equations[..., -1:, :])], -2)
        target = torch.zeros_like(equations[..., 0])
        target[..., -1] = 1.0
        return torch.linalg.solve(equations, target).clamp(min=0)

    def power(self, n: int) -> Tensor:
        """Probabilities of n transitions in a row, the matrix power A^n.

        Args:
            n: number of transitions, at least 0.

        Returns:
            (*batch_shape, K, K), [from, to], differentiable.

        Raises:
            ValueError: transitions differ between steps, or n is negative.

        Example:
            >>> probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
            >>> MarkovChain(torch.zeros(2), probs.log()).power(2)
            tensor([[0.8600, 0.1400],
                    [0.7000, 0.3000]])
        """
        if n < 0:
            raise ValueError(f"n: expected a number of transitions >= 0, got {n}")
        return torch.linalg.matrix_power(self._shared_matrix("power"), n)

    def _shared_matrix(self, method: str) -> Tensor:
        if self.transition_logits.shape[-3] != 1:
            raise ValueError(
                f"{method}: expected transitions shared over time, got {self.transition_logits.shape[-3]} of them"
            )
        return self.transition_logits.squeeze(-3).exp().expand(*self.batch_shape, -1, -1)


class Moments(NamedTuple):
    """What is expected under a chain q, (*batch_shape) and (*batch_shape, T, K); see `moments`.

    Attributes:
        possible: whether q has any possible path.
        log_q, log_p: expectations of log q(z) and log p(z); without meaning where none is possible.
        states: the marginals of q.
    """

    possible: Tensor
    log_q: Tensor
    log_p: Tensor
    states: Tensor


def moments(q: MarkovChain, p: MarkovChain) -> Moments:
    """Expectations under q, from one smoothing of it.

    A chain of open length (no num_steps, no lengths) is compared at the steps of the other.

    Args:
        q: the chain under which is expected.
        p: a chain of the same states, steps and lengths.

    Raises:
        ValueError: they differ in these (in lengths, on a GPU only where validation is on).
    """
    told = [chain for chain in (q, p) if chain._num_steps is not None or chain.lengths is not None]
    sizes = {(chain.num_states, chain.num_steps) for chain in told or [q]}
    if len(sizes) > 1 or q.num_states != p.num_states:
        raise ValueError(
            f"kl_divergence: expected chains of the same states and steps, "
            f"got {q.num_states} states in {tuple(q.event_shape)} and {p.num_states} states in {tuple(p.event_shape)}"
        )
    ((_, num_steps),) = sizes
    every = torch.full((), num_steps, device=q.initial_logits.device)
    lengths = [every if chain.lengths is None else chain.lengths for chain in told]
    ask = q._validate_args or p._validate_args or not waits(every)
    if ask and (lengths[0] != lengths[-1]).any():
        raise ValueError("kl_divergence: expected chains of the same lengths")
    q_chain, p_chain = (as_chain(*chain._potentials(num_steps), lengths=lengths[0]) for chain in (q, p))
    each = q_chain.transition.shape[-3] > 1 or p_chain.transition.shape[-3] > 1
    log_z, states, transitions = ops.smooth(*q_chain[:3], lengths=lengths[0], transitions="each" if each else "sum")
    if not each:
        transitions = transitions.unsqueeze(-3)
    q_energy, p_energy = (expected_potential(chain, states, transitions) for chain in (q_chain, p_chain))
    # Where p has no possible path its energy is -inf already.
    log_p = p_energy - finite(p._log_normalizer(num_steps, lengths[0]))
    return Moments(log_z > -torch.inf, q_energy - finite(log_z), log_p, states)


@register_kl(MarkovChain, MarkovChain)
def _kl_markov_chain(q: MarkovChain, p: MarkovChain) -> Tensor:
    """KL(q || p) = E_q[log q - log p], exact, from q's marginals. Zero where q has no possible path."""
    found = moments(q, p)
    return torch.where(found.possible, found.log_q - found.log_p, 0.0)


def expected_values(marginals: Tensor, values: Tensor, lengths: Tensor | None) -> Tensor:
    """Sum over steps and states of marginals (..., T, K) times values that broadcast to them, (...).

    Values past the lengths are not read.
    """
    if lengths is not None:
        values = torch.where(valid_steps(lengths, marginals.shape[-2]).unsqueeze(-1), values, 0.0)
    marginals, values = torch.broadcast_tensors(marginals, values)
    return expected(marginals, values, 2).to(torch.promote_types(marginals.dtype, values.dtype))


def normalize(logits: Tensor) -> Tensor:
    """Rows that sum to one in probability; a row of -inf stays one."""
    return logits - finite(logsumexp(logits, -1)).unsqueeze(-1)


def _sum_entries(table: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Sum over steps of `table[..., t, index[..., t]]` where valid, (...).

    Args:
        table: (..., T or 1, n).
        index: (..., T).
        valid: (..., T), bool.
    """
    # An index into the table's own memory: a gather would need it, or its gradient, expanded over batch and time.
    rows = torch.arange(table.shape[:-1].numel(), device=table.device).view(table.shape[:-1])
    entries = table.reshape(-1)[rows * table.shape[-1] + index]
    return torch.where(valid, entries, 0.0).sum(-1)


def _fixed_num_steps(transition: Tensor, observation: Tensor | None, num_steps: int | None) -> int | None:
    """The number of steps that the arguments tell; None if they leave it open."""
    told = {}
    if num_steps is not None:
        if not isinstance(num_steps, int) or num_steps < 0:
            raise ValueError(f"num_steps: expected an integer >= 0, got {num_steps!r}")
        told["num_steps"] = num_steps
    if observation is not None and observation.dim() > 1:
        told["observation_logits"] = observation.shape[-2]
    if transition.dim() > 2 and transition.shape[-3] != 1:
        told["transition_logits"] = transition.shape[-3] + 1
    if len(set(told.values())) > 1:
        raise ValueError(f"arguments disagree on the number of steps: {told}")
    return next(iter(told.values()), None)
