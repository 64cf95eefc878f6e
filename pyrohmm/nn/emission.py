"""Emissions with a table of parameters, one row for each state."""

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, jitter, select, start
from pyrohmm.nn._free import num_free, num_trainable
from pyrohmm.nn._relabel import as_permutation, permute


class _TableEmission(PyroModule):
    """Attributes of an emission that reads neither the inputs nor the previous observations."""

    order: int = 0
    _shared: tuple[str, ...] = ()  # names of the parameters and buffers that all states share

    def __init__(self, num_states: int, event_shape: tuple[int, ...]):
        super().__init__()
        self.num_states = count("num_states", num_states)
        self.event_shape = torch.Size(event_shape)

    def _distribution(self, state: Tensor) -> TorchDistributionMixin:
        raise NotImplementedError

    def forward(
        self, state: Tensor, inputs: Tensor | None = None, previous: Tensor | None = None
    ) -> TorchDistributionMixin:
        """The law of an observation in `state`.

        Args:
            state: int64 of any shape, e.g. (K, 1, 1) if enumerated.
            inputs: not read; there so that any emission can stand in for any other.
            previous: not read.

        Returns:
            A distribution with batch shape state.shape and event shape `event_shape`.

        Raises:
            TypeError: `state` is not int64.

        >>> emission = BernoulliEmission(3, 88)
        >>> emission(torch.arange(3).reshape(3, 1, 1)).log_prob(torch.zeros(5, 7, 88)).shape
        torch.Size([3, 5, 7])
        """
        return self._distribution(state)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation, or a parameter has a `PyroSample` prior.

        >>> emission = PoissonEmission(2, 1, rate=[[1.0], [2.0]])
        >>> emission.relabel([1, 0])
        >>> emission(torch.tensor([0, 1])).mean.flatten().tolist()
        [2.0, 1.0]
        """
        own = [*self._parameters, *self._buffers, *self._pyro_params, *self._pyro_samples]
        names = [name for name in own if name not in self._shared and not name.endswith("_unconstrained")]
        permute(self, as_permutation(permutation, self.num_states), names)

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers; of the probabilities of V symbols V - 1 for each state.

        >>> BernoulliEmission(2, 3).num_free_parameters, CategoricalEmission(2, 3).num_free_parameters
        (6, 4)
        """
        return num_trainable(self)


class CategoricalEmission(_TableEmission):
    """One of V symbols: p(x = v | z = k) = softmax_v(logits_kv).

    Args:
        num_states: K.
        num_symbols: V.
        probs: the start, positive weights (V,) for all states or (K, V), e.g. counts; uniform if None.
        noise: size of the normal noise added to the logits at the start, unless `probs` is (K, V).
        generator: source of the noise; torch's global one if None.

    Attributes:
        logits: (K, V) parameter.
        num_states, event_shape, order: K, (), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `probs` of another shape or not positive.

    >>> emission = CategoricalEmission(2, 3, probs=[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    >>> emission(torch.tensor([0, 1])).log_prob(torch.tensor(2)).exp().detach()
    tensor([0.5000, 0.1000])
    """

    def __init__(
        self,
        num_states: int,
        num_symbols: int,
        *,
        probs: Any = None,
        noise: float = 0.1,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, ())
        shape = num_states, count("num_symbols", num_symbols)
        weights = start("probs", 1.0 if probs is None else probs, shape, 0)
        self.logits = nn.Parameter(
            (weights / weights.sum(-1, keepdim=True)).log() + noise * jitter(probs, shape, generator)
        )

    def _distribution(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Categorical(logits=select(self.logits, state))

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, V - 1 for each state."""
        return num_free(self)


class BernoulliEmission(_TableEmission):
    """D independent bits: p(x_d = 1 | z = k) = sigmoid(logits_kd).

    Args:
        num_states: K.
        dim: D.
        probs: the start, a number, (D,) for all states or (K, D); a half if None.
        noise: size of the normal noise added to the logits at the start, unless `probs` is (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        logits: (K, D) parameter.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `probs` of another shape or not in (0, 1).

    >>> emission = BernoulliEmission(2, 3, probs=[[0.5, 0.5, 0.5], [0.1, 0.1, 0.5]])
    >>> emission(torch.tensor([0, 1])).log_prob(torch.ones(3)).exp().detach()
    tensor([0.1250, 0.0050])
    """

    def __init__(
        self, num_states: int, dim: int, *, probs: Any = None, noise: float = 0.1, generator: Generator | None = None
    ):
        super().__init__(num_states, (count("dim", dim),))
        shape = num_states, dim
        mean = start("probs", 0.5 if probs is None else probs, shape, 0, 1)
        self.logits = nn.Parameter(mean.logit() + noise * jitter(probs, shape, generator))

    def _distribution(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=select(self.logits, state)).to_event(1)


class PoissonEmission(_TableEmission):
    """D independent counts: p(x_d | z = k) = Poisson(x_d; exp(log_rate_kd)), rates in counts for each step.

    Args:
        num_states: K.
        dim: D.
        rate: the start, a number, (D,) for all states or (K, D); one if None. The mean of the data is a good one.
        noise: size of the normal noise added to the log rates at the start, unless `rate` is (K, D).
        generator: source of the noise; torch's global one if None.

    Attributes:
        log_rate: (K, D) parameter.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, `rate` of another shape or not positive and finite.

    >>> emission = PoissonEmission(2, 1, rate=[[1.0], [2.0]])
    >>> emission(torch.tensor([0, 1])).mean.detach()
    tensor([[1.],
            [2.]])
    """

    def __init__(
        self, num_states: int, dim: int, *, rate: Any = None, noise: float = 0.1, generator: Generator | None = None
    ):
        super().__init__(num_states, (count("dim", dim),))
        shape = num_states, dim
        mean = start("rate", 1.0 if rate is None else rate, shape, 0)
        self.log_rate = nn.Parameter(mean.log() + noise * jitter(rate, shape, generator))

    def _distribution(self, state: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(select(self.log_rate, state).exp()).to_event(1)


class GaussianEmission(_TableEmission):
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
        generator: source of the noise; torch's global one if None.

    Attributes:
        loc: (K, D) parameter, in the units of the data.
        log_scale: parameter, log of the units of the data, shape as above.
        lower: parameter with "full" and "tied", zero at the start, shape as above.
        num_states, event_shape, order: K, (D,), 0.

    Raises:
        TypeError, ValueError: a size that is no positive int, another `covariance`, a `loc` or `scale` of another
            shape, not finite, or not positive (`scale`).

    >>> emission = GaussianEmission(2, 3, loc=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], scale=2.0)
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.event_shape, law.stddev[1].detach()
    (torch.Size([3]), tensor([2., 2., 2.]))
    >>> GaussianEmission(2, 3, "full")(torch.tensor([0, 1])).covariance_matrix.shape
    torch.Size([2, 3, 3])
    """

    def __init__(
        self,
        num_states: int,
        dim: int,
        covariance: Literal["diag", "full", "tied", "spherical"] = "diag",
        *,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, (count("dim", dim),))
        shapes = {"diag": (num_states, dim), "full": (num_states, dim), "tied": (dim,), "spherical": (num_states,)}
        if covariance not in shapes:
            raise ValueError(f"covariance: expected one of {', '.join(shapes)}, got {covariance!r}")
        self.covariance = covariance
        self._shared = ("log_scale", "lower") if covariance == "tied" else ()
        deviation = start("scale", 1.0 if scale is None else scale, shapes[covariance], 0)
        mean = start("loc", 0.0 if loc is None else loc, (num_states, dim))
        unit = deviation.unsqueeze(-1) if covariance == "spherical" else deviation
        self.loc = nn.Parameter(mean + noise * unit * jitter(loc, (num_states, dim), generator))
        self.log_scale = nn.Parameter(deviation.log())
        if covariance in ("full", "tied"):
            self.lower = nn.Parameter(torch.zeros(*deviation.shape[:-1], dim * (dim - 1) // 2))

    def _distribution(self, state: Tensor) -> TorchDistributionMixin:
        loc, scale = select(self.loc, state), self.log_scale.exp()
        match self.covariance:
            case "diag":
                return dist.Normal(loc, select(scale, state)).to_event(1)
            case "spherical":
                return dist.Normal(loc, select(scale, state, 0).unsqueeze(-1)).to_event(1)
            case "full":
                return dist.MultivariateNormal(loc, scale_tril=select(self._scale_tril(scale), state, 2))
            case _:
                return dist.MultivariateNormal(loc, scale_tril=self._scale_tril(scale))

    def _scale_tril(self, scale: Tensor) -> Tensor:
        lower, dim = self.lower, scale.shape[-1]
        row, column = torch.tril_indices(dim, dim, -1, device=scale.device)
        flat = lower.new_zeros(*lower.shape[:-1], dim * dim).index_copy(-1, row * dim + column, lower)
        unit = flat.unflatten(-1, (dim, dim)) + torch.eye(dim, dtype=scale.dtype, device=scale.device)
        return scale.unsqueeze(-1) * unit
