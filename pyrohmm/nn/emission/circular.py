"""Angles."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._prior import prior_buffer
from pyrohmm.nn.emission._laws import VonMises
from pyrohmm.nn.emission.concentration import SWEEPS, ConcentrationEmission, Slope
from pyrohmm.nn.part import Statistics, table


class VonMisesEmission(ConcentrationEmission):
    r"""D independent angles, such as directions or times of day.

    With the direction loc and the concentration c of the entry in the state,

    .. math:: p(x \mid z) = \frac{e^{c \cos(x - \mathrm{loc})}}{2 \pi I_0(c)} .

    A concentration of nearly 0 is a uniform law, a large one a normal law of variance 1 / c. The best direction is that
    of the sum of the unit vectors; the best concentration solves I_1(c) / I_0(c) = the length of their mean, by
    Newton's method.

    Args:
        num_states: K.
        dim: D.
        loc: the start of the directions in radians, a number, (D,) for all states or (K, D); zero if None.
        concentration: the start of c, a number or a shape that broadcasts to (K, D).
        noise: size of the normal noise added to the directions at the start, in radians, unless `loc` is (K, D).
        prior: `Gamma` on each concentration, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        loc_prior: `VonMises` on each direction, with parameters that broadcast to (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        loc: (K, D) parameter, radians, any real numbers.
        log_concentration: (K, D) parameter. The M-step keeps concentrations between 1e-4 and 1e6.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `loc` or `concentration` of another shape or not finite,
            or not positive (`concentration`), a `prior` that does not fit.

    Reference:
        Mardia & Jupp (2000), "Directional statistics", section 5.3.

    >>> emission = VonMisesEmission(2, 1, loc=[[0.0], [3.0]], concentration=2.0)
    >>> emission(torch.tensor([0, 1])).log_prob(torch.tensor([2 * torch.pi])).detach()
    tensor([-0.6619, -4.6419])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        loc: Any = None,
        concentration: Any = 1.0,
        noise: float = 1.0,
        prior: Any = None,
        loc_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        direction = start("loc", 0.0 if loc is None else loc, shape)
        self.loc = nn.Parameter(direction + noise * jitter(loc, shape, generator))
        self._start_concentration(concentration, prior)
        told = prior_buffer(loc_prior, torch.distributions.VonMises, ["loc", "concentration"], shape, "loc_prior")
        self.register_buffer("prior_loc", told)

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        return VonMises(select(self.loc, state), select(self.log_concentration, state).exp())

    def log_prior(self) -> Tensor:
        """The log-density of concentrations and directions under the priors, up to a constant; see `Part`."""
        if self.prior_loc is None:
            return super().log_prior()
        loc, concentration = self.prior_loc.unbind(-1)
        return super().log_prior() + (concentration * (table(self.loc, 2) - loc).cos()).sum((-2, -1))

    def _sufficient(self, x: Tensor) -> dict[str, Tensor]:
        return {"cos": x.cos(), "sin": x.sin()}

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        def best_loc(_: Tensor, concentration: Tensor) -> Tensor:
            if self.prior_loc is None:
                return torch.atan2(sums["sin"], sums["cos"])
            loc, worth = self.prior_loc.double().unbind(-1)
            sine = concentration * sums["sin"] + worth * loc.sin()
            return torch.atan2(sine, concentration * sums["cos"] + worth * loc.cos())

        def of_concentration(loc: Tensor) -> Slope:
            length = (sums["cos"] * loc.cos() + sums["sin"] * loc.sin()) / weight

            def slope(value: Tensor) -> tuple[Tensor, Tensor]:
                mean = torch.special.i1e(value) / torch.special.i0e(value)  # the length that is expected
                first = value * (length - mean)
                return weight * first, weight * (first - value.square() * (1 - mean.square()) + value * mean)

            return slope

        # Without a prior the best direction does not depend on the concentration.
        return self._in_turn("loc", best_loc, of_concentration, sweeps=1 if self.prior_loc is None else SWEEPS)

    def features(self, x: Tensor) -> Tensor:
        """Points on the unit circle, (M, 2 D)."""
        return torch.cat([x.cos(), x.sin()], -1)
