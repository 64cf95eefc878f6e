"""Conjugate priors that torch has no distribution for."""

from typing import Any, NamedTuple


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
