"""Real vectors with outliers."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._prior import (
    gamma_log_prob,
    gamma_prior,
    normal_inverse_gamma_log_prob,
    normal_inverse_gamma_prior,
)
from pyrohmm.nn.emission.concentration import best_log, gamma_slope
from pyrohmm.nn.emission.gaussian import NARROW, total_variance
from pyrohmm.nn.emission.table import EntriesEmission
from pyrohmm.nn.part import Events, Statistics, table
from pyrohmm.nn.priors import NormalInverseGamma

# What the M-step keeps the degrees of freedom between: a Gaussian is hardly different from the last, and below the
# first the likelihood can grow without end on a few equal points.
LEAST_DEGREES, MOST_DEGREES = 0.5, 1e3


class StudentTEmission(EntriesEmission):
    r"""D independent real numbers with heavy tails, so that single outliers move no state.

    With loc, scale and the degrees of freedom nu of the entry in the state,

    .. math::
        p(x \mid z) \propto \frac{1}{\mathrm{scale}}
            \left(1 + \frac{(x - \mathrm{loc})^2}{\nu\, \mathrm{scale}^2}\right)^{-(\nu + 1) / 2} .

    EM sees x as Gaussian of variance scale^2 / u with a hidden u of Gamma(nu / 2, nu / 2), and lets the mean of u be
    free too (parameter expansion), which takes fewer steps, unless there is a `loc_prior`. Freeze `log_degrees` for
    degrees that are known.

    Args:
        num_states: K.
        dim: D.
        loc: the start, a number, (D,) for all states or (K, D); zero if None. The median of the data is a good one.
        scale: the start, a number or a shape that broadcasts to (K, D); one if None.
        degrees: the start of nu, likewise.
        noise: size of the normal noise added to `loc` at the start, in units of `scale`, unless `loc` is (K, D).
        least_scale: the M-step keeps every scale above this part of the spread of all data (their standard deviation,
            with outliers weighed down as in the law): without a bound a state that claims a single point would have an
            infinite likelihood.
        prior: `Gamma` on each nu, with a concentration of at least 1 and a rate, which broadcast to (K, D); often
            Gamma(2, 0.1).
        loc_prior: `NormalInverseGamma` on each loc and scale^2, with parameters that broadcast to (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        loc: (K, D) parameter, in the units of the data.
        log_scale: (K, D) parameter, log of the units of the data.
        log_degrees: (K, D) parameter. The M-step keeps nu between 0.5 and 1000.
        centre: (D,) buffer, the mean of the first `loc`, from which the sums for EM are taken so that they do not
            lose digits.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, a start of another shape or not finite, or not positive
            (`scale`, `degrees`), a `prior` that does not fit.

    Reference:
        Liu, Rubin & Wu (1998), "Parameter expansion to accelerate EM: the PX-EM algorithm"; for the prior Juarez &
        Steel (2010), "Model-based clustering of non-Gaussian panel data based on skew-t distributions".

    >>> emission = StudentTEmission(2, 1, loc=[[0.0], [1.0]], scale=2.0, degrees=4.0)
    >>> emission(torch.tensor([0, 1])).variance.detach().T
    tensor([[8., 8.]])
    """

    _shared = ("centre",)

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        loc: Any = None,
        scale: Any = None,
        degrees: Any = 5.0,
        noise: float = 1.0,
        least_scale: float = 1e-3,
        prior: Any = None,
        loc_prior: NormalInverseGamma | None = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        deviation = start("scale", 1.0 if scale is None else scale, shape, 0)
        middle = start("loc", 0.0 if loc is None else loc, shape)
        self.loc = nn.Parameter(middle + noise * deviation * jitter(loc, shape, generator))
        self.log_scale = nn.Parameter(deviation.log())
        self.log_degrees = nn.Parameter(start("degrees", degrees, shape, 0).log())
        self.register_buffer("centre", self.loc.detach().mean(0))
        self.register_buffer("prior", gamma_prior(prior, shape))
        self.register_buffer("prior_loc", normal_inverse_gamma_prior(loc_prior, shape, "loc_prior"))
        self.least_scale = float(start("least_scale", least_scale, (), 0))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        loc, log_scale, log_degrees = (
            select(parameter, state) for parameter in (self.loc, self.log_scale, self.log_degrees)
        )
        return dist.StudentT(log_degrees.exp(), loc, log_scale.exp())

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the priors, up to a constant, () or (R,); see `Part`."""
        total = super().log_prior()
        if self.prior is not None:
            total = total + gamma_log_prob(table(self.log_degrees, 2), self.prior).sum((-2, -1))
        if self.prior_loc is not None:
            loc, log_variance = table(self.loc, 2), 2 * table(self.log_scale, 2)
            total = total + normal_inverse_gamma_log_prob(loc, log_variance, self.prior_loc).sum((-2, -1))
        return total

    def _told(self) -> bool:
        return False

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Take sums for EM from the median of these observations (M, D) from now on; 0 where there are none."""
        x = x.double() if observed is None else torch.where(observed, x.double(), torch.nan)
        self.centre.copy_(x.nanmedian(0).values.nan_to_num(0.0))

    def _sufficient(self, x: Tensor) -> dict[str, Tensor]:
        return {}

    def _hidden(self, x: Tensor) -> dict[str, Tensor]:
        loc, scale, degrees = (
            value.unsqueeze(-3)
            for value in (self._now("loc"), self._now("log_scale").exp(), self._now("log_degrees").exp())
        )
        # u is Gamma((nu + 1) / 2, rate) given x.
        concentration, rate = 0.5 * (degrees + 1), 0.5 * (degrees + ((x - loc) / scale).square())
        precision, x = concentration / rate, x - self.centre.double()
        return {
            "precision": precision,
            "log_precision": concentration.digamma() - rate.log(),
            "first": precision * x,
            "second": precision * x.square(),
        }

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        precision, first, second = sums["precision"], sums["first"], sums["second"]
        precision = precision.clamp_min(torch.finfo(precision.dtype).tiny)
        centre = self.centre.double()
        prior = self.prior_loc
        middle, worth, shape, rate = (0.0, 0.0, 0.0, 0.0) if prior is None else prior.double().unbind(-1)
        loc = (first + worth * (middle - centre)) / (precision + worth) + centre
        off = self._unless_frozen("loc", loc) - centre
        squares = second - 2 * off * first + precision * off.square()

        # The mean of u is free only where the scale can make up for it, which a prior on the scale does not let it.
        least = self._least_variance(sums)
        free = squares / precision > least
        if prior is not None:
            free, squares = torch.zeros_like(free), squares + worth * (off + centre - middle).square() + 2 * rate
        elif not self.log_scale.requires_grad:
            free = torch.zeros_like(free)
        steps = weight if prior is None else weight + 2 * shape + 3
        variance = squares / torch.where(free, precision, steps)
        mean = precision / weight
        gap = torch.where(free, mean.log(), mean - 1) - sums["log_precision"] / weight

        def slope(degrees: Tensor) -> tuple[Tensor, Tensor]:
            return gamma_slope(weight, gap)(0.5 * degrees)

        log_degrees = best_log(slope, self._now("log_degrees"), self.prior, LEAST_DEGREES, MOST_DEGREES)
        return {"loc": loc, "log_scale": 0.5 * torch.maximum(variance, least).log(), "log_degrees": log_degrees}

    def _least_variance(self, sums: Statistics) -> Tensor:
        spread = total_variance(sums["precision"], sums["first"], sums["second"], self.centre.double())
        return self.least_scale**2 * spread.unsqueeze(-2)

    def _met(self, tables: dict[str, Tensor], sums: Statistics) -> Events:
        return {NARROW: 2 * tables["log_scale"] <= self._least_variance(sums).log() + 1e-9}
