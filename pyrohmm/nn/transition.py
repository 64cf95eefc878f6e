"""The law of the next state given this one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import allowed, context_inputs, count, forbid, network, select, unforbid
from pyrohmm.nn._conjugate import DirichletRows
from pyrohmm.nn._free import num_free, num_trainable
from pyrohmm.nn._prior import (
    LEAST_LOG_PROB,
    dirichlet,
    dirichlet_law,
    dirichlet_log_prob,
    dirichlet_mode,
    has_mode,
    normal_log_prob_of,
    normal_prior,
)
from pyrohmm.nn._relabel import Ordered, as_permutation, permute
from pyrohmm.nn.part import Events, Part, Statistics, assign, table


class MatrixTransition(Ordered, Part):
    """What transition parts share: masking, normalising and the choice of rows. `_logits` is the full matrix."""

    mask: Tensor | None

    side_by_side = True

    def __init__(self, num_states: int, mask: Tensor | None):
        super().__init__()
        self.num_states = count("num_states", num_states)
        self.register_buffer("mask", allowed(mask, (num_states, num_states)))

    def _logits(self, inputs: Tensor | None) -> Tensor:
        raise NotImplementedError

    def matrix(self, inputs: Tensor | None = None) -> Tensor:
        """The logits of every edge, [from, to], not normalised; -inf at forbidden edges.

        Args:
            inputs: (..., C); read only if the transitions depend on them.

        Returns:
            (..., K, K), or (K, K) if the transitions depend on no inputs.

        Raises:
            ValueError: `inputs` missing where they are read, or of another size than the part's.

        >>> Transition(3).matrix().shape, NeuralTransition(3, context=2).matrix(torch.zeros(5, 7, 2)).shape
        (torch.Size([3, 3]), torch.Size([5, 7, 3, 3]))
        """
        return forbid(self._logits(inputs), self.mask)

    def log_probs(self, inputs: Tensor | None = None) -> Tensor:
        """The normalised `matrix`, log p(z_{t+1} = j | z_t = i, inputs) at [..., i, j], with the same shape and errors.

        >>> Transition(3).log_probs().exp().sum(-1).detach().round(decimals=4)
        tensor([1., 1., 1.])
        """
        return self.matrix(inputs).log_softmax(-1)

    def forward(self, state: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The logits of the next state, not normalised; -inf at forbidden edges.

        Args:
            state: int64 of any shape, the present state, e.g. (K, 1, 1) if enumerated.
            inputs: (..., C); read only if the transitions depend on them.

        Returns:
            (*broadcast(state.shape, inputs.shape[:-1]), K), or (*state.shape, K) if the
            transitions depend on no inputs.

        Raises:
            TypeError: `state` is not int64.
            ValueError: `inputs` missing where they are read, or of another size than the part's.

        >>> state = torch.arange(3).reshape(3, 1, 1)
        >>> Transition(3)(state).shape, NeuralTransition(3, context=2)(state, torch.zeros(5, 7, 2)).shape
        (torch.Size([3, 1, 1, 3]), torch.Size([3, 5, 7, 3]))
        """
        # All edges first, rows after: an enumerated state then costs one matrix for each step, not K.
        return select(self.matrix(inputs), state)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation, or a parameter has a `PyroSample` prior.

        >>> transition = Transition(2, mask=torch.tensor([[True, True], [False, True]]))
        >>> transition.relabel([1, 0])
        >>> transition.log_probs().exp()[0].tolist()
        [1.0, 0.0]
        """
        order = as_permutation(permutation, self.num_states)
        self._relabel(order)
        permute(self, order, ["mask"], (0, 1))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers; of each row of a table one less than the edges that are allowed.

        >>> Transition(3).num_free_parameters, Transition(3, torch.ones(3, 3).triu().bool()).num_free_parameters
        (6, 3)
        """
        return num_trainable(self)

    def _relabel(self, permutation: Tensor) -> None:
        """Permute what `_logits` is made of."""
        raise NotImplementedError


class Transition(MatrixTransition):
    """A table of logits, one row for each state: p(z_{t+1} = j | z_t = i) = softmax_j(logits_ij).

    Args:
        num_states: K.
        mask: (K, K) bool, [from, to], True where an edge is allowed; the other logits are always -inf.
            `left_to_right` and `banded` make such masks.
        sticky: log-odds added to the diagonal at the start.
        prior: `Dirichlet` on each row of probabilities, with concentrations (K,) or (K, K), of at least 1 for the most
            probable parameters (`fit_em`, `fit_svi`). A sticky prior is `Dirichlet(1 + kappa * torch.eye(K))`: as if
            kappa more steps had been seen to stay in each state.
        generator: source of the random start; torch's global one if None.

    Attributes:
        logits: (K, K) parameter, `sticky` times the unit matrix plus small noise at the start.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `mask` of another shape or dtype or with a row that
            allows nothing, a `prior` that does not fit.

    >>> transition = Transition(2, mask=torch.tensor([[True, True], [False, True]]))
    >>> transition.log_probs()[1].exp().tolist()
    [0.0, 1.0]
    """

    def __init__(
        self,
        num_states: int,
        mask: Tensor | None = None,
        *,
        sticky: float = 1.0,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, mask)
        self.logits = nn.Parameter(sticky_logits(num_states, sticky, generator))
        self.register_buffer("prior", dirichlet(prior, (num_states, num_states), sparse=True))

    closed_form = True

    def _logits(self, inputs: Tensor | None) -> Tensor:
        return self.logits

    def log_prior(self) -> Tensor:
        """The log-density of the probabilities under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return dirichlet_log_prob(table(self.matrix(), 2), self.prior).sum(-1)

    @property
    def prior_has_mode(self) -> bool:
        """Whether no concentration of the prior is below 1."""
        return has_mode(self.prior)

    def conjugate_prior(self) -> DirichletRows:
        """The Dirichlet prior of each row, flat ones by default; see `Part`."""
        return dirichlet_law(self, self.mask)

    def expected_statistics(self, weights: Tensor, inputs: Tensor | None = None) -> Statistics:
        """The expected number of times that each edge was taken.

        Args:
            weights: (*lead, K, K), [from, to], posterior probabilities summed over steps and sequences.
            inputs: not read.

        Returns:
            "counts" (*lead, K, K).
        """
        return {"counts": weights.double()}

    def maximize(self, statistics: Statistics) -> Events:
        """Set each row to the most probable one: (counts_ij + concentration_ij - 1) / sum_j.

        Returns:
            the states that were never left, and have no prior: their rows stay.

        >>> transition = Transition(2)
        >>> _ = transition.maximize(transition.expected_statistics(torch.tensor([[3.0, 1.0], [1.0, 1.0]])))
        >>> transition.log_probs().exp().detach()
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
        """
        logits = table(self.matrix(), 2).detach()
        log_probs, empty = dirichlet_mode(statistics["counts"], self.prior, logits, LEAST_LOG_PROB)
        assign(self.logits, unforbid(log_probs, self.mask))
        return {"never left, its transitions stay as they are": empty}

    def _relabel(self, permutation: Tensor) -> None:
        permute(self, permutation, ["logits", "prior"], (0, 1))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, of each row one less than the edges that are allowed."""
        return num_free(self, mask=self.mask)


class NeuralTransition(MatrixTransition):
    """Transition logits from a network: of the inputs, or, without them, of learned state embeddings.

    With `context` C > 0 the matrix changes with the inputs c (Bengio and Frasconi 1995, "An input output HMM
    architecture"):

        p(z_{t+1} = j | z_t = i, c) = softmax_j(logits_ij + net(c)_ij).

    Without, it is one matrix of rank at most `embedding` plus a diagonal, with O(K * embedding) parameters, so that K
    can be large (Chiu and Rush 2020, "Scaling hidden Markov language models"):

        p(z_{t+1} = j | z_t = i) = softmax_j(net(source_i) . target_j + bias_j + stay_i [i = j]).

    Args:
        num_states: K.
        context: C, the size of the inputs; 0 for state embeddings.
        hidden: units of the built-in network (one tanh layer).
        embedding: E, the size of the state embeddings; read only without `context`.
        mask: (K, K) bool, [from, to], True where an edge is allowed; the other logits are always -inf.
        net: any module in place of the built-in network: from (..., C) to (..., K * K), row by row, with `context`;
            from (..., E) to (..., E) without.
        sticky: log-odds added to the diagonal at the start.
        prior: `Normal` of numbers, e.g. `Normal(0.0, 1.0)`, on every parameter (weight decay).
        generator: source of the random start; torch's global one if None.

    Attributes:
        logits: (K, K) parameter, with `context`.
        source, target, bias, stay: parameters (K, E), (K, E), (K,), (K,), without `context`.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `mask` of another shape or dtype or with a row that
            allows nothing, a `net` or `prior` that does not fit.

    >>> by_inputs = NeuralTransition(4, context=3)
    >>> by_inputs(torch.arange(4).reshape(4, 1, 1), torch.zeros(2, 5, 3)).shape
    torch.Size([4, 2, 5, 4])
    >>> sum(parameter.numel() for parameter in NeuralTransition(1000, embedding=8, hidden=16).parameters())
    18280
    """

    def __init__(
        self,
        num_states: int,
        context: int = 0,
        hidden: int = 64,
        embedding: int = 16,
        mask: Tensor | None = None,
        *,
        net: nn.Module | None = None,
        sticky: float = 1.0,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, mask)
        self.context = count("context", context, least=0)
        if context:
            self.logits = nn.Parameter(sticky_logits(num_states, sticky, generator))
            self.net = network(net, context, hidden, num_states**2, generator)
        else:
            count("embedding", embedding)
            self.source = nn.Parameter(torch.randn(num_states, embedding, generator=generator))
            # Of size 1/sqrt(E), so that the noise in the logits at the start is no larger for longer embeddings.
            self.target = nn.Parameter(torch.randn(num_states, embedding, generator=generator) * embedding**-0.5)
            self.bias = nn.Parameter(torch.zeros(num_states))
            self.stay = nn.Parameter(torch.full((num_states,), float(sticky)))
            self.net = network(net, embedding, hidden, embedding, generator)
        self.register_buffer("prior", normal_prior(prior, ()))

    def _logits(self, inputs: Tensor | None) -> Tensor:
        if self.context:
            logits = self.logits
            change = self.net(context_inputs(inputs, self.context).to(logits.dtype))
            change = change.unflatten(-1, (self.num_states, self.num_states))
            if self.state_order is not None:
                change = change[..., self.state_order.unsqueeze(-1), self.state_order]
            return logits + change
        scores = self.net(self.source) @ self.target.mT
        return scores + self.bias.unsqueeze(-2) + self.stay.diag_embed()

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the prior, up to a constant, (); see `Part`."""
        return super().log_prior() if self.prior is None else normal_log_prob_of(self, self.prior)

    def _relabel(self, permutation: Tensor) -> None:
        if self.context:
            permute(self, permutation, ["logits"], (0, 1))
            self._reorder(permutation)
        else:
            permute(self, permutation, ["source", "target", "bias", "stay"])


def sticky_logits(num_states: int, sticky: float, generator: Generator | None, *lead: int) -> Tensor:
    """The start of tables of transitions, (*lead, K, K): small noise, and `sticky` on the diagonal."""
    noise = 0.1 * torch.randn(*lead, num_states, num_states, generator=generator)
    return noise + sticky * torch.eye(num_states)
