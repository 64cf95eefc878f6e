"""Real vectors."""

from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, jitter, select, start
from pyrohmm.nn._conjugate import GaussianEntries, GaussianVectors
from pyrohmm.nn.emission.entries import ObservedGaussian, independent
from pyrohmm.nn.emission.products import Products, log_density, products, sums
from pyrohmm.nn.emission.table import TableEmission
from pyrohmm.nn.part import BLOCK, EMPTY, LEAST_WEIGHT, Events, Statistics, add_up, assign, table, weighted_sums
from pyrohmm.nn.priors import NormalInverseGamma, NormalInverseWishart
from pyrohmm.ops.gaussian import api as gaussian

NARROW = "standard deviation kept at the least one, too few distinct points"


class GaussianEmission(TableEmission):
    """D real numbers: p(x | z = k) = Normal(x; loc_k, S_k).

    With scale = exp(log_scale), the covariance S_k is, by `covariance`,
    "diag": diag(scale_k^2), log_scale (K, D);
    "spherical": scale_k^2 times the unit matrix, log_scale (K,);
    "full": L_k L_k^T, L_k = diag(scale_k) (I + N_k), log_scale (K, D) and the entries of the strictly lower triangular
    N_k, row by row, lower (K, D (D - 1) / 2);
    "tied": the same L L^T for all states, log_scale (D,) and lower (D (D - 1) / 2).

    So scale_kd is the standard deviation of x_d, with "full" and "tied" given x_1 ... x_{d-1}, and lower has no units.

    Args:
        num_states: K.
        dim: D.
        covariance: "diag", "full", "tied" or "spherical".
        loc: the start of the means, a number, (D,) for all states or (K, D); zero if None. The mean of the data is a
            good one.
        scale: the start of the standard deviations, a number or a shape that broadcasts to (K, D) for "diag" and
            "full", (D,) for "tied", (K,) for "spherical"; one if None. The standard deviation of the data is a good
            one.
        noise: size of the normal noise added to the means at the start, in units of `scale`, unless `loc` is (K, D).
        least_scale: the M-step of EM keeps every standard deviation, in any direction, above this part of that of all
            data (in coordinates of unit variance): without a bound a state that claims a single point would have an
            infinite likelihood.
        prior: `NormalInverseGamma` for "diag" and "spherical", `NormalInverseWishart` for "full" and "tied".
        generator: source of the noise; torch's global one if None.

    Attributes:
        loc: (K, D) parameter, in the units of the data.
        log_scale: parameter, log of the units of the data, shape as above.
        lower: parameter with "full" and "tied", zero at the start, shape as above.
        centre: (D,) buffer, the mean of the first `loc`, from which the sums for EM are taken so that they do not
            lose digits.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, another `covariance`, a `loc` or `scale` of another
            shape, not finite, or not positive (`scale`), a `prior` that does not fit.

    >>> emission = GaussianEmission(2, 3, loc=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], scale=2.0)
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.event_shape, law.stddev[1].detach()
    (torch.Size([3]), tensor([2., 2., 2.]))
    >>> GaussianEmission(2, 3, "full")(torch.tensor([0, 1])).covariance_matrix.shape
    torch.Size([2, 3, 3])
    """

    # Whether there is a prior on the covariances, be it with one on the means or without.
    _covariance_prior: bool = False

    def __init__(
        self,
        num_states: int,
        dim: int,
        covariance: Literal["diag", "full", "tied", "spherical"] = "diag",
        *,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        least_scale: float = 1e-3,
        prior: NormalInverseGamma | NormalInverseWishart | None = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, (count("dim", dim),))
        shapes = {"diag": (num_states, dim), "full": (num_states, dim), "tied": (dim,), "spherical": (num_states,)}
        if covariance not in shapes:
            raise ValueError(f"covariance: expected one of {', '.join(shapes)}, got {covariance!r}")
        self.covariance = covariance
        tied = ("log_scale", "lower", "prior_shape", "prior_scale") if covariance == "tied" else ()
        self._shared = ("centre", *tied)
        deviation = start("scale", 1.0 if scale is None else scale, shapes[covariance], 0)
        mean = start("loc", 0.0 if loc is None else loc, (num_states, dim))
        unit = deviation.unsqueeze(-1) if covariance == "spherical" else deviation
        self.loc = nn.Parameter(mean + noise * unit * jitter(loc, (num_states, dim), generator))
        self.log_scale = nn.Parameter(deviation.log())
        if covariance in ("full", "tied"):
            self.lower = nn.Parameter(torch.zeros(*deviation.shape[:-1], dim * (dim - 1) // 2))

        self.register_buffer("centre", self.loc.detach().mean(0))
        self.least_scale = float(start("least_scale", least_scale, (), 0))
        self._set_prior(prior)

    def _set_prior(self, prior: Any) -> None:
        wishart = self.covariance in ("full", "tied")
        family = NormalInverseWishart if wishart else NormalInverseGamma
        self.prior_family = None if prior is None else family
        if prior is None:
            return
        if not isinstance(prior, family):
            raise TypeError(
                f"prior: expected a {family.__name__} for covariance={self.covariance!r}, got {type(prior).__name__}"
            )
        num_states, dim = self.loc.shape
        self.register_buffer("prior_loc", start("prior.loc", prior.loc, (num_states, dim)))
        self.register_buffer("prior_strength", start("prior.strength", prior.strength, (num_states, 1), 0))
        self._set_covariance_prior(prior, "prior")

    def _set_covariance_prior(self, prior: Any, name: str) -> None:
        """What a prior says of the covariances, by degrees and scale or by concentration and rate."""
        num_states, dim = self.loc.shape
        own = {"diag": (num_states, dim), "spherical": (num_states,), "full": (num_states,), "tied": ()}[
            self.covariance
        ]
        self._covariance_prior = True
        if self.covariance in ("full", "tied"):
            degrees = torch.as_tensor(prior.degrees)
            degrees = degrees.squeeze(-1) if degrees.dim() == 2 else degrees
            self.register_buffer("prior_shape", start(f"{name}.degrees", degrees, own, dim - 1))
            scale = start(f"{name}.scale", prior.scale, (*own, dim, dim))
            if torch.linalg.cholesky_ex(scale).info.any() or not torch.allclose(scale, scale.mT):
                raise ValueError(f"{name}.scale: expected positive definite matrices, got {prior.scale}")
            self.register_buffer("prior_scale", scale)
        else:
            squeezed = [torch.as_tensor(value) for value in (prior.concentration, prior.rate)]
            if self.covariance == "spherical":
                squeezed = [value.squeeze(-1) if value.dim() == 2 else value for value in squeezed]
            self.register_buffer("prior_shape", start(f"{name}.concentration", squeezed[0], own, 0))
            self.register_buffer("prior_scale", start(f"{name}.rate", squeezed[1], own, 0))

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        return self._about(select(self.loc, state), state, observed)

    def _about(self, loc: Tensor, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        """The law with the covariance of the state and these means."""
        scale = self.log_scale.exp()
        if self.covariance == "diag":
            return independent(dist.Normal(loc, select(scale, state)), observed)
        if self.covariance == "spherical":
            return independent(dist.Normal(loc, select(scale, state, 0).unsqueeze(-1)), observed)
        factor = self._scale_tril(scale)
        if self.covariance == "full":
            factor = select(factor, state, 2)
        law = dist.MultivariateNormal(loc, scale_tril=factor)
        return law if observed is None else ObservedGaussian(law, observed)

    def _scale_tril(self, scale: Tensor) -> Tensor:
        lower, dim = self.lower, scale.shape[-1]
        row, column = torch.tril_indices(dim, dim, -1, device=scale.device)
        flat = lower.new_zeros(*lower.shape[:-1], dim * dim).index_copy(-1, row * dim + column, lower)
        unit = flat.unflatten(-1, (dim, dim)) + torch.eye(dim, dtype=scale.dtype, device=scale.device)
        return scale.unsqueeze(-1) * unit

    def log_prior(self) -> Tensor:
        """The log-density of means and covariances under the prior, up to a constant, () or (R,); see `Part`."""
        if not self._covariance_prior:
            return super().log_prior()
        dim, shape, scale = self.loc.shape[-1], self.prior_shape, self.prior_scale
        off = None if self.prior_family is None else table(self.loc, 2) - self.prior_loc
        if self.covariance in ("diag", "spherical"):
            dims = 2 if self.covariance == "diag" else 1
            log_variance = 2 * table(self.log_scale, dims)
            density = (-(shape + 1) * log_variance - scale / log_variance.exp()).flatten(-dims).sum(-1)
            if off is None:
                return density
            wide = log_variance if dims == 2 else log_variance.unsqueeze(-1)
            mean = -0.5 * (wide + self.prior_strength * off.square() / wide.exp())
            return density + mean.sum((-2, -1))
        factor = self._scale_tril(self.log_scale.exp())
        factor = table(factor, 3 if self.covariance == "full" else 2)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        inverse = torch.cholesky_inverse(factor)
        density = -0.5 * (shape + dim + 1) * log_det - 0.5 * (scale * inverse).sum((-2, -1))
        density = density.sum(-1) if self.covariance == "full" else density
        if off is None:
            return density
        if self.covariance == "tied":
            log_det, inverse = log_det.unsqueeze(-1), inverse.unsqueeze(-3)
        squares = (off.unsqueeze(-2) @ inverse @ off.unsqueeze(-1)).squeeze((-2, -1))
        return density - 0.5 * (log_det + self.prior_strength.squeeze(-1) * squares).sum(-1)

    def conjugate_prior(self) -> GaussianEntries | GaussianVectors:
        """The normal-inverse-gamma or normal-inverse-Wishart prior of each state; see `Part`."""
        if type(self) is not GaussianEmission:
            super().conjugate_prior()
        wishart = self.covariance in ("full", "tied")
        if self.prior_family is None:
            family = NormalInverseWishart if wishart else NormalInverseGamma
            raise ValueError(f"prior: expected a {family.__name__} on means and covariances, got None")
        loc, strength, shape, scale, centre = (
            value.detach().double()
            for value in (self.prior_loc, self.prior_strength, self.prior_shape, self.prior_scale, self.centre)
        )
        if wishart:
            return GaussianVectors(NormalInverseWishart(loc, strength, shape, scale), centre)
        return GaussianEntries(NormalInverseGamma(loc, strength.expand(loc.shape), shape, scale), centre)

    def tables(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means, and what makes the variances or covariances; see `Part`."""
        loc = values["loc"]
        if "variance" in values:
            return {"loc": loc, "log_scale": 0.5 * values["variance"].log()}
        known = values.get("scale_tril")
        factor = torch.linalg.cholesky(values["covariance"]) if known is None else known
        scale = factor.diagonal(dim1=-2, dim2=-1)
        row, column = torch.tril_indices(factor.shape[-1], factor.shape[-1], -1, device=factor.device)
        return {"loc": loc, "log_scale": scale.log(), "lower": (factor / scale.unsqueeze(-1))[..., row, column]}

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Take sums for EM from the mean of these observations (M, D) from now on."""
        self.centre.copy_(middle(x, observed))

    def products(self, x: Tensor, observed: Tensor) -> Tensor | Products | None:
        """What the two methods below need of all steps for many steps of EM; None if that would be large.

        Args:
            x: (M, D).
            observed: bool (M,), False at steps that are missing or padding, which are not read.
        """
        # Subclasses have other laws.
        if type(self) is not GaussianEmission:
            return None
        if not observed.all():
            x = torch.where(observed.unsqueeze(-1), x, self.centre.to(x.dtype))
        return products(x, self.centre.double()) if self.covariance in ("full", "tied") else x

    def log_prob_of_products(self, made: Tensor | Products) -> Tensor | None:
        """The log-density of every observation in every state, (*lead, M, K), in the dtype of the means.

        Without gradients; None if it would be inaccurate.
        """
        loc = table(self.loc.detach(), 2)
        if isinstance(made, Tensor):
            dims = 2 if self.covariance == "diag" else 1
            scale = table(self.log_scale.detach(), dims).exp()
            return gaussian.log_density(made, loc, scale if dims == 2 else scale.unsqueeze(-1)).to(loc.dtype)
        off = loc.double() - self.centre.double()
        factor = self._factors()
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        precision = torch.cholesky_inverse(factor).expand(*off.shape, off.shape[-1])
        return log_density(made, off, precision, log_det.expand(off.shape[:-1]), loc.dtype)

    def statistics_of_products(self, made: Tensor | Products, weights: Tensor) -> Statistics:
        """As `expected_statistics`."""
        return self.expected_statistics(made, weights) if isinstance(made, Tensor) else sums(made, weights)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Weights and the first two moments about `centre`; see `TableEmission`.

        With "full" and "tied", entries that are missing stand with their moments given the others under the present
        parameters.

        Returns:
            "weight", (*lead, K, D) for "diag" and "spherical", else (*lead, K); "first" (*lead, K, D); "second"
            (*lead, K, D) or (*lead, K, D, D).
        """
        dim = x.shape[-1]
        centre = self.centre.double()
        if self.covariance in ("diag", "spherical"):
            if observed is None:
                weight, first, second = gaussian.moments(x, weights, centre)
                return {"weight": weight.unsqueeze(-1).expand(first.shape), "first": first, "second": second}

            def features(rows: slice) -> Tensor:
                block = x[rows].double() - centre
                seen = observed[rows].double()
                block = torch.where(observed[rows], block, 0.0)
                return torch.cat([seen, block, block.square()], -1)

            sums = weighted_sums(weights, features, 3 * dim).split(dim, -1)
            return dict(zip(("weight", "first", "second"), sums, strict=True))

        if observed is None or observed.all():
            return moments(x, weights, centre)
        return moments_given(x, weights, observed, centre, table(self.loc.detach(), 2), self._covariances())

    def _covariances(self) -> Tensor:
        """With "full" and "tied", (*lead, K or 1, D, D) in float64."""
        factor = self._factors()
        return factor @ factor.mT

    def _factors(self) -> Tensor:
        """Those of Cholesky, as `_covariances`."""
        factor = self._scale_tril(self.log_scale.exp()).detach().double()
        return table(factor, 3) if self.covariance == "full" else table(factor, 2).unsqueeze(-3)

    def maximize(self, statistics: Statistics) -> Events:
        """Set means and covariances to the best ones, with every standard deviation at least `least_scale`.

        Without a prior they are the weighted means and covariances. See `TableEmission`.

        >>> emission = GaussianEmission(1, 1)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> _ = emission.maximize(emission.expected_statistics(x, torch.ones(2, 1)))
        >>> emission.loc.item(), round(emission.log_scale.exp().item(), 4)
        (2.0, 1.0)
        """
        weight, first, second = (statistics[name] for name in ("weight", "first", "second"))
        full = self.covariance in ("full", "tied")
        centre = self.centre.double()
        wide = weight.unsqueeze(-1) if full else weight
        worth = 0.0
        if self.prior_family is not None:
            worth = self.prior_strength.double()
            first_and_prior = first + worth * (self.prior_loc.double() - centre)
        else:
            first_and_prior = first
        empty = wide + worth <= LEAST_WEIGHT
        loc = first_and_prior / (wide + worth).masked_fill(empty, 1.0) + centre
        parameter = self.loc
        assign(parameter, torch.where(empty, table(parameter.detach(), 2).double(), loc))

        # Squares about the means, which may be frozen.
        off = table(parameter.detach(), 2).double() - centre
        if not full:
            variance = total_variance(weight, first, second, centre)
            squares = second - 2 * off * first + weight * off.square()
            return {EMPTY: empty.any(-1), NARROW: self._set_scales(squares, weight, empty, variance)}
        variance = total_variance(wide, first, second.diagonal(dim1=-2, dim2=-1), centre)
        cross = off.unsqueeze(-1) * first.unsqueeze(-2)
        squares = second - cross - cross.mT + wide.unsqueeze(-1) * off.unsqueeze(-1) * off.unsqueeze(-2)
        return {EMPTY: empty.any(-1), NARROW: self._set_covariances(squares, weight, empty.any(-1), variance)}

    def _set_scales(self, squares: Tensor, weight: Tensor, empty: Tensor, total_variance: Tensor) -> Tensor:
        """The M-step of variances, from sums of squares about the means (*lead, K, D)."""
        spherical = self.covariance == "spherical"
        if self.prior_family is not None:
            off = table(self.loc.detach(), 2).double() - self.prior_loc
            squares = squares + self.prior_strength * off.square()
            weight = weight + 1
        least = self.least_scale**2 * total_variance.unsqueeze(-2)
        if spherical:
            squares, weight, least, empty = squares.sum(-1), weight.sum(-1), least.mean(-1), empty.all(-1)
        if self._covariance_prior:
            squares, weight = squares + 2 * self.prior_scale, weight + 2 * (self.prior_shape + 1)
        variance = squares / weight.masked_fill(empty, 1.0)
        narrow = (variance < least) & ~empty
        parameter = self.log_scale
        old = table(parameter.detach(), 1 if spherical else 2).double()
        assign(parameter, torch.where(empty, old, 0.5 * torch.maximum(variance, least).log()))
        return narrow if spherical else narrow.any(-1)

    def _set_covariances(self, squares: Tensor, weight: Tensor, empty: Tensor, total_variance: Tensor) -> Tensor:
        """The M-step of covariances, from sums of products about the means (*lead, K, D, D)."""
        tied, dim = self.covariance == "tied", squares.shape[-1]
        if self.prior_family is not None:
            off = table(self.loc.detach(), 2).double() - self.prior_loc
            worth = self.prior_strength.unsqueeze(-1)
            squares, weight = squares + worth * off.unsqueeze(-1) * off.unsqueeze(-2), weight + 1
        if tied:
            squares, weight, empty = squares.sum(-3), weight.sum(-1), empty.all(-1)
        if self._covariance_prior:
            squares, weight = squares + self.prior_scale, weight + self.prior_shape + dim + 1
        covariance = squares / weight.masked_fill(empty, 1.0)[..., None, None]
        # In coordinates in which all data have unit variance, no eigenvalue is below the bound.
        unit = total_variance.sqrt() if tied else total_variance.sqrt().unsqueeze(-2)
        outer = unit.unsqueeze(-1) * unit.unsqueeze(-2)
        values, vectors = torch.linalg.eigh(covariance / outer)
        least = self.least_scale**2
        narrow = (values[..., 0] < least) & ~empty
        clipped = (vectors * values.clamp_min(least).unsqueeze(-2)) @ vectors.mT
        covariance = torch.where(narrow[..., None, None], clipped * outer, covariance)
        covariance = torch.where(empty[..., None, None], torch.eye(dim).to(covariance), covariance)
        factor = torch.linalg.cholesky(covariance)
        dims = 1 if tied else 2

        def put(parameter: Tensor, new: Tensor) -> Tensor:
            old = table(parameter.detach(), dims).double()
            assign(parameter, torch.where(empty.unsqueeze(-1), old, new))
            return table(parameter.detach(), dims).double()

        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        scale = diagonal
        if not self.lower.requires_grad:
            unit = self._scale_tril(torch.ones_like(self.log_scale)).detach()
            scale = _best_scales(covariance, table(unit, dims + 1).double(), table(self.log_scale.detach(), dims))
        scale = put(self.log_scale, scale.log()).exp()
        # With scales that are frozen, the best matrix beside them: with its own it is that of the factor.
        row, column = torch.tril_indices(dim, dim, -1, device=factor.device)
        put(self.lower, (factor / scale.unsqueeze(-1) * (scale / diagonal).unsqueeze(-2))[..., row, column])
        return narrow.unsqueeze(-1) if tied else narrow


def _best_scales(covariance: Tensor, unit: Tensor, log_scale: Tensor) -> Tensor:
    """Scales s for which diag(s) unit unit^T diag(s) is the most likely covariance, from data of a given one.

    sum_i log u_i - 1/2 sum_ij u_i A_ij C_ij u_j, with u = 1 / s and A = (unit unit^T)^-1, is made larger in one entry
    after the other, which has a closed form.

    Args:
        covariance: C, (..., D, D), of the data.
        unit: (..., D, D), unit lower triangular.
        log_scale: (..., D), where to begin.
    """
    product = torch.cholesky_inverse(unit) * covariance
    inverse = (-log_scale.double()).exp()
    for _ in range(10):
        for i in range(inverse.shape[-1]):
            square = product[..., i, i]
            cross = (product[..., i, :] * inverse).sum(-1) - square * inverse[..., i]
            inverse[..., i] = ((cross.square() + 4 * square).sqrt() - cross) / (2 * square)
    return 1 / inverse


def middle(x: Tensor, observed: Tensor | None) -> Tensor:
    """The mean of what was observed of each entry of x (M, D), in float64."""
    x = x.double()
    seen = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
    return torch.where(seen, x, 0.0).sum(0) / seen.sum(0).clamp(min=1)


def total_variance(weight: Tensor, first: Tensor, second: Tensor, centre: Tensor) -> Tensor:
    """That of the data of all states, (*lead, D); where they do not vary, a millionth of their squares.

    Args:
        weight: (*lead, K, D or 1).
        first: (*lead, K, D), the sums about `centre`.
        second: (*lead, K, D), those of the squares.
        centre: (D,).
    """
    weight = weight.sum(-2).clamp_min(LEAST_WEIGHT)
    mean = first.sum(-2) / weight
    variance = second.sum(-2) / weight - mean.square()
    size = (mean + centre).square()
    # What is left of a difference of equal numbers counts as nothing.
    nothing = variance <= 1e-12 * mean.square()
    return torch.where(nothing, 1e-6 * torch.where(size > 0, size, 1.0), variance)


def moments(x: Tensor, weights: Tensor, centre: Tensor) -> Statistics:
    """Sums of vectors and of their products about `centre`.

    Args:
        x: (M, D).
        weights: (*lead, M, K).
        centre: (D,).

    Returns:
        "weight" (*lead, K), "first" (*lead, K, D), "second" (*lead, K, D, D), in float64.
    """
    dim = x.shape[-1]

    def products(rows: slice) -> Tensor:
        block = x[rows].double() - centre
        square = (block.unsqueeze(-1) * block.unsqueeze(-2)).flatten(-2)
        return torch.cat([block.new_ones(len(block), 1), block, square], -1)

    weight, first, second = weighted_sums(weights, products, dim * (dim + 1)).split([1, dim, dim * dim], -1)
    return {"weight": weight[..., 0], "first": first, "second": second.unflatten(-1, (dim, dim))}


def moments_given(
    x: Tensor, weights: Tensor, observed: Tensor, centre: Tensor, loc: Tensor, covariance: Tensor
) -> Statistics:
    """As `moments`, with the entries that are missing as their law given the others says, pattern by pattern.

    Args:
        x: (M, D).
        weights: (*lead, M, K).
        observed: bool (M, D).
        centre: (D,).
        loc: (*lead, K, D), of the law.
        covariance: (*lead, K or 1, D, D), float64.
    """
    sums: Statistics = {}
    patterns, which = observed.unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        rows = (which == i).nonzero()[:, 0]
        if pattern.all():
            add_up(sums, moments(x[rows], weights[..., rows, :], centre))
            continue
        mean = (loc.double() - centre).unsqueeze(-2)
        for some in rows.split(max(1, BLOCK // mean.numel())):
            weight = weights[..., some, :].double()
            block, rest = filled_in(x[some].double() - centre, mean, covariance, pattern)
            scaled = block * weight.mT.unsqueeze(-1)
            total = weight.sum(-2)
            second = scaled.mT @ block + total[..., None, None] * rest
            add_up(sums, {"weight": total, "first": scaled.sum(-2), "second": second})
    return sums


def filled_in(x: Tensor, mean: Tensor, covariance: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The moments of Gaussian vectors of which the same entries were observed, given these.

    Args:
        x: (M, D); what was not observed is not read.
        mean: what broadcasts to (*lead, K, M, D).
        covariance: (*lead, K or 1, D, D).
        observed: bool (D,).

    Returns:
        the conditional means (*lead, K, M, D), and the conditional covariance, 0 where observed, as `covariance`.
    """
    here, away = observed.nonzero()[:, 0], (~observed).nonzero()[:, 0]
    # E[x_away | x_here] = loc_away + gain (x_here - loc_here), with what is left of the covariance.
    known = covariance[..., here[:, None], here]
    gain = torch.linalg.solve(known, covariance[..., here[:, None], away]).mT
    residual = x[:, here] - mean[..., here]
    filled = mean.expand(*residual.shape[:-1], -1).clone()
    filled[..., here] += residual
    filled[..., away] += residual @ gain.mT
    rest = torch.zeros_like(covariance)
    rest[..., away[:, None], away] = covariance[..., away[:, None], away] - gain @ covariance[..., here[:, None], away]
    return filled, rest
