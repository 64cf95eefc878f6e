"""The parameters of a part as sites of a Pyro program, under the part's conjugate prior."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyrohmm.distributions.sorted import Sorted
from pyrohmm.nn import NormalInverseGamma, NormalInverseWishart, Part
from pyrohmm.nn._conjugate import Values


class ParameterSites(ABC):
    """Sites whose values make the parameters of a part, as `Part.given` and `Part.put` take them."""

    @abstractmethod
    def sample(self) -> Values:
        """The Pyro program: the sites, and what they make of the parameters."""

    @abstractmethod
    def values(self, draw: Mapping[str, Tensor]) -> Values:
        """What the values of the sites in one draw make of the parameters.

        Raises:
            ValueError: a site is missing.
        """


def parameter_sites(name: str, part: Part, *, ordered: bool, dtype: torch.dtype) -> ParameterSites:
    """The sites of a part.

    Args:
        name: of the part, "initial", "transition" or "emission"; of the first two the site has it too.
        part: with a conjugate prior.
        ordered: whether the first entries of the means of Gaussians increase with the state.
        dtype: of the prior.

    Raises:
        TypeError, ValueError: the part has no conjugate prior.

    >>> from pyrohmm.nn import PoissonEmission
    >>> emission = PoissonEmission(2, 3, prior=dist.Gamma(2.0, 1.0))
    >>> sites = parameter_sites("emission", emission, ordered=False, dtype=torch.float32)
    >>> sites.values({"rate": torch.ones(2, 3)})["log_rate"].shape
    torch.Size([2, 3])
    """
    law: Any = part.conjugate_prior().law
    numbers = law if isinstance(law, tuple) else [getattr(law, parameter) for parameter in law.arg_constraints]
    law = type(law)(*(value.to(dtype) for value in numbers))
    match law:
        case dist.Dirichlet():
            return _OneSite("probs" if name == "emission" else name, law, "logits", _log)
        case dist.Beta():
            return _OneSite("probs", law, "logits", lambda probs: probs.logit(torch.finfo(probs.dtype).eps))
        case dist.Gamma():
            return _OneSite("rate", law, "log_rate", _log)
        case NormalInverseWishart():
            return _Vectors(law)
    return _OrderedEntries(law) if ordered else _Entries(law)


class _OneSite(ParameterSites):
    """Probabilities or rates, all independent but for the rows of the former."""

    def __init__(self, site: str, law: Any, parameter: str, transform: Callable[[Tensor], Tensor]):
        self.site, self.law, self.parameter, self.transform = site, law, parameter, transform

    def sample(self) -> Values:
        return self.values({self.site: pyro.sample(self.site, self.law.to_event())})

    def values(self, draw: Mapping[str, Tensor]) -> Values:
        return {self.parameter: self.transform(_site(draw, self.site))}


class _Entries(ParameterSites):
    """Means (K, D) and precisions, (K, D) or, of all entries at once, (K,)."""

    def __init__(self, law: NormalInverseGamma):
        self.law = law

    def sample(self) -> Values:
        precision = pyro.sample("precision", self.law.precision.to_event())
        normal = dist.Normal(self.law.loc, (self.law.strength * self._wide(precision)).rsqrt())
        return self.values({"precision": precision, "loc": pyro.sample("loc", normal.to_event(2))})

    def values(self, draw: Mapping[str, Tensor]) -> Values:
        return {"loc": _site(draw, "loc"), "variance": 1 / _site(draw, "precision")}

    def _wide(self, value: Tensor) -> Tensor:
        """What belongs to a precision, as (..., K, D) or (..., K, 1)."""
        return value if self.law.rate.dim() == 2 else value.unsqueeze(-1)


class _OrderedEntries(_Entries):
    """The first entry of each mean before the precision, which then knows of it: their joint law is the same."""

    def sample(self) -> Values:
        loc, strength, shape, rate = self.law
        middle, worth, a, b = (value[:, 0] for value in (loc, strength, self._wide(shape), self._wide(rate)))
        first = pyro.sample("ordered_loc", Sorted(dist.StudentT(2 * a, middle, (b / (a * worth)).sqrt())))
        squares = worth * (first - middle).square()
        if shape.dim() == 2:
            # Only the precision of this entry.
            others = (0, shape.shape[-1] - 1)
            squares, steps = pad(squares.unsqueeze(-1), others), pad(torch.ones_like(shape[:, :1]), others)
        else:
            steps = torch.ones_like(shape)
        precision = pyro.sample("precision", dist.Gamma(shape + steps / 2, rate + squares / 2).to_event(shape.dim()))
        draw = {"ordered_loc": first, "precision": precision}
        if loc.shape[-1] > 1:
            scale = (strength * self._wide(precision)).rsqrt()
            draw["other_loc"] = pyro.sample("other_loc", dist.Normal(loc[:, 1:], scale[..., 1:]).to_event(2))
        values = self.values(draw)
        pyro.deterministic("loc", values["loc"], event_dim=2)
        return values

    def values(self, draw: Mapping[str, Tensor]) -> Values:
        if "loc" not in draw:
            parts = [_site(draw, "ordered_loc").unsqueeze(-1)]
            if self.law.loc.shape[-1] > 1:
                parts.append(_site(draw, "other_loc"))
            draw = {**draw, "loc": torch.cat(parts, -1)}
        return super().values(draw)


class _Vectors(ParameterSites):
    """Means (K, D) and covariances, (K, D, D) or, common to all states, (D, D).

    A Wishart law by Bartlett's decomposition: no transform takes positive definite matrices to real vectors.
    """

    def __init__(self, law: NormalInverseWishart):
        self.law = law

    def sample(self) -> Values:
        loc, strength, degrees, _ = self.law
        dim = loc.shape[-1]
        half = (degrees.unsqueeze(-1) - torch.arange(dim, device=loc.device)) / 2
        draw = {"bartlett_squares": pyro.sample("bartlett_squares", dist.Gamma(half, 0.5).to_event())}
        if dim > 1:
            normal = dist.Normal(loc.new_zeros(*degrees.shape, dim * (dim - 1) // 2), 1.0)
            draw["bartlett_lower"] = pyro.sample("bartlett_lower", normal.to_event())
        factor = self._scale_tril(draw)
        each = factor.unsqueeze(-3) if degrees.dim() == 0 else factor
        normal = dist.MultivariateNormal(loc, scale_tril=each / strength.sqrt().unsqueeze(-1))
        return {"loc": pyro.sample("loc", normal.to_event(1)), "scale_tril": factor}

    def values(self, draw: Mapping[str, Tensor]) -> Values:
        return {"loc": _site(draw, "loc"), "scale_tril": self._scale_tril(draw)}

    def _scale_tril(self, draw: Mapping[str, Tensor]) -> Tensor:
        """Of the inverse of the Wishart matrix that Bartlett's decomposition makes of its numbers."""
        squares = _site(draw, "bartlett_squares")
        dim = squares.shape[-1]
        lower = _site(draw, "bartlett_lower") if dim > 1 else squares[..., :0]
        row, column = torch.tril_indices(dim, dim, -1, device=squares.device)
        flat = lower.new_zeros(*lower.shape[:-1], dim * dim).index_copy(-1, row * dim + column, lower)
        factor = flat.unflatten(-1, (dim, dim)) + squares.sqrt().diag_embed()
        precision_factor = torch.linalg.cholesky(torch.linalg.inv(self.law.scale)) @ factor
        return torch.linalg.cholesky(torch.cholesky_inverse(precision_factor))


def _log(value: Tensor) -> Tensor:
    # What is rounded to 0 stays a number.
    return value.clamp_min(torch.finfo(value.dtype).tiny).log()


def _site(draw: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in draw:
        raise ValueError(f"draw: expected a value of {name!r}, got only those of {', '.join(map(repr, draw))}")
    return draw[name]
