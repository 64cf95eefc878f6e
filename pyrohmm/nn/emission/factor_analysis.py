"""Gaussian vectors with covariances of low rank."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, jitter, select, start
from pyrohmm.nn._free import num_trainable
from pyrohmm.nn._prior import inverse_gamma_log_prob, inverse_gamma_prior, normal_log_prob, normal_prior
from pyrohmm.nn.emission.entries import ObservedGaussian
from pyrohmm.nn.emission.gaussian import NARROW, middle, moments, moments_given, total_variance
from pyrohmm.nn.emission.table import TableEmission
from pyrohmm.nn.part import EMPTY, LEAST_WEIGHT, Events, Statistics, assign, table

# Of EM for the factors in each M-step. They need the sums only, not the data, so they cost next to nothing.
INNER_STEPS = 10


class FactorAnalysisEmission(TableEmission):
    r"""D real numbers that a few common factors make depend on each other.

    .. math:: p(x \mid z = k) = \mathrm{Normal}(x;\; \mu_k,\; W_k W_k^T + \mathrm{diag}(\sigma_k^2))

    That is x = mu_k + W_k u + noise, with Q standard normal factors u. With K states it is a mixture of factor
    analysers along a chain, with D (Q + 2) numbers a state in place of the D (D + 3) / 2 of a full covariance. The
    M-step improves W and sigma by EM on the factors, without reaching the maximum at once; with a prior on the means,
    these are the best ones given W and sigma.

    Args:
        num_states: K.
        dim: D.
        rank: Q, from 1 to D.
        loc: the start of the means, as in `GaussianEmission`.
        scale: the start of the standard deviations sigma, what broadcasts to (K, D); one if None.
        noise: size of the normal noise at the start, in units of `scale`: of the means, unless `loc` is (K, D).
            The factors start as half of such noise, unless given.
        factors: the start of W, (K, D, Q), in units of the data; from noise if None. Where it is 0, EM leaves it so.
        least_scale: the M-step keeps every sigma above this part of the standard deviation of all data: without a
            bound a factor could explain an entry exactly, with an infinite likelihood.
        loc_prior: `Normal` on each mean, with parameters that broadcast to (K, D).
        factors_prior: `Normal` on each entry of W, with parameters that broadcast to (K, D, Q); of mean 0 it does not
            see rotations of the factors.
        noise_prior: `InverseGamma` on each sigma^2, with parameters that broadcast to (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        loc: (K, D) parameter, in the units of the data.
        factors: (K, D, Q) parameter, in the same units; known up to a rotation of the factors.
        log_scale: (K, D) parameter, log of sigma.
        centre: (D,) buffer, as in `GaussianEmission`.
        num_states, rank, event_shape, order: K, Q, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, a `rank` above D, a start of another shape, not finite,
            or not positive (`scale`), a prior that does not fit.

    Reference:
        Rubin and Thayer (1982), "EM algorithms for ML factor analysis"; Ghahramani and Hinton (1996), "The EM
        algorithm for mixtures of factor analyzers".

    >>> emission = FactorAnalysisEmission(2, 5, 1, factors=1.0)
    >>> emission(torch.tensor(0)).covariance_matrix[0, :2].detach()
    tensor([2., 1.])
    """

    _shared = ("centre",)

    def __init__(
        self,
        num_states: int,
        dim: int,
        rank: int,
        *,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        factors: Any = None,
        least_scale: float = 1e-3,
        loc_prior: Any = None,
        factors_prior: Any = None,
        noise_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, (count("dim", dim),))
        self.rank = count("rank", rank)
        if rank > dim:
            raise ValueError(f"rank: expected at most dim={dim}, got {rank}")
        shape = num_states, dim
        deviation = start("scale", 1.0 if scale is None else scale, shape, 0)
        mean = start("loc", 0.0 if loc is None else loc, shape)
        self.loc = nn.Parameter(mean + noise * deviation * jitter(loc, shape, generator))
        self.log_scale = nn.Parameter(deviation.log())
        if factors is None:
            factors = 0.5 * deviation.unsqueeze(-1) * jitter(None, (*shape, rank), generator)
        self.factors = nn.Parameter(start("factors", factors, (*shape, rank)))
        self.register_buffer("centre", self.loc.detach().mean(0))
        self.least_scale = float(start("least_scale", least_scale, (), 0))
        self.register_buffer("prior_loc", normal_prior(loc_prior, shape, "loc_prior"))
        self.register_buffer("prior_factors", normal_prior(factors_prior, (*shape, rank), "factors_prior"))
        self.register_buffer("prior_noise", inverse_gamma_prior(noise_prior, shape, "noise_prior"))

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        loc, factors = select(self.loc, state), select(self.factors, state, 2)
        variance = select((2 * self.log_scale).exp(), state)
        if observed is None:
            return dist.LowRankMultivariateNormal(loc, factors, variance)
        covariance = factors @ factors.mT + variance.diag_embed()
        return ObservedGaussian(dist.MultivariateNormal(loc, covariance), observed)

    def log_prior(self) -> Tensor:
        """The log-density of the parameters under the priors, up to a constant, () or (R,); see `Part`."""
        total = super().log_prior()
        if self.prior_loc is not None:
            total = total + normal_log_prob(table(self.loc, 2), self.prior_loc).sum((-2, -1))
        if self.prior_factors is not None:
            total = total + normal_log_prob(table(self.factors, 3), self.prior_factors).sum((-3, -2, -1))
        if self.prior_noise is not None:
            total = total + inverse_gamma_log_prob(2 * table(self.log_scale, 2), self.prior_noise).sum((-2, -1))
        return total

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Take sums for EM from the mean of these observations (M, D) from now on."""
        self.centre.copy_(middle(x, observed))

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Weights and the first two moments about `centre`, as of a full covariance; see `TableEmission`.

        Returns:
            "weight" (*lead, K), "first" (*lead, K, D), "second" (*lead, K, D, D).
        """
        centre = self.centre.double()
        if observed is None or observed.all():
            return moments(x, weights, centre)
        factors, variance = self._tables()
        covariance = factors @ factors.mT + variance.diag_embed()
        return moments_given(x, weights, observed, centre, table(self.loc.detach(), 2), covariance)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """W and sigma^2, in float64."""
        variance = (2 * table(self.log_scale.detach(), 2).double()).exp()
        return table(self.factors.detach(), 3).double(), variance

    def maximize(self, statistics: Statistics) -> Events:
        """The best means, and better factors and standard deviations of the noise; see `TableEmission`."""
        weight, first, second = (statistics[name] for name in ("weight", "first", "second"))
        centre = self.centre.double()
        empty = weight <= LEAST_WEIGHT
        count = weight.masked_fill(empty, 1.0).unsqueeze(-1)
        old = table(self.loc.detach(), 2).double()
        assign(self.loc, torch.where(empty.unsqueeze(-1), old, self._best_off(count, first, centre) + centre))
        # About the means as they are now, which may be frozen.
        off, mean = table(self.loc.detach(), 2).double() - centre, first / count
        cross = off.unsqueeze(-1) * mean.unsqueeze(-2)
        spread = second / count.unsqueeze(-1) - cross - cross.mT + off.unsqueeze(-1) * off.unsqueeze(-2)

        squares = second.diagonal(dim1=-2, dim2=-1)
        unit_variance = total_variance(weight.unsqueeze(-1), first, squares, centre)
        least = self.least_scale**2 * unit_variance.unsqueeze(-2)
        factors, variance = old_factors, old_variance = self._tables()
        for _ in range(INNER_STEPS):
            factors, variance = self._improved(factors, variance, spread, least, count)
        assign(self.factors, torch.where(empty[..., None, None], old_factors, factors))
        variance = torch.where(empty.unsqueeze(-1), old_variance, variance)
        assign(self.log_scale, 0.5 * variance.log())
        return {EMPTY: empty, NARROW: (variance <= least).any(-1) & ~empty}

    def _best_off(self, count: Tensor, first: Tensor, centre: Tensor) -> Tensor:
        """The best means given the covariances, less the centre."""
        if self.prior_loc is None:
            return first / count
        loc, scale = self.prior_loc.double().unbind(-1)
        factors, variance = self._tables()
        precision = torch.linalg.inv(factors @ factors.mT + variance.diag_embed())
        pull = (precision @ first.unsqueeze(-1)).squeeze(-1) + (loc - centre) * scale**-2
        curvature = count.unsqueeze(-1) * precision + (scale**-2).diag_embed()
        return torch.linalg.solve(curvature, pull.unsqueeze(-1)).squeeze(-1)

    def _improved(
        self, factors: Tensor, variance: Tensor, spread: Tensor, least: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of EM, from the covariance of `count` data."""
        scaled = factors / variance.unsqueeze(-1)
        unit = torch.eye(self.rank, dtype=factors.dtype, device=factors.device)
        # Of the factors given x: this covariance, and the mean gain^T (x - loc).
        covariance = torch.linalg.inv(unit + factors.mT @ scaled)
        gain = scaled @ covariance
        with_data = spread @ gain
        second = covariance + gain.mT @ with_data
        if self.factors.requires_grad:
            factors = self._best_factors(second, with_data, count / variance)
        if self.log_scale.requires_grad:
            left = spread.diagonal(dim1=-2, dim2=-1) + ((factors @ second - 2 * with_data) * factors).sum(-1)
            if self.prior_noise is not None:
                concentration, rate = self.prior_noise.double().unbind(-1)
                left = (count * left + 2 * rate) / (count + 2 * (concentration + 1))
            variance = torch.maximum(left, least)
        return factors, variance

    def _best_factors(self, second: Tensor, with_data: Tensor, worth: Tensor) -> Tensor:
        """Given the moments of the hidden factors, and with each other's and the data's; `worth` is n / sigma^2."""
        if self.prior_factors is None:
            return torch.linalg.solve(second, with_data.mT).mT
        loc, scale = self.prior_factors.double().unbind(-1)
        curvature = worth[..., None, None] * second.unsqueeze(-3) + (scale**-2).diag_embed()
        pull = worth.unsqueeze(-1) * with_data + loc * scale**-2
        return torch.linalg.solve(curvature, pull.unsqueeze(-1)).squeeze(-1)

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, less the rotations of the factors, Q (Q - 1) / 2 for each state."""
        rotations = self.rank * (self.rank - 1) // 2 if self.factors.requires_grad else 0
        return num_trainable(self) - self.num_states * rotations
