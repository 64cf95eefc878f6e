"""The hidden Markov model whose parameters are random variables."""

import copy
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.nn.functional import pad

from pyrohmm.data import Sequences
from pyrohmm.distributions.sorted import Sorted
from pyrohmm.models.blank import Blank
from pyrohmm.models.hmm import HMM, Potentials
from pyrohmm.nn import (
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    Initial,
    Part,
    PoissonEmission,
    Transition,
)
from pyrohmm.nn.emission.entries import ObservedGaussian, independent


class BayesianHMM(HMM):
    r"""A hidden Markov model with conjugate priors on all its parameters, which are sites of the program.

    .. math::
        \pi \sim \mathrm{Dirichlet}, \quad A_k \sim \mathrm{Dirichlet}, \quad \phi_k \sim p(\phi), \qquad
        p(x \mid \pi, A, \phi) = \sum_z p(z_1 \mid \pi) \prod_{t>1} A_{z_{t-1} z_t} \prod_t p(x_t \mid \phi_{z_t})

    The priors are those of `pyrohmm.fit_vb`, given to the parts (`prior=`); without, probabilities have flat ones. The
    states are summed out, so what is left is continuous and smooth: for SVI with an autoguide, NUTS and `Predictive`.

    Sites: "initial" (K,), "transition" (K, K); of the emission "probs" (K, V) or (K, D), "rate" (K, D), or of Gaussians
    "loc" (K, D) and "precision", (K, D) for "diag", (K,) for "spherical". With "full" (and "tied", without K) the
    precision is C A A^T C^T, C C^T the inverse of the prior's scale, A lower triangular: "bartlett_squares" (K, D) are
    the squares of its diagonal, "bartlett_lower" (K, D (D - 1) / 2) the rest, row by row (Bartlett 1933).

    States have no names of their own: the posterior is the same in every order of them. Draws are put into one by
    `pyrohmm.infer.align_draws`; or, with `ordered`, loc_k0 increases with k in the program itself, and "loc" is put
    together from the sites "ordered_loc" (K,) and "other_loc" (K, D - 1). The prior is then that of the same states in
    this order.

    What `HMM` does under given parameters (`log_prob`, `posterior`, `simulate`) takes a guide here, or, for one
    draw, goes through `at`.

    Args:
        emission: `nn.CategoricalEmission`, `nn.BernoulliEmission`, `nn.PoissonEmission` or `nn.GaussianEmission`, with
            its prior. Of the part that is given, and of the two below, a copy is kept.
        initial: `nn.Initial`, with its prior.
        transition: `nn.Transition`, with its prior.
        ordered: for Gaussians of covariance "diag" or "spherical" whose states have the same prior.
        use_labels: see `HMM`.

    Raises:
        TypeError, ValueError: a part has no conjugate prior, or forbids states or edges (`mask`); `ordered` with
            another emission.

    Reference:
        Scott (2002), "Bayesian methods for hidden Markov models: recursive computing in the 21st century"; for the
        order, Richardson and Green (1997), "On Bayesian analysis of mixtures with an unknown number of components".

    Example:
        >>> import pyrohmm
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyrohmm.nn import NormalInverseGamma
        >>> prior = NormalInverseGamma(0.0, 0.1, 2.0, 1.0)
        >>> model = BayesianHMM(GaussianEmission(2, 1, prior=prior), ordered=True)
        >>> data = HMM(GaussianEmission(2, 1, loc=[[-2.0], [2.0]])).simulate(5, 20, seed=0)
        >>> guide = AutoNormal(model)
        >>> history = pyrohmm.fit_svi(model, data, guide, steps=5, progress=False)
        >>> guide.median()["ordered_loc"].shape, model.posterior(data, guide).batch_shape
        (torch.Size([2]), torch.Size([5]))
        >>> model.at(guide.median()).log_prob(data).shape
        torch.Size([5])
    """

    def __init__(
        self,
        emission: Part,
        initial: Part | None = None,
        transition: Part | None = None,
        *,
        ordered: bool = False,
        use_labels: bool = False,
    ):
        super().__init__(
            copy.deepcopy(emission), copy.deepcopy(initial), copy.deepcopy(transition), use_labels=use_labels
        )
        # What the parts hold is not read: only their priors are.
        self.requires_grad_(False)
        self.ordered = ordered
        self._drawn: dict[str, Tensor] = {}
        for name, part, kinds in (
            ("initial", self.initial, Initial),
            ("transition", self.transition, Transition),
            ("emission", self.emission, (CategoricalEmission, BernoulliEmission, PoissonEmission, GaussianEmission)),
        ):
            if not isinstance(part, kinds):
                raise TypeError(f"{name}: expected a part with a conjugate prior, got {type(part).__name__}")
            part.conjugate_prior()
            if getattr(part, "mask", None) is not None:
                raise ValueError(f"{name}: expected no mask, got one")
        if not ordered:
            return
        if getattr(self.emission, "covariance", None) not in ("diag", "spherical"):
            raise ValueError("ordered: expected a GaussianEmission with covariance 'diag' or 'spherical', got another")
        if any((value != value[:1]).any() for value in self._prior(self.emission)):
            raise ValueError("ordered: expected the same prior in every state, got different ones")

    def _sample_priors(self, data: Any) -> None:
        (initial,), (rows,) = self._prior(self.initial), self._prior(self.transition)
        self._drawn = {
            "initial": pyro.sample("initial", dist.Dirichlet(initial)),
            "transition": pyro.sample("transition", dist.Dirichlet(rows).to_event(1)),
            **self._sample_emission(*self._prior(self.emission)),
        }

    def _sample_emission(self, *prior: Tensor) -> dict[str, Tensor]:
        match self.emission:
            case CategoricalEmission():
                return {"probs": pyro.sample("probs", dist.Dirichlet(prior[0]).to_event(1))}
            case BernoulliEmission():
                return {"probs": pyro.sample("probs", dist.Beta(prior[0], prior[1]).to_event(2))}
            case PoissonEmission():
                return {"rate": pyro.sample("rate", dist.Gamma(prior[0], prior[1]).to_event(2))}
        if self.emission.covariance in ("full", "tied"):
            return self._sample_vectors(*prior)
        return self._sample_ordered(*prior) if self.ordered else self._sample_entries(*prior)

    def _sample_vectors(self, loc: Tensor, strength: Tensor, degrees: Tensor, scale: Tensor) -> dict[str, Tensor]:
        # A Wishart law by Bartlett's decomposition: no transform takes positive definite matrices to real vectors.
        dim = loc.shape[-1]
        half = (degrees.unsqueeze(-1) - torch.arange(dim, device=loc.device)) / 2
        squares = pyro.sample("bartlett_squares", dist.Gamma(half, 0.5).to_event(half.dim()))
        normal = dist.Normal(loc.new_zeros(*degrees.shape, dim * (dim - 1) // 2), 1.0)
        lower = pyro.sample("bartlett_lower", normal.to_event(half.dim())) if dim > 1 else squares[..., :0]
        scale_tril = torch.linalg.cholesky(_covariance(squares, lower, scale))
        if degrees.dim() == 0:
            scale_tril = scale_tril.unsqueeze(-3)  # for all states
        normal = dist.MultivariateNormal(loc, scale_tril=scale_tril / strength.sqrt().unsqueeze(-1))
        return {"scale_tril": scale_tril, "loc": pyro.sample("loc", normal.to_event(1))}

    def _sample_entries(self, loc: Tensor, strength: Tensor, shape: Tensor, rate: Tensor) -> dict[str, Tensor]:
        precision = self._wide(pyro.sample("precision", dist.Gamma(shape, rate).to_event(shape.dim())))
        normal = dist.Normal(loc, (strength * precision).rsqrt())
        return {"scale": precision.rsqrt(), "loc": pyro.sample("loc", normal.to_event(2))}

    def _sample_ordered(self, loc: Tensor, strength: Tensor, shape: Tensor, rate: Tensor) -> dict[str, Tensor]:
        """The first entry of each mean before the precision, which then knows of it: their joint law is the same."""
        middle, worth, a, b = (value[:, 0] for value in (loc, strength, self._wide(shape), self._wide(rate)))
        student = dist.StudentT(2 * a, middle, (b / (a * worth)).sqrt())
        first = pyro.sample("ordered_loc", Sorted(student))
        squares = worth * (first - middle).square()
        if shape.dim() == 2:
            # Only the precision of this entry.
            others = (0, shape.shape[-1] - 1)
            squares, steps = pad(squares.unsqueeze(-1), others), pad(torch.ones_like(shape[:, :1]), others)
        else:
            steps = torch.ones_like(shape)
        gamma = dist.Gamma(shape + steps / 2, rate + squares / 2)
        precision = self._wide(pyro.sample("precision", gamma.to_event(shape.dim())))
        parts = [first.unsqueeze(-1)]
        if loc.shape[-1] > 1:
            scale = (strength * precision).rsqrt().expand(*precision.shape[:-1], loc.shape[-1])
            parts.append(pyro.sample("other_loc", dist.Normal(loc[:, 1:], scale[..., 1:]).to_event(2)))
        return {"scale": precision.rsqrt(), "loc": pyro.deterministic("loc", torch.cat(parts, -1), event_dim=2)}

    def _wide(self, value: Tensor) -> Tensor:
        """What belongs to a precision, as (..., K, D) or, of all entries at once, (..., K, 1)."""
        return value if self.emission.covariance == "diag" else value.unsqueeze(-1)

    def _prior(self, part: Any) -> tuple[Tensor, ...]:
        """The parameters of a part's prior."""
        law = part.conjugate_prior().law
        values = law if isinstance(law, tuple) else [getattr(law, name) for name in law.arg_constraints]
        dtype = next(self.parameters()).dtype
        return tuple(value.to(dtype) for value in values)

    def _next_state(self, state: Tensor | None, inputs: Tensor | None) -> dist.Categorical:
        rows = self._drawn["transition"]
        return dist.Categorical(self._drawn["initial"] if state is None else Vindex(rows)[..., state, :])

    def _emission(
        self, state: Tensor, inputs: Tensor | None, before: Tensor | None, entries: Tensor | None
    ) -> TorchDistributionMixin:
        drawn = self._drawn
        match self.emission:
            case CategoricalEmission():
                law = dist.Categorical(Vindex(drawn["probs"])[..., state, :])
                return law if entries is None else law.mask(entries)
            case BernoulliEmission():
                return independent(dist.Bernoulli(Vindex(drawn["probs"])[..., state, :]), entries)
            case PoissonEmission():
                return independent(dist.Poisson(Vindex(drawn["rate"])[..., state, :]), entries)
        loc = Vindex(drawn["loc"])[..., state, :]
        if "scale" in drawn:
            return independent(dist.Normal(loc, Vindex(drawn["scale"])[..., state, :]), entries)
        tril = drawn["scale_tril"]
        tril = tril.squeeze(-3) if self.emission.covariance == "tied" else Vindex(tril)[..., state, :, :]
        law = dist.MultivariateNormal(loc, scale_tril=tril)
        return law if entries is None else ObservedGaussian(law, entries)

    def forward(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program; see `HMM`."""
        try:
            super().forward(data, vectorized=vectorized)
        finally:
            # Copies of the model must not hold on to tensors with a history.
            self._drawn = {}

    def at(self, draw: Mapping[str, Tensor]) -> HMM:
        """The model with the parameters of one draw, e.g. of `MCMC.get_samples` or of a guide's `median`.

        Args:
            draw: site -> value, without further dims in front.

        Raises:
            ValueError: a site is missing, or has another shape.
        """
        draw = dict(draw)
        if self.ordered and "loc" not in draw:
            draw["loc"] = torch.cat([self._site(draw, "ordered_loc").unsqueeze(-1), *self._others(draw)], -1)
        emission = self.emission
        match emission:
            case CategoricalEmission():
                values = {"logits": self._site(draw, "probs").log()}
            case BernoulliEmission():
                values = {"logits": self._site(draw, "probs").logit()}
            case PoissonEmission():
                values = {"log_rate": self._site(draw, "rate").log()}
            case _:
                values = {"loc": self._site(draw, "loc")}
                if emission.covariance in ("full", "tied"):
                    squares = self._site(draw, "bartlett_squares")
                    lower = self._site(draw, "bartlett_lower") if squares.shape[-1] > 1 else squares[..., :0]
                    values["covariance"] = _covariance(squares, lower, self._prior(emission)[-1])
                else:
                    values["variance"] = 1 / self._site(draw, "precision")
        initial, transition = ({"logits": self._site(draw, name).log()} for name in ("initial", "transition"))
        parts = [copy.deepcopy(part).requires_grad_(True) for part in (emission, self.initial, self.transition)]
        for part, new in zip(parts, (values, initial, transition), strict=True):
            for name, value in new.items():
                parameter = part._parameters.get(name)
                if parameter is not None and value.shape != parameter.shape:
                    raise ValueError(
                        f"draw: expected shape {tuple(parameter.shape)} of what gives {name}, got {tuple(value.shape)}"
                    )
            part.put({name: value.detach() for name, value in new.items()})
        return HMM(*parts, use_labels=self.use_labels)

    def _site(self, draw: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in draw:
            raise ValueError(f"draw: expected a value of {name!r}, got only those of {', '.join(map(repr, draw))}")
        return draw[name]

    def _others(self, draw: Mapping[str, Tensor]) -> list[Tensor]:
        """The other entries of the means, if there are any."""
        return [self._site(draw, "other_loc")] if self.emission.event_shape[0] > 1 else []

    def potentials(self, *args: Any, **kwargs: Any) -> Potentials:
        """Not here: parameters have no values, but for one draw; see `at`."""
        raise ValueError("model: expected parameters with values, got a BayesianHMM; `at` makes a model of a draw")

    def _names_of_priors(self) -> list[str]:
        return ["initial", "transition", "emission"]


def _covariance(squares: Tensor, lower: Tensor, scale: Tensor) -> Tensor:
    """The inverse of the Wishart matrix (..., D, D) that Bartlett's decomposition makes of its numbers."""
    dim = squares.shape[-1]
    row, column = torch.tril_indices(dim, dim, -1, device=scale.device)
    flat = lower.new_zeros(*lower.shape[:-1], dim * dim).index_copy(-1, row * dim + column, lower)
    factor = flat.unflatten(-1, (dim, dim)) + squares.sqrt().diag_embed()
    return torch.cholesky_inverse(torch.linalg.cholesky(torch.linalg.inv(scale)) @ factor)
