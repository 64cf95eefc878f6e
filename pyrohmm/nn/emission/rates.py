"""What emissions with a table of rates have in common."""

from typing import Any

from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, start
from pyrohmm.nn._prior import gamma_log_prob, gamma_prior
from pyrohmm.nn.emission.table import EntriesEmission
from pyrohmm.nn.part import table


class RateEmission(EntriesEmission):
    """D independent entries, each with a rate exp(log_rate_kd) of its own, under a Gamma prior if there is one."""

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        rate: Any = None,
        noise: float = 0.1,
        prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        first = start("rate", 1.0 if rate is None else rate, shape, 0)
        self.log_rate = nn.Parameter(first.log() + noise * jitter(rate, shape, generator))
        self.register_buffer("prior", gamma_prior(prior, shape))

    def log_prior(self) -> Tensor:
        """The log-density of the rates under the prior, up to a constant, () or (R,); see `Part`."""
        if self.prior is None:
            return super().log_prior()
        return gamma_log_prob(table(self.log_rate, 2), self.prior).sum((-2, -1))
