"""What families with a concentration have in common: a number that says how narrow they are."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrohmm.nn._common import start
from pyrohmm.nn._prior import gamma_log_prob, gamma_prior
from pyrohmm.nn.emission._roots import falling_root
from pyrohmm.nn.emission.table import EntriesEmission
from pyrohmm.nn.part import Events, Statistics, table

NARROW = "concentration kept at the largest one, too few distinct points"
# What the M-step keeps concentrations between. Without the upper bound a state that claims a single point would have
# an infinite likelihood; with it, a spread is at least a thousandth of the mean (a milliradian, of an angle).
LEAST, MOST = 1e-4, 1e6
# Means and concentrations in turn, at most so often, or until neither changes by more.
SWEEPS, TOLERANCE = 50, 1e-12

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From values v > 0 to f = d objective / d log v, positive below its only zero and negative above, and df / d log v."""


def best_log(slope: Slope, now: Tensor, prior: Tensor | None, least: float = LEAST, most: float = MOST) -> Tensor:
    """The logarithm of the value, between `least` and `most`, that maximises an objective plus a Gamma log prior.

    Args:
        slope: of the objective.
        now: the logarithm of the present value, float64.
        prior: concentration and rate of a Gamma prior on the value, (..., 2), or None.
        least: of the value.
        most: of the value.
    """

    def function(log_value: Tensor) -> tuple[Tensor, Tensor]:
        value = log_value.exp()
        first, second = slope(value)
        if prior is None:
            return first, second
        concentration, rate = prior.double().unbind(-1)
        return first + (concentration - 1) - rate * value, second - rate * value

    return falling_root(function, math.log(least), math.log(most), now)


def gamma_slope(weight: Tensor, gap: Tensor) -> Slope:
    """Of the log-density of gamma variables in their concentration c: c weight (log c - digamma(c) - gap).

    Args:
        weight: their number.
        gap: log of their mean minus mean of their log, not negative.
    """

    def slope(value: Tensor) -> tuple[Tensor, Tensor]:
        first = value * (value.log() - value.digamma() - gap)
        return weight * first, weight * (first + value - value.square() * torch.polygamma(1, value))

    return slope


class ConcentrationEmission(EntriesEmission):
    """Entries with a table `log_concentration` (K, D) among their parameters, and perhaps a Gamma prior on it.

    The M-step keeps concentrations between 1e-4 and 1e6.
    """

    def _start_concentration(self, value: Any, prior: Any) -> None:
        shape = self.num_states, self.event_shape.numel()
        self.log_concentration = nn.Parameter(start("concentration", value, shape, 0).log())
        self.register_buffer("prior", gamma_prior(prior, shape))

    def log_prior(self) -> Tensor:
        """The log-density of the concentrations under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return gamma_log_prob(table(self.log_concentration, 2), self.prior).sum((-2, -1))

    def _told(self) -> bool:
        return False

    def _best_concentration(self, slope: Slope, now: Tensor | None = None) -> Tensor:
        return best_log(slope, self._now("log_concentration") if now is None else now, self.prior)

    def _in_turn(
        self, name: str, best: Callable[[Tensor, Tensor], Tensor], slope: Callable[[Tensor], Slope], *, sweeps: int
    ) -> dict[str, Tensor]:
        """The best means, or the like, given the concentrations, and these given those, until neither changes.

        Args:
            name: of the table of the means.
            best: from the present table and concentrations to the best table.
            slope: from the table to what `best_log` needs.
            sweeps: how often, at most.
        """
        middle, log_concentration = self._now(name), self._now("log_concentration")
        for _ in range(sweeps):
            before = middle, log_concentration
            middle = self._unless_frozen(name, best(middle, log_concentration.exp()))
            narrow = self._best_concentration(slope(middle), log_concentration)
            log_concentration = self._unless_frozen("log_concentration", narrow)
            both = zip((middle, log_concentration), before, strict=True)
            if all((new - old).abs().max() <= TOLERANCE for new, old in both):
                break
        return {name: middle, "log_concentration": log_concentration}

    def _met(self, tables: dict[str, Tensor], sums: Statistics) -> Events:
        # A root at the end of its bracket is found to rounding.
        return {NARROW: tables["log_concentration"] > math.log(MOST) - 1e-6}
