"""States that share a row of transitions."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import forbid, unforbid
from pyrohmm.nn._free import num_free
from pyrohmm.nn._prior import LEAST_LOG_PROB, dirichlet, dirichlet_log_prob, dirichlet_mode, has_mode
from pyrohmm.nn._relabel import permute
from pyrohmm.nn.part import Events, Statistics, assign, table
from pyrohmm.nn.transition import MatrixTransition


class TiedTransition(MatrixTransition):
    """A table of transitions of fewer rows than there are states: the states of a group leave by the same row.

    With groups g and G rows of logits,

        p(z_{t+1} = j | z_t = i) = softmax_j(logits_{g_i, j}),

    or, `relative`, softmax over m = (j - i) mod K of logits_{g_i, m}: a row then tells by how many states the chain
    moves, as with words whose states all have the same chances to stay and to go on, or levels that go up and down
    alike. For states that differ in what they emit; for those that differ in where they lead, see `TiedEmission`.

    The M-step adds up the counts of the states of a group, in closed form.

    Args:
        num_states: K.
        groups: (K,) int64, the row of each state, from 0 to G - 1, every one of them used.
        mask: (K, K) bool, [from, to], True where an edge is allowed; the other logits are always -inf. States of a
            group must be allowed the same, of next states or, with `relative`, of moves.
        relative: whether a row tells moves, not next states.
        sticky: log-odds added at the start to staying; in a row of n states that tells next ones, to those n.
        prior: `Dirichlet` on each row of probabilities, with concentrations (K,) or (G, K), of at least 1 for the most
            probable parameters (`fit_em`, `fit_svi`). It counts once for a group.
        generator: source of the random start; torch's global one if None.

    Attributes:
        logits: (G, K) parameter, `sticky` where the chain stays plus small noise at the start.
        groups: (K,) buffer, as given.
        columns: (K, K) buffer, which entry of its row an edge takes.
        num_states, num_rows: K, G.

    Raises:
        TypeError, ValueError: a size that is no positive int, `groups` that are not int64 or not the numbers from 0 to
            G - 1, a `mask` of another shape or dtype, with a row that allows nothing, or in which states of a group
            differ, a `prior` that does not fit.

    Reference:
        Young (1994), "The HTK hidden Markov model toolkit: design and philosophy", for tied parameters.

    >>> transition = TiedTransition(3, [0, 0, 1])
    >>> _ = transition.maximize(transition.expected_statistics(torch.tensor([[3.0, 1, 0], [1, 2, 1], [0, 1, 1]])))
    >>> transition.log_probs().exp().detach().round(decimals=4)
    tensor([[0.5000, 0.3750, 0.1250],
            [0.5000, 0.3750, 0.1250],
            [0.0000, 0.5000, 0.5000]])
    """

    prior: Tensor | None
    groups: Tensor
    columns: Tensor
    closed_form = True

    def __init__(
        self,
        num_states: int,
        groups: Any,
        mask: Tensor | None = None,
        *,
        relative: bool = False,
        sticky: float = 1.0,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, mask)
        groups = torch.as_tensor(groups).clone()
        if groups.dtype != torch.int64:
            raise TypeError(f"groups: expected int64, got {groups.dtype}")
        used = groups.unique().tolist()
        if groups.shape != (num_states,) or used != list(range(len(used))):
            raise ValueError(f"groups: expected {num_states} numbers, 0 to the last without a gap, got {groups}")
        self.num_rows = len(used)
        state = torch.arange(num_states)
        columns = (state - state.unsqueeze(-1)) % num_states if relative else state.repeat(num_states, 1)
        self.register_buffer("groups", groups)
        self.register_buffer("columns", columns)
        rows = self._row_mask()
        if self.mask is not None and rows is not None and not self._of_states(rows).equal(self.mask):
            raise ValueError(f"mask: expected the same for all states of a group, got {self.mask} and groups {groups}")
        shape = self.num_rows, num_states
        stay = torch.zeros(shape)
        stay[groups, columns.diagonal()] = float(sticky)
        self.logits = nn.Parameter(0.1 * torch.randn(shape, generator=generator) + stay)
        self.register_buffer("prior", dirichlet(prior, shape, sparse=True))

    def _of_states(self, rows: Tensor) -> Tensor:
        """Rows (..., G, K) as edges (..., K, K)."""
        return rows[..., self.groups.unsqueeze(-1), self.columns]

    def _row_mask(self) -> Tensor | None:
        """The mask of the rows, (G, K)."""
        if self.mask is None:
            return None
        rows = self.mask.new_zeros(self.num_rows, self.num_states)
        rows[self.groups.unsqueeze(-1), self.columns] = self.mask
        return rows

    def _rows(self) -> Tensor:
        return forbid(self.logits, self._row_mask())

    def _logits(self, inputs: Tensor | None) -> Tensor:
        return self._of_states(self.logits)

    def log_prior(self) -> Tensor:
        """The log-density of the rows under the prior, each once, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return dirichlet_log_prob(table(self._rows(), 2), self.prior).sum(-1)

    @property
    def prior_has_mode(self) -> bool:
        """Whether no concentration of the prior is below 1."""
        return has_mode(self.prior)

    def expected_statistics(self, weights: Tensor, inputs: Tensor | None = None) -> Statistics:
        """The expected number of times that each entry of a row was taken, by any state of its group.

        Args:
            weights: (*lead, K, K), [from, to], posterior probabilities summed over steps and sequences.
            inputs: not read.

        Returns:
            "counts" (*lead, G, K).
        """
        edges = weights.double().flatten(-2)
        entries = (self.groups.unsqueeze(-1) * self.num_states + self.columns).flatten()
        counts = edges.new_zeros(*edges.shape[:-1], self.num_rows * self.num_states)
        return {"counts": counts.index_add_(-1, entries, edges).unflatten(-1, (self.num_rows, self.num_states))}

    def maximize(self, statistics: Statistics) -> Events:
        """Set each row to the most probable one: (counts_gj + concentration_gj - 1) / sum_j.

        Returns:
            the states whose group was never left, and has no prior: its row stays.
        """
        logits = table(self._rows(), 2).detach()
        log_probs, empty = dirichlet_mode(statistics["counts"], self.prior, logits, LEAST_LOG_PROB)
        assign(self.logits, unforbid(log_probs, self._row_mask()))
        return {"never left, like all of its group, its transitions stay as they are": empty[..., self.groups]}

    def _relabel(self, permutation: Tensor) -> None:
        permute(self, permutation, ["groups"])
        permute(self, permutation, ["columns"], (0, 1))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, of each row one less than what is allowed.

        >>> TiedTransition(3, [0, 0, 1]).num_free_parameters
        4
        """
        return num_free(self, mask=self._row_mask())
