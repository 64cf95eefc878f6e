r"""Laws of a part's parameters that are conjugate to it, as variational Bayes needs them.

A part whose log-probabilities are :math:`\eta(\theta)^\top s(x) - A(\theta) + c(x)` has under such a law q the mean

.. math:: \mathrm{E}_q \log p(x \mid \theta) = \log p(x \mid \hat\theta) + g, \qquad
    \eta(\hat\theta) = \mathrm{E}_q\, \eta(\theta), \quad g = A(\hat\theta) - \mathrm{E}_q A(\theta) \le 0 :

the log-probability at one point, and a gap that does not depend on x. So the E-step of variational Bayes is that of a
model with the parameters :math:`\hat\theta`, whose potentials are lower by the gaps.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import softplus

from pyrohmm.nn.part import Statistics
from pyrohmm.nn.priors import NormalInverseGamma, NormalInverseWishart

Values = dict[str, Tensor]
"""Parameters of a part by the names that its method `put` knows, float64."""


class Conjugate(ABC):
    """A law of the parameters of a part, of float64 tensors."""

    @property
    @abstractmethod
    def law(self) -> Any:
        """The law as a distribution, or as `NormalInverseGamma` or `NormalInverseWishart`."""

    @abstractmethod
    def updated(self, statistics: Statistics) -> Self:
        """The law given expected statistics, if this is the prior."""

    @abstractmethod
    def divergence(self, prior: Self) -> Tensor:
        """The Kullback-Leibler divergence from the prior, (), in nats."""

    @abstractmethod
    def expected(self) -> tuple[Values, Tensor]:
        """The point of the mean natural parameters, and the gap: (K,), of entries (K, D), of one row ()."""

    @abstractmethod
    def mean(self) -> Values:
        """The mean parameters; of covariances the inverse of the mean precision, which always exists."""

    @abstractmethod
    def sample(self) -> Values:
        """A draw."""


class DirichletRows(Conjugate):
    """Independent Dirichlet laws of rows of probabilities. Concentrations are 0 at what is forbidden."""

    def __init__(self, concentration: Tensor):
        self.concentration = concentration.double()
        self.allowed = concentration > 0

    @property
    def law(self) -> dist.Dirichlet:
        """`Dirichlet`, whose concentrations are 0 at what a mask forbids."""
        return dist.Dirichlet(self.concentration, validate_args=None if self.allowed.all() else False)

    def updated(self, statistics: Statistics) -> Self:
        """Counts are added."""
        return type(self)(self.concentration + torch.where(self.allowed, statistics["counts"].clamp_min(0), 0.0))

    def divergence(self, prior: Self) -> Tensor:
        """Of all rows."""
        q, p = (rows.concentration.masked_fill(~self.allowed, 1.0) for rows in (self, prior))
        terms = (q - p) * self._log_probs() - q.lgamma() + p.lgamma()
        totals = self.concentration.sum(-1).lgamma() - prior.concentration.sum(-1).lgamma()
        return totals.sum() + terms.sum()

    def _log_probs(self) -> Tensor:
        """E log p; 0 at what is forbidden."""
        digamma = self.concentration.masked_fill(~self.allowed, 1.0).digamma()
        return (digamma - self.concentration.sum(-1, keepdim=True).digamma()).masked_fill(~self.allowed, 0.0)

    def expected(self) -> tuple[Values, Tensor]:
        """Probabilities proportional to exp(E log p), and the logarithm of the sum of these."""
        log_probs = self._log_probs()
        gap = log_probs.masked_fill(~self.allowed, -torch.inf).logsumexp(-1)
        return {"logits": (log_probs - gap.unsqueeze(-1)).masked_fill(~self.allowed, 0.0)}, gap

    def mean(self) -> Values:
        """Concentrations over their sum."""
        return self._logits(self.concentration / self.concentration.sum(-1, keepdim=True))

    def sample(self) -> Values:
        """A draw of each row."""
        return self._logits(self.law.sample())

    def _logits(self, probs: Tensor) -> Values:
        return {"logits": probs.masked_fill(~self.allowed, 1.0).log()}


class BetaEntries(Conjugate):
    """Independent Beta laws of the probabilities of bits, (K, D)."""

    def __init__(self, ones: Tensor, zeros: Tensor):
        self.ones, self.zeros = ones.double(), zeros.double()

    @property
    def law(self) -> dist.Beta:
        """`Beta`."""
        return dist.Beta(self.ones, self.zeros)

    def updated(self, statistics: Statistics) -> Self:
        """Ones and zeros are added."""
        total = statistics["total"].clamp_min(0)
        return type(self)(self.ones + total, self.zeros + (statistics["weight"] - total).clamp_min(0))

    def divergence(self, prior: Self) -> Tensor:
        """Of all entries."""
        return kl_divergence(self.law, prior.law).sum()

    def expected(self) -> tuple[Values, Tensor]:
        """The mean logits."""
        logits = self.ones.digamma() - self.zeros.digamma()
        log_zero = self.zeros.digamma() - (self.ones + self.zeros).digamma()
        return {"logits": logits}, log_zero + softplus(logits)

    def mean(self) -> Values:
        """Ones over all."""
        return {"logits": self.ones.log() - self.zeros.log()}

    def sample(self) -> Values:
        """A draw of each entry."""
        return {"logits": self.law.sample().logit().clamp(-30, 30)}


class GammaEntries(Conjugate):
    """Independent Gamma laws of the rates of counts, (K, D)."""

    def __init__(self, concentration: Tensor, rate: Tensor):
        self.concentration, self.rate = concentration.double(), rate.double()

    @property
    def law(self) -> dist.Gamma:
        """`Gamma`."""
        return dist.Gamma(self.concentration, self.rate)

    def updated(self, statistics: Statistics) -> Self:
        """Counts are added to the concentrations, steps to the rates."""
        total, weight = (statistics[name].clamp_min(0) for name in ("total", "weight"))
        return type(self)(self.concentration + total, self.rate + weight)

    def divergence(self, prior: Self) -> Tensor:
        """Of all entries."""
        return kl_divergence(self.law, prior.law).sum()

    def expected(self) -> tuple[Values, Tensor]:
        """The mean logarithms."""
        log_rate = self.concentration.digamma() - self.rate.log()
        return {"log_rate": log_rate}, log_rate.exp() - self.concentration / self.rate

    def mean(self) -> Values:
        """Concentrations over rates."""
        return {"log_rate": self.concentration.log() - self.rate.log()}

    def sample(self) -> Values:
        """A draw of each entry."""
        return {"log_rate": self.law.sample().log()}


class GaussianEntries(Conjugate):
    """Independent normal-inverse-gamma laws of means (K, D) and variances, (K, D) or, of all entries at once, (K,).

    Args:
        law: with loc and strength (K, D), concentration and rate (K, D) or (K,), float64.
        centre: (D,), about which statistics are.
    """

    def __init__(self, law: NormalInverseGamma, centre: Tensor):
        self._law, self.centre = law, centre
        self.spherical = law.rate.dim() == 1

    @property
    def law(self) -> NormalInverseGamma:
        """`NormalInverseGamma`."""
        return self._law

    def updated(self, statistics: Statistics) -> Self:
        """Murphy (2007), section 6."""
        loc, strength, concentration, rate = self._law
        weight, first, second = (statistics[name] for name in ("weight", "first", "second"))
        more, off = strength + weight, loc - self.centre
        new = (strength * off + first) / more
        squares = second - 2 * new * first + weight * new.square() + strength * (new - off).square()
        squares = squares.clamp_min(0)  # rounding can leave less than none
        if self.spherical:
            weight, squares = weight.sum(-1), squares.sum(-1)
        law = NormalInverseGamma(new + self.centre, more, concentration + weight / 2, rate + squares / 2)
        return type(self)(law, self.centre)

    def divergence(self, prior: Self) -> Tensor:
        """Of all entries."""
        q, p = self._law, prior._law
        precision = self._wide(q.concentration / q.rate)
        mean = (q.strength / p.strength).log() + p.strength / q.strength - 1
        mean = mean + p.strength * precision * (q.loc - p.loc).square()
        return kl_divergence(q.precision, p.precision).sum() + mean.sum() / 2

    def _wide(self, value: Tensor) -> Tensor:
        """As (K, 1) or (K, D)."""
        return value.unsqueeze(-1) if self.spherical else value

    def expected(self) -> tuple[Values, Tensor]:
        """The means, and the inverses of the mean precisions."""
        concentration = self._wide(self._law.concentration)
        gap = (concentration.digamma() - concentration.log()) / 2 - 0.5 / self._law.strength
        return self.mean(), gap

    def mean(self) -> Values:
        """The same point."""
        return {"loc": self._law.loc, "variance": self._law.rate / self._law.concentration}

    def sample(self) -> Values:
        """A draw of each variance and mean."""
        precision = self._law.precision.sample()
        deviation = (self._law.strength * self._wide(precision)).rsqrt()
        return {"loc": torch.normal(self._law.loc, deviation), "variance": 1 / precision}


class GaussianVectors(Conjugate):
    """Normal-inverse-Wishart laws of means (K, D) and covariances, (K, D, D) or, common to all states, (D, D).

    Args:
        law: with loc (K, D), strength (K, 1), degrees (K,) or (), scale (K, D, D) or (D, D), float64.
        centre: (D,), about which statistics are.
    """

    def __init__(self, law: NormalInverseWishart, centre: Tensor):
        self._law, self.centre = law, centre
        self.tied = law.scale.dim() == 2

    @property
    def law(self) -> NormalInverseWishart:
        """`NormalInverseWishart`."""
        return self._law

    def updated(self, statistics: Statistics) -> Self:
        """Murphy (2007), section 9."""
        loc, strength, degrees, scale = self._law
        weight, first, second = (statistics[name] for name in ("weight", "first", "second"))
        wide = weight.unsqueeze(-1)
        more, off = strength + wide, loc - self.centre
        new = (strength * off + first) / more
        cross = new.unsqueeze(-1) * first.unsqueeze(-2)
        squares = second - cross - cross.mT + wide.unsqueeze(-1) * _outer(new)
        squares = squares + strength.unsqueeze(-1) * _outer(new - off)
        if self.tied:
            weight, squares = weight.sum(-1), squares.sum(-3)
        law = NormalInverseWishart(new + self.centre, more, degrees + weight, scale + (squares + squares.mT) / 2)
        return type(self)(law, self.centre)

    def divergence(self, prior: Self) -> Tensor:
        """Of all states."""
        q, p, dim = self._law, prior._law, self._law.loc.shape[-1]
        ratio = p.strength / q.strength
        off = (q.loc - p.loc).unsqueeze(-1)
        distance = (off * torch.linalg.solve(q.scale, off)).sum((-2, -1)) * q.degrees
        mean = dim * (ratio - ratio.log() - 1) + p.strength * distance.unsqueeze(-1)
        # Of the Wishart laws of the precisions; torch has none.
        trace = torch.linalg.solve(q.scale, p.scale).diagonal(dim1=-2, dim2=-1).sum(-1)
        wishart = p.degrees * (q.scale.logdet() - p.scale.logdet()) + q.degrees * (trace - dim)
        wishart = wishart + (q.degrees - p.degrees) * self._digammas()
        gammas = torch.mvlgamma(p.degrees / 2, dim) - torch.mvlgamma(q.degrees / 2, dim)
        return gammas.sum() + (wishart.sum() + mean.sum()) / 2

    def _digammas(self) -> Tensor:
        """sum_i digamma((nu + 1 - i) / 2)."""
        degrees = self._law.degrees
        steps = torch.arange(self._law.loc.shape[-1], device=degrees.device)
        return ((degrees.unsqueeze(-1) - steps) / 2).digamma().sum(-1)

    def expected(self) -> tuple[Values, Tensor]:
        """The means, and the inverses of the mean precisions."""
        degrees, dim = self._law.degrees, self._law.loc.shape[-1]
        gap = self._digammas() + dim * (math.log(2) - degrees.log())
        return self.mean(), (gap - dim / self._law.strength.squeeze(-1)) / 2

    def mean(self) -> Values:
        """The same point."""
        return {"loc": self._law.loc, "covariance": self._law.scale / self._law.degrees[..., None, None]}

    def sample(self) -> Values:
        """A draw of each covariance and mean."""
        precision = self._law.precision.sample()
        loc = dist.MultivariateNormal(
            self._law.loc, precision_matrix=self._law.strength.unsqueeze(-1) * precision
        ).sample()
        return {"loc": loc, "covariance": torch.cholesky_inverse(torch.linalg.cholesky(precision))}


def _outer(vectors: Tensor) -> Tensor:
    return vectors.unsqueeze(-1) * vectors.unsqueeze(-2)
