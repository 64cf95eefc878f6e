"""States that share the parameters of their emission."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrohmm.nn._common import select
from pyrohmm.nn._relabel import as_permutation, permute
from pyrohmm.nn.part import Events, Part, Statistics


class TiedEmission(Part):
    """An emission of fewer rows than there are states: p(x | z = k) is the law of row groups_k.

    For states that differ in where they lead, not in what they emit: those of a duration, of a left-to-right word, of
    several chains.

    Args:
        emission: any emission of G rows.
        groups: (K,) int64, the row of each state, from 0 to G - 1, every one of them used.

    Attributes:
        emission, groups: as given; `groups` is a buffer.
        num_states: K.
        event_shape, order, closed_form, side_by_side: those of the emission.

    Raises:
        TypeError: `emission` is no `Part`, or `groups` is not int64.
        ValueError: `groups` is no vector, or its entries are not the numbers from 0 to G - 1.

    >>> from pyrohmm.nn import PoissonEmission
    >>> emission = TiedEmission(PoissonEmission(2, 1, rate=[[1.0], [5.0]]), [0, 0, 1])
    >>> emission(torch.arange(3)).mean[:, 0].detach()
    tensor([1., 1., 5.])
    """

    # Any: what is asked of it, beyond being a part, is in its attributes.
    emission: Any
    groups: Tensor

    def __init__(self, emission: Part, groups: Any):
        super().__init__()
        if not isinstance(emission, Part) or not hasattr(emission, "event_shape"):
            raise TypeError(f"emission: expected an emission of pyrohmm.nn, got {type(emission).__name__}")
        groups = torch.as_tensor(groups).clone()
        if groups.dtype != torch.int64:
            raise TypeError(f"groups: expected int64, got {groups.dtype}")
        used = groups.unique().tolist()
        if groups.dim() != 1 or used != list(range(emission.num_states)):
            raise ValueError(
                f"groups: expected a vector of the numbers 0 to {emission.num_states - 1}, all of them, got {groups}"
            )
        self.num_states = len(groups)
        self.emission = emission
        self.register_buffer("groups", groups)
        self.event_shape, self.order = emission.event_shape, emission.order
        self.closed_form, self.side_by_side = emission.closed_form, emission.side_by_side
        # By which a model knows that earlier observations are symbols.
        self.family = getattr(emission, "family", None)

    def forward(
        self,
        state: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> TorchDistributionMixin:
        """The law of an observation in `state`; arguments, returns and errors as for the emission."""
        return self.emission(select(self.groups, state, 0), inputs, previous, observed)

    def log_prior(self) -> Tensor:
        """That of the emission, each row once."""
        return self.emission.log_prior()

    def prepare(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Tell an emission of Gaussians where the data (M, D) are; see `GaussianEmission.prepare`."""
        if hasattr(self.emission, "prepare"):
            self.emission.prepare(x, observed)

    def expected_statistics(
        self,
        x: Tensor,
        weights: Tensor,
        inputs: Tensor | None = None,
        previous: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Statistics:
        """Those of the emission, with the weights (*lead, M, K) of the states of a group added up."""
        rows = torch.arange(self.emission.num_states, device=weights.device)
        members = (self.groups.unsqueeze(-1) == rows).to(weights.dtype)
        return self.emission.expected_statistics(x, weights @ members, inputs, previous, observed)

    def maximize(self, statistics: Statistics) -> Events:
        """The M-step of the emission; what it met is told of all states of a group."""
        events = self.emission.maximize(statistics)
        return {
            what: rows[..., self.groups] if rows.shape[-1] == self.emission.num_states else rows
            for what, rows in events.items()
        }

    def features(self, x: Tensor) -> Tensor:
        """Those of the emission."""
        return self.emission.features(x)

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: their groups, not the rows. See `TableEmission.relabel`."""
        permute(self, as_permutation(permutation, self.num_states), ["groups"])

    @property
    def num_free_parameters(self) -> int:
        """Those of the emission."""
        return self.emission.num_free_parameters
