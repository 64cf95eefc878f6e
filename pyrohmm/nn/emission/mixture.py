"""Mixtures of Gaussian vectors."""

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, jitter, select, start
from pyrohmm.nn._free import num_free
from pyrohmm.nn._prior import LEAST_LOG_PROB, dirichlet, dirichlet_log_prob, dirichlet_mode
from pyrohmm.nn._relabel import as_permutation
from pyrohmm.nn.emission.gaussian import GaussianEmission
from pyrohmm.nn.emission.table import TableEmission
from pyrohmm.nn.part import EMPTY, Events, Statistics, add_up, assign, blocks, table
from pyrohmm.nn.priors import NormalInverseGamma, NormalInverseWishart

COMPONENT_EMPTY = "a component has no data, its parameters stay as they are"


class Mixture(TorchDistribution):
    r"""A mixture of a few laws, each a distribution object of its own.

    .. math:: p(x) = \sum_m \mathrm{softmax}(\mathrm{logits})_m \, p_m(x)

    Unlike `MixtureSameFamily` it needs no batch dim for the components, so these may be any distributions, e.g. of
    vectors with missing entries.

    Args:
        logits: (*batch, M).
        laws: M distributions of one event shape, whose batch shapes broadcast.

    Example:
        >>> import pyro.distributions as dist
        >>> law = Mixture(torch.tensor([0.5, 0.5]).log(), [dist.Normal(0.0, 1.0), dist.Normal(2.0, 1.0)])
        >>> law.mean, law.log_prob(torch.tensor(1.0))
        (tensor(1.), tensor(-1.4189))
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, logits: Tensor, laws: list[Any]):
        self.logits, self.laws = logits.log_softmax(-1), laws
        batch = torch.broadcast_shapes(logits.shape[:-1], *(law.batch_shape for law in laws))
        super().__init__(batch, laws[0].event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of the first law."""
        return self.laws[0].support

    @property
    def mean(self) -> Tensor:
        """Of the mixture, (*batch, *event)."""
        return self._average([law.mean for law in self.laws])

    @property
    def variance(self) -> Tensor:
        """Of each entry: the mean variance and the variance of the means, (*batch, *event)."""
        spread = [law.variance + (law.mean - self.mean).square() for law in self.laws]
        return self._average(spread)

    def _average(self, values: list[Tensor]) -> Tensor:
        probs = self.logits.exp()
        probs = probs.reshape(*probs.shape[:-1], *[1] * len(self.event_shape), -1)
        return (torch.stack(values, -1) * probs).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component and then from it, (*sample_shape, *batch, *event)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        which = dist.Categorical(logits=self.logits.expand(*self.batch_shape, -1)).sample(torch.Size(sample_shape))
        draws = torch.stack([law.expand(self.batch_shape).sample(torch.Size(sample_shape)) for law in self.laws])
        which = which.reshape(1, *shape, *[1] * len(self.event_shape)).expand(1, *draws.shape[1:])
        return draws.gather(0, which)[0].detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (...)."""
        joint = [self.logits[..., m] + law.log_prob(value) for m, law in enumerate(self.laws)]
        return torch.stack(torch.broadcast_tensors(*joint)).logsumexp(0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Mixture":
        """The same law with a larger batch shape."""
        batch = torch.Size(batch_shape)
        return Mixture(self.logits.expand(*batch, -1), [law.expand(batch) for law in self.laws])


class GaussianMixtureEmission(TableEmission):
    r"""D real numbers from a mixture of M Gaussians in each state.

    .. math:: p(x \mid z = k) = \sum_m \mathrm{softmax}(\mathrm{mixture\_logits}_k)_m \,
        \mathrm{Normal}(x;\; \mu_{km}, S_{km})

    Its M-step is one step of EM on the components too, so it increases the objective without reaching its maximum at
    once. A component that starts far from all data never gets any, so start with the `loc` and `scale` of the data.

    Args:
        num_states: K.
        dim: D.
        num_components: M, for each state.
        covariance: as in `GaussianEmission`; "tied" is the same for all components of all states.
        loc: the start of the means, what broadcasts to (K, M, D): a number, (D,), (K, 1, D), ...; zero if None.
        scale: as in `GaussianEmission` of K M states, those of a state next to each other.
        noise: size of the normal noise added to the means at the start, in units of `scale`, unless `loc` is
            (K, M, D). Components that start alike stay alike.
        least_scale: as in `GaussianEmission`.
        prior: as in `GaussianEmission` of K M states.
        mixture_prior: `Dirichlet` on each state's probabilities of the components, with concentrations (M,) or (K, M)
            of at least 1.
        generator: source of the noise; torch's global one if None.

    Attributes:
        components: the `GaussianEmission` of K M states, component m of state k at k M + m.
        mixture_logits: (K, M) parameter.
        num_states, num_components, event_shape, order: K, M, (D,), 0.

    Raises:
        TypeError, ValueError: as `GaussianEmission`, or a prior that does not fit.

    Reference:
        Juang, Levinson and Sondhi (1986), "Maximum likelihood estimation for multivariate mixture observations of
        Markov chains".

    >>> emission = GaussianMixtureEmission(1, 1, 2, loc=[[[0.0], [2.0]]])
    >>> law = emission(torch.tensor([0]))
    >>> law.mean.detach(), law.log_prob(torch.ones(1)).detach()
    (tensor([[1.]]), tensor([-1.4189]))
    """

    prior_mixture: Tensor | None

    def __init__(
        self,
        num_states: int,
        dim: int,
        num_components: int,
        covariance: Literal["diag", "full", "tied", "spherical"] = "diag",
        *,
        loc: Any = None,
        scale: Any = None,
        noise: float = 1.0,
        least_scale: float = 1e-3,
        prior: NormalInverseGamma | NormalInverseWishart | None = None,
        mixture_prior: Any = None,
        generator: Generator | None = None,
    ):
        super().__init__(num_states, (count("dim", dim),))
        self.num_components = count("num_components", num_components)
        shape = num_states, num_components
        components = GaussianEmission(
            num_states * num_components, dim, covariance, scale=scale, noise=0.0, least_scale=least_scale, prior=prior
        )
        mean = start("loc", 0.0 if loc is None else loc, (*shape, dim))
        away = noise * jitter(loc, (*shape, dim), generator).flatten(0, 1)
        unit = components.log_scale.detach().exp()
        with torch.no_grad():
            components.loc.copy_(
                mean.flatten(0, 1) + away * (unit.unsqueeze(-1) if covariance == "spherical" else unit)
            )
            components.centre.copy_(components.loc.mean(0))
        self.components = components
        self.mixture_logits = nn.Parameter(torch.zeros(shape))
        self.register_buffer("prior_mixture", dirichlet(mixture_prior, shape))

    def _distribution(self, state: Tensor, observed: Tensor | None) -> TorchDistributionMixin:
        first = self.num_components * state
        laws = [self.components(first + m, observed=observed) for m in range(self.num_components)]
        return Mixture(select(self.mixture_logits, state), laws)

    def log_prior(self) -> Tensor:
        """That of the components and of their probabilities, up to a constant, () or (R,); see `Part`."""
        probs = dirichlet_log_prob(table(self.mixture_logits, 2), self.prior_mixture)
        return self.components.log_prior() + probs.sum(-1)

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Take sums for EM from the mean of these observations (M, D) from now on."""
        self.components.prepare(x, observed)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """The sums of `GaussianEmission`, each step shared among the components as the present parameters say.

        Returns:
            "mixture" (*lead, K, M), the weights of the components, and the components' sums, (*lead, K M, ...).
        """
        sums: Statistics = {}
        for rows in blocks(len(x), weights[..., 0, :].numel() * self.num_components * x.shape[-1]):
            seen = None if observed is None else observed[rows]
            shared = weights[..., rows, :].double().unsqueeze(-1) * self._responsibilities(x[rows], seen)
            add_up(sums, {"mixture": shared.sum(-3)})
            add_up(sums, self.components.expected_statistics(x[rows], shared.flatten(-2), observed=seen))
        return sums

    def _responsibilities(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """p(component m | x, z = k), (*lead, steps, K, M)."""
        with torch.no_grad():
            logits = self.mixture_logits
            # The dims of the tables in front stand between those of the components and of the steps.
            every = torch.arange(self.components.num_states, device=x.device).reshape(-1, *[1] * (logits.dim() - 1))
            log_prob = self.components(every, observed=observed).log_prob(x)
            log_prob = log_prob.movedim(0, -1).reshape(*table(logits, 2).shape[:-2], len(x), -1)
            log_prob = log_prob.unflatten(-1, (self.num_states, self.num_components))
            return (log_prob + table(logits, 2).log_softmax(-1).unsqueeze(-3)).double().softmax(-1)

    def maximize(self, statistics: Statistics) -> Events:
        """One step of EM on the components: their probabilities, means and covariances; see `TableEmission`.

        >>> emission = GaussianMixtureEmission(1, 1, 2, loc=[[[0.0], [9.0]]])
        >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0], [10.0], [9.0]])
        >>> _ = emission.maximize(emission.expected_statistics(x, torch.ones(6, 1)))
        >>> emission.components.loc[:, 0].detach(), emission.mixture_logits.exp().detach()
        (tensor([0.5000, 9.0000]), tensor([[0.3333, 0.6667]]))
        """
        sums = dict(statistics)
        counts = sums.pop("mixture")
        logits = table(self.mixture_logits.detach(), 2)
        log_probs, empty = dirichlet_mode(counts, self.prior_mixture, logits, LEAST_LOG_PROB)
        assign(self.mixture_logits, log_probs)
        events: Events = {EMPTY: empty}
        for what, flags in self.components.maximize(sums).items():
            # A number of flags other than K M is one for all.
            states = flags.unflatten(-1, (-1, self.num_components)).any(-1) if flags.shape[-1] > 1 else flags
            if what == EMPTY:
                what, states = COMPONENT_EMPTY, states & ~empty
            events[what] = states
        return events

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place; see `TableEmission.relabel`."""
        order = as_permutation(permutation, self.num_states)
        super().relabel(order)
        first = self.num_components * order.unsqueeze(-1)
        self.components.relabel((first + torch.arange(self.num_components, device=order.device)).flatten())

    @property
    def num_free_parameters(self) -> int:
        """Trainable numbers, M - 1 for the probabilities of each state's components."""
        return num_free(self, "mixture_logits")
