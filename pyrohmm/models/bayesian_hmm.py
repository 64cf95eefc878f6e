"""The hidden Markov model whose parameters are random variables."""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from pyrohmm.data import Sequences
from pyrohmm.models.blank import Blank
from pyrohmm.models.hmm import HMM, Potentials
from pyrohmm.models.parameter_sites import ParameterSites, parameter_sites
from pyrohmm.nn import (
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    Initial,
    Part,
    PoissonEmission,
    Transition,
)


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

    point_parameters = False

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
        if any((value != value[:1]).any() for value in self.emission.conjugate_prior().law):
            raise ValueError("ordered: expected the same prior in every state, got different ones")

    def forward(self, data: Sequences | Blank, *, vectorized: bool = True) -> None:
        """The Pyro program: the sites of the parameters, and under them that of `HMM`."""
        with ExitStack() as stack:
            for name, sites in self._sites().items():
                stack.enter_context(getattr(self, name).given(sites.sample()))
            super().forward(data, vectorized=vectorized)

    def _sites(self) -> dict[str, ParameterSites]:
        dtype = next(self.parameters()).dtype
        return {
            name: parameter_sites(name, getattr(self, name), ordered=self.ordered, dtype=dtype)
            for name in ("initial", "transition", "emission")
        }

    def _sample_priors(self, data: Sequences | Blank) -> None:
        """Nothing: the priors are those of the sites."""

    def at(self, draw: Mapping[str, Tensor]) -> HMM:
        """The model with the parameters of one draw, e.g. of `MCMC.get_samples` or of a guide's `median`.

        Args:
            draw: site -> value, without further dims in front.

        Raises:
            ValueError: a site is missing, or has another shape.
        """
        values = {name: sites.values(draw) for name, sites in self._sites().items()}
        parts = {name: copy.deepcopy(getattr(self, name)).requires_grad_(True) for name in values}
        for name, part in parts.items():
            for parameter, value in part.tables(values[name]).items():
                expected = getattr(part, parameter).shape
                if value.shape != expected:
                    raise ValueError(
                        f"draw: expected shape {tuple(expected)} of what gives {parameter}, got {tuple(value.shape)}"
                    )
            part.put({key: value.detach() for key, value in values[name].items()})
        return HMM(**parts, use_labels=self.use_labels)

    def potentials(self, *args: Any, **kwargs: Any) -> Potentials:
        """Not here: parameters have no values, but for one draw; see `at`."""
        raise ValueError("model: expected parameters with values, got a BayesianHMM; `at` makes a model of a draw")

    def _names_of_priors(self) -> list[str]:
        return ["initial", "transition", "emission"]
