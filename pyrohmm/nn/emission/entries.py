"""Laws of vectors of which only some entries were observed."""

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor


def independent(entries: Any, observed: Tensor | None, filler: float = 0.0) -> TorchDistributionMixin:
    """Independent entries as one vector, of which only some were observed.

    Args:
        entries: a distribution of batch shape (..., D).
        observed: bool, broadcasts with (..., D); None for all.
        filler: a value in the support, at which the others are read in its place.

    Returns:
        A distribution of event shape (D,).
    """
    return entries.to_event(1) if observed is None else ObservedEntries(entries, observed, filler)


class ObservedEntries(TorchDistribution):
    """The law of the observed ones among D independent entries: the density of a value does not read the others.

    A draw has all entries.

    Args:
        entries: a distribution of batch shape (..., D) and event shape ().
        observed: bool, broadcasts with (..., D).
        filler: a value in the support.

    Example:
        >>> import pyro.distributions as dist
        >>> law = ObservedEntries(dist.Normal(torch.zeros(2), 1.0), torch.tensor([True, False]))
        >>> law.log_prob(torch.tensor([0.0, float("nan")]))
        tensor(-0.9189)
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, entries: Any, observed: Tensor, filler: float = 0.0):
        shape = torch.broadcast_shapes(entries.batch_shape, observed.shape)
        self.entries, self.observed, self.filler = entries.expand(shape), observed, filler
        super().__init__(shape[:-1], shape[-1:], validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""
        return self.entries.has_rsample

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Anything: it depends on which entries were observed."""
        return constraints.real_vector

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all entries, (*sample_shape, ..., D)."""
        return self.entries.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all entries with gradients, (*sample_shape, ..., D)."""
        return self.entries.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the observed entries, (...)."""
        filled = torch.where(self.observed, value, self.filler)
        return torch.where(self.observed, self.entries.log_prob(filled), 0.0).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ObservedEntries":
        """The same law with a larger batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        return ObservedEntries(self.entries.expand(shape), self.observed, self.filler)


class ObservedGaussian(TorchDistribution):
    r"""The law of the observed entries of a Gaussian vector: the others are integrated out.

    .. math:: p(x_o) = \mathrm{Normal}(x_o;\; \mu_o,\; \Sigma_{oo})

    A draw has all entries.

    Args:
        law: a `MultivariateNormal` of event shape (D,).
        observed: bool, (*batch, D), broadcasts with the law's.

    Example:
        >>> import pyro.distributions as dist
        >>> law = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> ObservedGaussian(law, torch.tensor([True, False])).log_prob(torch.tensor([0.0, float("nan")]))
        tensor(-1.2655)
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    has_rsample = True

    def __init__(self, law: Any, observed: Tensor):
        shape = torch.broadcast_shapes(law.batch_shape, observed.shape[:-1])
        self.law, self.observed = law, observed
        super().__init__(shape, law.event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Vectors of real numbers."""
        return constraints.real_vector

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all entries, (*sample_shape, ..., D)."""
        return self.law.expand(self.batch_shape).rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the observed entries, (...)."""
        observed = self.observed.expand(torch.broadcast_shapes(self.observed.shape, value.shape))
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        rank = observed.dim() - 1
        # The law's dims in front of, and beside, those of the values.
        loc, tril = self.law.loc, self.law.scale_tril
        loc = loc.expand(shape + loc.shape[-1:])
        own = self.law._unbroadcasted_scale_tril
        lead = own.dim() - 2 - rank
        shared = all(size == 1 for size in own.shape[max(lead, 0) : -2])
        result = loc.new_zeros(shape)
        if not shared:
            # A matrix for each value: entries that are missing become independent, standard, and exactly met.
            keep = observed.expand(shape + observed.shape[-1:])
            residual = torch.where(keep, value - loc, 0.0)
            factor = _marginal(tril.expand(shape + tril.shape[-2:]), keep)
            return _log_density(residual, factor, keep.sum(-1))
        own = own.reshape(*own.shape[: max(lead, 0)], *own.shape[-2:])
        flat = observed.reshape(-1, observed.shape[-1])
        patterns, which = flat.unique(dim=0, return_inverse=True)
        loc = loc.reshape(*shape[: len(shape) - rank], -1, loc.shape[-1])
        value = value.expand(observed.shape).reshape(flat.shape)
        result = loc.new_zeros(loc.shape[:-1])
        for i, pattern in enumerate(patterns):
            rows = (which == i).nonzero()[:, 0]
            if not pattern.any():
                continue
            residual = torch.where(pattern, value[rows] - loc[..., rows, :], 0.0)
            factor = _marginal(own, pattern).unsqueeze(-3)
            result = result.index_copy(-1, rows, _log_density(residual, factor, pattern.sum()))
        return result.reshape(shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ObservedGaussian":
        """The same law with a larger batch shape."""
        return ObservedGaussian(self.law.expand(batch_shape), self.observed)


def _marginal(scale_tril: Tensor, observed: Tensor) -> Tensor:
    """A Cholesky factor of the covariance of the observed entries, with the unit matrix at the others."""
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    unit = torch.eye(scale_tril.shape[-1], dtype=scale_tril.dtype, device=scale_tril.device)
    return torch.linalg.cholesky(torch.where(both, scale_tril @ scale_tril.mT, unit))


def _log_density(residual: Tensor, factor: Tensor, count: Tensor) -> Tensor:
    """Of residuals (..., D) under a covariance with this Cholesky factor, with `count` entries in it."""
    white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - log_det - 0.5 * count * torch.log(residual.new_tensor(2 * torch.pi))
