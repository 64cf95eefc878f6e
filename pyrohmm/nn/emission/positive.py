"""Positive numbers: waiting times, amounts, sizes."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import jitter, select, start
from pyrohmm.nn._prior import inverse_gamma_log_prob, inverse_gamma_prior
from pyrohmm.nn.emission._laws import Gamma
from pyrohmm.nn.emission.concentration import SWEEPS, ConcentrationEmission, Slope, gamma_slope
from pyrohmm.nn.emission.entries import independent
from pyrohmm.nn.emission.gaussian import GaussianEmission
from pyrohmm.nn.emission.rates import RateEmission
from pyrohmm.nn.part import Statistics, table
from pyrohmm.nn.priors import NormalInverseGamma

# The M-step keeps logarithms of rates and means within it, where float32 has room for products with data.
LARGEST_LOG = 60.0


def positive_log(x: Tensor) -> Tensor:
    """log x, with what is not positive read as the least positive number."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


class ExponentialEmission(RateEmission):
    """D independent waiting times: p(x_d | z = k) = Exponential(x_d; exp(log_rate_kd)), rates in 1 / units of x.

    Args:
        num_states: K.
        dim: D.
        rate: the start, a number, (D,) for all states or (K, D); one if None. One over the mean of the data is a good
            one.
        noise: size of the normal noise added to the log rates at the start, unless `rate` is (K, D).
        prior: `Gamma` on each rate, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_rate: (K, D) parameter. The M-step keeps it between -60 and 60, also if all data are 0.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `rate` of another shape or not positive and finite,
            a `prior` that does not fit.

    Reference:
        Rabiner (1989), "A tutorial on hidden Markov models", section IV, for the M-step of any emission.

    >>> emission = ExponentialEmission(2, 1, rate=[[1.0], [0.5]])
    >>> emission(torch.tensor([0, 1])).mean.detach().T
    tensor([[1., 2.]])
    """

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Exponential(select(self.log_rate, state).exp())

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        total = sums["total"]
        if self.prior is not None:
            concentration, rate = self.prior.unbind(-1)
            total, weight = total + rate, weight + (concentration - 1)
        return {"log_rate": (weight / total).log().clamp(-LARGEST_LOG, LARGEST_LOG)}

    def features(self, x: Tensor) -> Tensor:
        """Logarithms, (M, D), in which a factor is a distance; of zeros, that of the least positive number."""
        return positive_log(x)


class GammaEmission(ConcentrationEmission):
    r"""D independent positive numbers, of any spread.

    With the mean m and the concentration c of the entry in the state,

    .. math::
        p(x \mid z) = \frac{(c / m)^c}{\Gamma(c)}\, x^{c - 1} e^{-c x / m}, \qquad \mathrm{var}(x) = m^2 / c .

    The best mean is that of the data; the best concentration solves log c - digamma(c) = log(mean of x) - mean of
    log x, by Newton's method. Zeros, outside of the support, are an error where Pyro validates; where it does not,
    they count as the least positive number.

    Args:
        num_states: K.
        dim: D.
        mean: the start, a number, (D,) for all states or (K, D); one if None. The mean of the data is a good one.
        concentration: the start of c, a number or a shape that broadcasts to (K, D).
        noise: size of the normal noise added to the log means at the start, unless `mean` is (K, D).
        prior: `Gamma` on each concentration, with a concentration of at least 1 and a rate, which broadcast to (K, D).
        mean_prior: `InverseGamma` on each mean, with parameters that broadcast to (K, D), its rate in units of x.
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_mean: (K, D) parameter, log of the units of the data.
        log_concentration: (K, D) parameter. The M-step keeps concentrations between 1e-4 and 1e6, the standard
            deviation at least a thousandth of the mean.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `mean` or `concentration` of another shape or not
            positive and finite, a `prior` that does not fit.

    Reference:
        Minka (2002), "Estimating a gamma distribution".

    >>> emission = GammaEmission(2, 1, mean=[[1.0], [2.0]], concentration=4.0)
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.mean.detach().T, law.stddev.detach().T
    (tensor([[1., 2.]]), tensor([[0.5000, 1.0000]]))
    """

    filler = 1.0

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        mean: Any = None,
        concentration: Any = 1.0,
        noise: float = 0.1,
        prior: Any = None,
        mean_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, dim)
        shape = num_states, dim
        centre = start("mean", 1.0 if mean is None else mean, shape, 0)
        self.log_mean = nn.Parameter(centre.log() + noise * jitter(mean, shape, generator))
        self._start_concentration(concentration, prior)
        self.register_buffer("prior_mean", inverse_gamma_prior(mean_prior, shape, "mean_prior"))

    def _entries(self, state: Tensor) -> TorchDistributionMixin:
        concentration = select(self.log_concentration, state).exp()
        return Gamma(concentration, concentration * (-select(self.log_mean, state)).exp())

    def log_prior(self) -> Tensor:
        """The log-density of concentrations and means under the priors, up to a constant, () or (R,); see `Part`."""
        if self.prior_mean is None:
            return super().log_prior()
        return super().log_prior() + inverse_gamma_log_prob(table(self.log_mean, 2), self.prior_mean).sum((-2, -1))

    def _sufficient(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": x, "log": positive_log(x)}

    def _best(self, weight: Tensor, sums: Statistics) -> dict[str, Tensor]:
        def best_mean(_: Tensor, concentration: Tensor) -> Tensor:
            total, share = sums["total"], weight
            if self.prior_mean is not None:
                shape, rate = self.prior_mean.double().unbind(-1)
                total, share = concentration * total + rate, concentration * share + shape + 1
            return (total / share).log().clamp(-LARGEST_LOG, LARGEST_LOG)

        def of_concentration(log_mean: Tensor) -> Slope:
            # The first two terms cancel at the best mean without a prior.
            gap = sums["total"] / weight * (-log_mean).exp() - 1 + log_mean - sums["log"] / weight
            return gamma_slope(weight, gap)

        # Without a prior the best mean does not depend on the concentration.
        return self._in_turn("log_mean", best_mean, of_concentration, sweeps=1 if self.prior_mean is None else SWEEPS)

    def features(self, x: Tensor) -> Tensor:
        """Logarithms, in which a factor is a distance, (M, D)."""
        return positive_log(x)


class LogNormalEmission(GaussianEmission):
    r"""D independent positive numbers whose logarithms are Gaussian.

    .. math:: \log x \mid z \sim \mathrm{Normal}(\mathrm{loc},\, \mathrm{scale}^2)

    Everything is as in `GaussianEmission` with covariance "diag", of log x. Zeros, outside of the support, are an error
    where Pyro validates; where it does not, EM reads them as the least positive number.

    Args:
        num_states: K.
        dim: D.
        loc: the start of the means of log x, a number, (D,) for all states or (K, D); zero if None. The mean of the
            logarithms of the data is a good one.
        scale: the start of the standard deviations of log x, a number or a shape that broadcasts to (K, D).
        noise: size of the normal noise added to `loc` at the start, in units of `scale`, unless `loc` is (K, D).
        least_scale: the M-step keeps every standard deviation above this part of that of the logarithms of all data.
        prior: `NormalInverseGamma` on mean and variance of log x.
        generator: source of the noise; torch's global one if None.

    Attributes:
        loc, log_scale: (K, D) parameters, of log x.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `loc` or `scale` of another shape, not finite, or not
            positive (`scale`), a `prior` that does not fit.

    Reference:
        Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", for the prior.

    >>> emission = LogNormalEmission(2, 1, loc=[[0.0], [1.0]])
    >>> emission(torch.tensor([0, 1])).mean.detach().log().T
    tensor([[0.5000, 1.5000]])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        *,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        least_scale: float = 1e-3,
        prior: NormalInverseGamma | None = None,
        generator: Generator | None = None,
    ):
        options = {"noise": noise, "least_scale": least_scale, "prior": prior, "generator": generator}
        super().__init__(num_states, dim, "diag", loc=loc, scale=scale, **options)

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        law = dist.LogNormal(select(self.loc, state), select(self.log_scale, state).exp())
        return independent(law, observed, 1.0)

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Take sums for EM from the mean of the logarithms of these observations (M, D) from now on."""
        super().prepare(positive_log(x), observed)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Weights and the first two moments of log x about `centre`; see `TableEmission`."""
        return super().expected_statistics(positive_log(x), weights, inputs, previous, observed)

    def features(self, x: Tensor) -> Tensor:
        """Logarithms, (M, D)."""
        return positive_log(x)
