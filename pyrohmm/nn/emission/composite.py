"""Several streams of observations of different families."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.nn.module import PyroModuleList
from torch import Tensor

from pyrohmm.nn._relabel import as_permutation
from pyrohmm.nn.part import Events, Part, Statistics


class Streams(TorchDistribution):
    """Independent laws of numbers and vectors, whose values stand beside each other in one vector.

    Args:
        laws: distributions of event shape () or (D_i,), whose batch shapes broadcast.
        observed: bool (..., D), False where a value may be anything, even NaN, which the laws then read as 0 or not at
            all; None for all.

    Example:
        >>> import pyro.distributions as dist
        >>> law = Streams([dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Poisson(1.0)])
        >>> law.event_shape, law.log_prob(torch.tensor([0.0, 0.0, 1.0]))
        (torch.Size([3]), tensor(-2.8379))
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, laws: Sequence[Any], observed: Tensor | None = None):
        self.laws, self.observed = list(laws), observed
        self.sizes = [law.event_shape.numel() for law in laws]
        batch = torch.broadcast_shapes(*(law.batch_shape for law in laws))
        super().__init__(batch, torch.Size([sum(self.sizes)]), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Vectors of real numbers; what each law takes is its own matter."""
        return constraints.real_vector

    @property
    def mean(self) -> Tensor:
        """Of all streams, (*batch, D); NaN for symbols."""
        return self._beside([law.mean for law in self.laws], self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw all streams, (*sample_shape, *batch, D)."""
        draws = [law.expand(self.batch_shape).sample(torch.Size(sample_shape)) for law in self.laws]
        return self._beside(draws, torch.Size(sample_shape) + self.batch_shape)

    def _beside(self, values: list[Tensor], batch: torch.Size) -> Tensor:
        dtype = torch.get_default_dtype()
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)
        wide = [value if law.event_shape else value.unsqueeze(-1) for value, law in zip(values, self.laws, strict=True)]
        return torch.cat([value.to(dtype).expand(*batch, -1) for value in wide], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of all streams together, (...)."""
        value = value if self.observed is None else torch.where(self.observed, value, 0)
        total: Any = 0.0
        for law, part in zip(self.laws, value.split(self.sizes, -1), strict=True):
            total = total + law.log_prob(part if law.event_shape else part.squeeze(-1))
        return total

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Streams":
        """The same law with a larger batch shape."""
        return Streams([law.expand(torch.Size(batch_shape)) for law in self.laws], self.observed)


class CompositeEmission(Part):
    r"""Streams of observations, each of its own family, independent of each other given the state.

    .. math:: p(x \mid z) = \prod_i p_i(x^{(i)} \mid z)

    An observation is one vector with those of the streams beside each other. A stream of single numbers takes one
    entry, and symbols (`CategoricalEmission`) stand in theirs as the numbers 0 to V - 1.

    Args:
        streams: emissions of K states, of event shape () or (D_i,). Each can read inputs; an autoregressive one reads
            its own earlier observations.

    Attributes:
        streams: the emissions.
        num_states, event_shape: K, (D,) with D the sum of the D_i, 1 for a number.
        order: the largest of the streams.
        closed_form, side_by_side: whether this holds for all streams.

    Raises:
        TypeError: a stream is no `Part`.
        ValueError: no streams, streams of different K, of more than one event dim, or autoregressive on symbols.

    >>> from pyrohmm.nn import CategoricalEmission, GaussianEmission
    >>> emission = CompositeEmission([GaussianEmission(2, 3), CategoricalEmission(2, 5)])
    >>> law = emission(torch.tensor([0, 1]))
    >>> law.event_shape, law.log_prob(torch.tensor([0.3, -0.1, 0.2, 4.0])).shape
    (torch.Size([4]), torch.Size([2]))
    """

    # Any: a list of modules does not tell what its elements are.
    streams: Any

    def __init__(self, streams: Sequence[Part]):
        super().__init__()
        streams = list(streams)
        if not streams:
            raise ValueError("streams: expected at least one emission, got none")
        for i, part in enumerate(streams):
            shape = tuple(getattr(part, "event_shape", ()))
            if not isinstance(part, Part) or not hasattr(part, "event_shape"):
                raise TypeError(f"streams: expected emissions of pyrohmm.nn, got {type(part).__name__} as number {i}")
            if part.num_states != streams[0].num_states:
                raise ValueError(
                    f"streams: expected {streams[0].num_states} states, like the first, got {part.num_states} "
                    f"in number {i}"
                )
            if len(shape) > 1:
                raise ValueError(f"streams: expected event shape () or (D,), got {shape} in number {i}")
            if part.order and not shape:
                raise ValueError(
                    f"streams: expected an autoregressive stream to be one of vectors, got symbols in number {i}"
                )
        self.num_states = streams[0].num_states
        self.streams = PyroModuleList(streams)
        self.sizes = [part.event_shape.numel() for part in streams]
        self.event_shape = torch.Size([sum(self.sizes)])
        self.order = max(part.order for part in streams)
        self.closed_form = all(part.closed_form for part in streams)
        self.side_by_side = all(part.side_by_side for part in streams)

    def _split(
        self, x: Tensor | None, previous: Tensor | None, observed: Tensor | None
    ) -> list[tuple[Any, Tensor | None, Tensor | None, Tensor | None]]:
        """Each stream with what belongs to it."""
        if x is not None and observed is not None:
            # As what is missing may be NaN, which is no symbol.
            x = torch.where(observed, x, 0)
        result = []
        for i, part in enumerate(self.streams):
            columns = slice(sum(self.sizes[:i]), sum(self.sizes[: i + 1]))
            own, seen, past = (None if value is None else value[..., columns] for value in (x, observed, None))
            if part.order and previous is not None:
                lags = previous.unflatten(-1, (self.order, -1))
                past = lags[..., : part.order, columns].flatten(-2)
            if not part.event_shape:
                own, seen = (None if value is None else value.squeeze(-1) for value in (own, seen))
            result.append((part, own, past, seen))
        return result

    def forward(
        self,
        state: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> TorchDistributionMixin:
        """The law of an observation in `state`.

        Args:
            state: int64 of any shape, e.g. (K, 1, 1) if enumerated.
            inputs: (..., C), handed to all streams.
            previous: (..., order * D), the last observations, newest first, if a stream is autoregressive.
            observed: bool (..., D), False at entries that are missing: the law is that of the others.

        Returns:
            A distribution of event shape (D,), its batch shape that of the streams' laws together.

        Raises:
            TypeError, ValueError: as the streams.
        """
        parts = self._split(None, previous, observed)
        return Streams([part(state, inputs, past, seen) for part, _, past, seen in parts], observed)

    def log_prior(self) -> Tensor:
        """The sum of those of the streams, () or (R,); see `Part`."""
        return torch.stack(torch.broadcast_tensors(*(part.log_prior() for part in self.streams))).sum(0)

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Tell streams of Gaussians where the data (M, D) are; see `GaussianEmission.prepare`."""
        for part, own, _, seen in self._split(x, None, observed):
            if hasattr(part, "prepare"):
                part.prepare(own, seen)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Those of the streams; arguments as for `GaussianEmission.expected_statistics`.

        Returns:
            "i.name" for what stream number i calls "name".
        """
        return {
            f"{i}.{name}": value
            for i, (part, own, past, seen) in enumerate(self._split(x, previous, observed))
            for name, value in part.expected_statistics(own, weights, inputs, past, seen).items()
        }

    def maximize(self, statistics: Statistics) -> Events:
        """The M-step of each stream.

        Returns:
            what at least one stream met, and in which states.

        >>> from pyrohmm.nn import BernoulliEmission, PoissonEmission
        >>> emission = CompositeEmission([BernoulliEmission(1, 1), PoissonEmission(1, 1)])
        >>> x = torch.tensor([[0.0, 3.0], [1.0, 5.0]])
        >>> _ = emission.maximize(emission.expected_statistics(x, torch.ones(2, 1)))
        >>> emission(torch.tensor(0)).mean.detach()
        tensor([0.5000, 4.0000])
        """
        events: Events = {}
        for i, part in enumerate(self.streams):
            own = {name.removeprefix(f"{i}."): value for name, value in statistics.items() if name.startswith(f"{i}.")}
            for what, states in part.maximize(own).items():
                events[what] = events[what] | states if what in events else states
        return events

    def features(self, x: Tensor) -> Tensor:
        """Those of the streams beside each other, each of mean 0 and variance 1, (M, F)."""
        features = torch.cat([part.features(own) for part, own, _, _ in self._split(x, None, None)], -1)
        deviation = features.std(0, correction=0)
        return (features - features.mean(0)) / torch.where(deviation > 0, deviation, 1.0)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place, in all streams; see `TableEmission.relabel`."""
        order = as_permutation(permutation, self.num_states)
        for part in self.streams:
            part.relabel(order)

    @property
    def num_free_parameters(self) -> int:
        """Those of the streams together."""
        return sum(part.num_free_parameters for part in self.streams)
