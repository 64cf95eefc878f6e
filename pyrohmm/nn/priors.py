"""Conjugate priors that torch has no distribution for."""

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch


class Wishart(dist.Wishart):
    """That of torch, whose draws come with a warning, and are drawn twice."""

    def rsample(self, sample_shape: Any = (), max_try_correction: int | None = None) -> torch.Tensor:
        """Draw by Bartlett's decomposition."""
        return self._bartlett_sampling(torch.Size(sample_shape))


class NormalInverseGamma(NamedTuple):
    r"""A prior on the mean and the variance of a Gaussian entry, for covariances "diag" and "spherical".

    .. math::
        \sigma^2 \sim \mathrm{InverseGamma}(a, b), \qquad \mu \mid \sigma^2 \sim \mathrm{Normal}(m, \sigma^2 / \kappa)

    With a Gaussian of n steps of mean :math:`\bar x`, the most probable mean is
    :math:`(\kappa m + n \bar x) / (\kappa + n)`.

    Attributes:
        loc: m, a number or a tensor that broadcasts to (K, D), in the units of the data.
        strength: kappa > 0, how many steps the prior mean is worth; broadcasts to (K, 1).
        concentration: a > 0; broadcasts to (K, D) for "diag", (K, 1) for "spherical".
        rate: b > 0, in the squared units of the data, of the same shape.

    Reference:
        Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", section 6.

    >>> NormalInverseGamma(loc=0.0, strength=1.0, concentration=2.0, rate=1.0).rate
    1.0
    """

    loc: Any
    strength: Any
    concentration: Any
    rate: Any

    @property
    def precision(self) -> dist.Gamma:
        """The law of 1 / sigma^2, `Gamma`."""
        return dist.Gamma(self.concentration, self.rate)

    @property
    def mean(self) -> dist.StudentT:
        """The marginal law of mu, `StudentT` of 2 a degrees of freedom.

        >>> NormalInverseGamma(0.0, 4.0, torch.tensor([2.0]), torch.tensor([2.0])).mean.scale
        tensor([0.5000])
        """
        concentration, rate = torch.as_tensor(self.concentration), torch.as_tensor(self.rate)
        if torch.as_tensor(self.loc).dim() > concentration.dim() > 0:
            concentration, rate = concentration.unsqueeze(-1), rate.unsqueeze(-1)  # one for all entries
        return dist.StudentT(2 * concentration, self.loc, (rate / (concentration * self.strength)).sqrt())


class InverseWishart(NamedTuple):
    r"""A prior on the covariance of a Gaussian vector, for the noise of regressions with covariances "full" and "tied".

    .. math:: p(\Sigma) \propto |\Sigma|^{-(\nu + D + 1) / 2}\, e^{-\mathrm{tr}(\Psi \Sigma^{-1}) / 2}

    Attributes:
        degrees: nu > D - 1; a number or (K, 1) for "full", a number for "tied".
        scale: Psi, positive definite, in the squared units of the data; (D, D), or (K, D, D) for "full".

    Reference:
        Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", section 9.

    >>> InverseWishart(degrees=4.0, scale=torch.eye(2)).degrees
    4.0
    """

    degrees: Any
    scale: Any


class NormalInverseWishart(NamedTuple):
    r"""A prior on the mean and the covariance of a Gaussian vector, for covariances "full" and "tied".

    .. math::
        \Sigma \sim \mathrm{InverseWishart}(\nu, \Psi), \qquad \mu \mid \Sigma \sim \mathrm{Normal}(m, \Sigma / \kappa)

    Attributes:
        loc: m, a number or a tensor that broadcasts to (K, D), in the units of the data.
        strength: kappa > 0, how many steps the prior mean is worth; broadcasts to (K, 1).
        degrees: nu > D - 1; a number or (K, 1) for "full", a number for "tied".
        scale: Psi, positive definite, in the squared units of the data; (D, D), or (K, D, D) for "full".

    Reference:
        Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", section 9.

    >>> import torch
    >>> NormalInverseWishart(loc=0.0, strength=1.0, degrees=4.0, scale=torch.eye(2)).degrees
    4.0
    """

    loc: Any
    strength: Any
    degrees: Any
    scale: Any

    @property
    def precision(self) -> Wishart:
        """The law of the inverse of Sigma, `Wishart`."""
        return Wishart(torch.as_tensor(self.degrees), precision_matrix=self.scale)

    @property
    def mean(self) -> dist.MultivariateStudentT:
        """The marginal law of mu, `MultivariateStudentT` of nu - D + 1 degrees of freedom.

        >>> NormalInverseWishart(torch.zeros(1, 2), torch.ones(1, 1), torch.tensor([3.0]), torch.eye(2)).mean.df
        tensor([2.])
        """
        degrees = torch.as_tensor(self.degrees) - self.scale.shape[-1] + 1
        strength = torch.as_tensor(self.strength)
        worth = (strength.squeeze(-1) if strength.dim() == 2 else strength) * degrees
        factor = torch.linalg.cholesky(self.scale) / worth.sqrt()[..., None, None]
        return dist.MultivariateStudentT(degrees.expand(worth.shape), self.loc, factor)
