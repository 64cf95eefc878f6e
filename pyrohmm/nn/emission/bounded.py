"""Proportions: numbers between 0 and 1."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._prior import beta_log_prob, beta_prior
from pyrohmm.nn.emission._laws import LEAST_PROPORTION, Beta
from pyrohmm.nn.emission._roots import falling_root
from pyrohmm.nn.emission.concentration import SWEEPS, ConcentrationEmission, Slope
from pyrohmm.nn.part import Statistics, table

# Beyond it a proportion is 0 or 1.
LARGEST_LOGIT = 30.0


class BetaEmission(ConcentrationEmission):
    r"""D independent proportions.

    With the mean m and the concentration c of the entry in the state,

    .. math::
        p(x \mid z) = \frac{x^{c m - 1} (1 - x)^{c (1 - m) - 1}}{\mathrm{B}(c m,\, c (1 - m))}, \qquad
        \mathrm{var}(x) = \frac{m (1 - m)}{c + 1} .

    The M-step finds the best mean given the concentration and the best concentration given the mean, each by Newton's
    method, in turn. Zeros and ones count as 1e-7 away from them, as does what is nearer.

    Args:
        num_states: K.
        dim: D.
        mean: the start, between 0 and 1, a number, (D,) for all states or (K, D); a half if None.
        concentration: the start of c, a number or a shape that broadcasts to (K, D).
        noise: size of the normal noise added to the logits of the means at the start, unless `mean` is (K, D).
        prior: `Gamma` on each concentration, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        mean_prior: `Beta` on each mean, with concentrations that broadcast to (K, D), of at least 1.
        generator: source of the noise; torch's global one if None.

    Attributes:
        mean_logits, log_concentration: (K, D) parameters. The M-step keeps concentrations between 1e-4 and 1e6.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `mean` or `concentration` of another shape or out of
            range, a `prior` that does not fit.

    Reference:
        Ferrari & Cribari-Neto (2004), "Beta regression for modelling rates and proportions".

    >>> emission = BetaEmission(2, 1, mean=[[0.5], [0.2]], concentration=3.0)
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.mean.detach().T, law.variance.detach().T
    (tensor([[0.5000, 0.2000]]), tensor([[0.0625, 0.0400]]))
    """

    filler = 0.5

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        mean: Any = None,
        concentration: Any = 2.0,
        noise: float = 0.1,
        prior: Any = None,
        mean_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        centre = start("mean", 0.5 if mean is None else mean, shape, 0, 1)
        self.mean_logits = nn.Parameter(centre.logit() + noise * jitter(mean, shape, generator))
        self._start_concentration(concentration, prior)
        self.register_buffer("prior_mean", beta_prior(mean_prior, shape, "mean_prior"))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        logits, concentration = select(self.mean_logits, state), select(self.log_concentration, state).exp()
        return Beta(concentration * logits.sigmoid(), concentration * (-logits).sigmoid())

    def log_prior(self) -> Tensor:
        """The log-density of concentrations and means under the priors, up to a constant, () or (R,); see `Part`."""
        if self.prior_mean is None:
            return super().log_prior()
        return super().log_prior() + beta_log_prob(table(self.mean_logits, 2), self.prior_mean).sum((-2, -1))

    def _sufficient(self, x: Tensor) -> dict[str, Tensor]:
        x = x.clamp(LEAST_PROPORTION, 1 - LEAST_PROPORTION)
        return {"log": x.log(), "log_rest": (-x).log1p()}

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        ones, zeros = sums["log"] / weight, sums["log_rest"] / weight

        # The objective for one step is m c ones + (1 - m) c zeros - log B(m c, (1 - m) c).
        def best_logits(logits: Tensor, concentration: Tensor) -> Tensor:
            def of_mean(logits: Tensor) -> tuple[Tensor, Tensor]:
                mean, rest = logits.sigmoid(), (-logits).sigmoid()
                some, others = concentration * mean, concentration * rest
                curvature = torch.polygamma(1, some) + torch.polygamma(1, others)
                first, second = ones - zeros - some.digamma() + others.digamma(), -curvature * some * rest
                if self.prior_mean is None:
                    return first, second
                worth = (weight * concentration).unsqueeze(-1)
                more_ones, more_zeros = ((self.prior_mean.double() - 1) / worth).unbind(-1)
                first = first + more_ones / mean - more_zeros / rest
                return first, second - more_ones * rest / mean - more_zeros * mean / rest

            return falling_root(of_mean, -LARGEST_LOGIT, LARGEST_LOGIT, logits)

        def of_concentration(logits: Tensor) -> Slope:
            mean, rest = logits.sigmoid(), (-logits).sigmoid()

            def slope(value: Tensor) -> tuple[Tensor, Tensor]:
                some, others = value * mean, value * rest
                slope = mean * (ones - some.digamma()) + rest * (zeros - others.digamma()) + value.digamma()
                trigamma = [torch.polygamma(1, argument) for argument in (value, some, others)]
                curvature = trigamma[0] - mean.square() * trigamma[1] - rest.square() * trigamma[2]
                first = weight * value * slope
                return first, first + weight * value.square() * curvature

            return slope

        return self._in_turn("mean_logits", best_logits, of_concentration, sweeps=SWEEPS)

    def features(self, x: Tensor) -> Tensor:
        """Log odds, (M, D)."""
        return x.logit(LEAST_PROPORTION)
