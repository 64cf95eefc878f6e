"""Transitions that come back: by the hour of the day, the day of the week, the season."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, forbid, select, unforbid
from pyrohmm.nn._free import num_free
from pyrohmm.nn._prior import LEAST_LOG_PROB, dirichlet, dirichlet_log_prob, dirichlet_mode
from pyrohmm.nn._relabel import permute
from pyrohmm.nn.part import Events, Statistics, assign, table
from pyrohmm.nn.transition import MatrixTransition, sticky_logits


class PeriodicTransition(MatrixTransition):
    """A table of transitions for each phase of a period, such as the 24 hours of a day.

    p(z_{t+1} = j | z_t = i, c) = softmax_j(logits_pij) with the phase p = c[column] mod P of the step that is entered,
    as for all inputs. For effects that change smoothly with the phase, see `RegressionTransition`.

    Args:
        num_states: K.
        period: P, the number of phases.
        column: which of the inputs tells the phase, a whole number; others are not read.
        mask: (K, K) bool, [from, to], True where an edge is allowed; the other logits are always -inf.
        sticky: log-odds added to the diagonal at the start.
        prior: `Dirichlet` on each row of probabilities, with concentrations (K,), (K, K) or (P, K, K) of at least 1.
            Some phases have few data; a prior keeps their rows within reason.
        generator: source of the random start; torch's global one if None.

    Attributes:
        logits: (P, K, K) parameter, `sticky` times the unit matrix plus small noise at the start.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `mask` of another shape or dtype or with a row that
            allows nothing, a `prior` that does not fit.

    Reference:
        Zucchini, MacDonald and Langrock (2016), "Hidden Markov models for time series", section 10.2.

    >>> transition = PeriodicTransition(3, period=24)
    >>> hours = (torch.arange(48) % 24).reshape(1, 48, 1)
    >>> transition(torch.arange(3).reshape(3, 1, 1), hours).shape
    torch.Size([3, 1, 48, 3])
    """

    prior: Tensor | None
    closed_form = True

    def __init__(
        self,
        num_states: int,
        period: int,
        *,
        column: int = 0,
        mask: Tensor | None = None,
        sticky: float = 1.0,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, mask)
        self.period = count("period", period)
        self.column = count("column", column, least=0)
        self.logits = nn.Parameter(sticky_logits(num_states, sticky, generator, period))
        self.register_buffer("prior", dirichlet(prior, (period, num_states, num_states)))

    def phases(self, inputs: Tensor | None) -> Tensor:
        """The phase of each step.

        Args:
            inputs: (..., C).

        Returns:
            (...), int64, from 0 to P - 1.

        Raises:
            ValueError: `inputs` missing or without the column, or (on the CPU) a number in it that is not whole.

        >>> PeriodicTransition(2, period=7, column=1).phases(torch.tensor([[0.5, 6.0], [0.1, 7.0]]))
        tensor([6, 0])
        """
        got = None if inputs is None else tuple(inputs.shape)
        if inputs is None or not got or got[-1] <= self.column:
            raise ValueError(
                f"inputs: expected shape (..., C), C at least {self.column + 1} since column={self.column}, got {got}"
            )
        phases = inputs[..., self.column]
        # Elsewhere than on the CPU the question costs a synchronisation.
        if phases.is_floating_point() and phases.device.type == "cpu":
            broken = phases != phases.round()
            if broken.any():
                raise ValueError(
                    f"inputs: expected whole numbers (phases) in column {self.column}, got {phases[broken][0].item()}"
                )
        return phases.long().remainder(self.period)

    def phase_log_probs(self) -> Tensor:
        """The tables of all phases, log p(z_{t+1} = j | z_t = i) at [p, i, j] if step t + 1 has phase p; (P, K, K).

        >>> PeriodicTransition(2, period=7).phase_log_probs().shape
        torch.Size([7, 2, 2])
        """
        return forbid(self.logits, self.mask).log_softmax(-1)

    def _logits(self, inputs: Tensor | None) -> Tensor:
        return select(self.logits, self.phases(inputs), 2)

    def log_prior(self) -> Tensor:
        """The log-density of the probabilities under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return dirichlet_log_prob(table(forbid(self.logits, self.mask), 3), self.prior).sum((-1, -2))

    def expected_statistics(self, weights: Tensor, inputs: Tensor | None = None) -> Statistics:
        """The expected number of times that each edge was taken, in each phase.

        Args:
            weights: (*lead, ..., K, K), [from, to], the posterior probabilities of the steps of `inputs`.
            inputs: (..., C), of the steps that are entered.

        Returns:
            "counts" (*lead, P, K, K).
        """
        phases = self.phases(inputs).flatten()
        lead = table(self.logits, 3).shape[:-3]
        # One step alone may come without its dims.
        steps = weights.reshape(*lead, len(phases), *weights.shape[-2:]).double()
        counts = torch.zeros(*lead, self.period, *weights.shape[-2:], dtype=steps.dtype, device=steps.device)
        return {"counts": counts.index_add_(len(lead), phases, steps)}

    def maximize(self, statistics: Statistics) -> Events:
        """Set each row of each phase to the most probable one: (counts_pij + concentration_pij - 1) / sum_j.

        Returns:
            the states that were never left in some phase, and have no prior: their rows there stay.

        >>> transition = PeriodicTransition(2, period=2)
        >>> weights = torch.tensor([[[3.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 3.0]]])
        >>> _ = transition.maximize(transition.expected_statistics(weights, torch.tensor([[0], [1]])))
        >>> transition.phase_log_probs().exp().detach()[:, 0]
        tensor([[7.5000e-01, 2.5000e-01],
                [9.3576e-14, 1.0000e+00]])
        """
        logits = table(forbid(self.logits, self.mask), 3).detach()
        log_probs, empty = dirichlet_mode(statistics["counts"], self.prior, logits, LEAST_LOG_PROB)
        assign(self.logits, unforbid(log_probs, self.mask))
        return {"never left in some phase, its transitions there stay as they are": empty.any(-2)}

    def _relabel(self, permutation: Tensor) -> None:
        permute(self, permutation, ["logits", "prior"], (1, 2))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, of each row one less than the edges that are allowed.

        >>> PeriodicTransition(3, period=24).num_free_parameters
        144
        """
        return num_free(self, mask=None if self.mask is None else self.mask.expand(self.period, -1, -1))
