"""The law of an observation given a continuous state."""

import itertools

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Size, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn.dynamics import normal
from pyrohmm.nn.emission.entries import independent
from pyrohmm.nn.encoder.encoder import built

FAMILIES = ("bernoulli", "gaussian")


class Emitter(PyroModule):
    """Independent entries of an observation, their parameters from a network of the state h.

    "bernoulli": 0 or 1, with the network's outputs as logits. "gaussian": normal, with the outputs as means, and one
    free standard deviation for each entry.

    Args:
        dim: D, of the state.
        num_entries: entries of an observation.
        hidden: sizes of the hidden layers, of rectified linear units; none for a linear function.
        family: "bernoulli" or "gaussian".
        dropout: of the hidden units, in training mode.
        generator: source of the random start; torch's global one if None.

    Attributes:
        dim, event_shape: D, (num_entries,).

    Raises:
        TypeError, ValueError: a size that is no positive int, another family.

    >>> law = Emitter(4, 88, (16, 16))(torch.zeros(2, 5, 4))
    >>> law.batch_shape, law.event_shape
    (torch.Size([2, 5]), torch.Size([88]))
    """

    def __init__(
        self,
        dim: int,
        num_entries: int,
        hidden: tuple[int, ...] = (),
        family: str = "bernoulli",
        *,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ):
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {FAMILIES}, got {family!r}")
        self.dim, self.event_shape, self.family = count("dim", dim), Size([count("num_entries", num_entries)]), family
        sizes = [dim, *(count("hidden", size) for size in hidden), num_entries]
        layers: list[nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [built(lambda size=size, following=following: nn.Linear(size, following), generator)]
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*layers[:-2])
        # softplus(0.54) is about 1.
        self.raw_scale = nn.Parameter(torch.full((num_entries,), 0.54)) if family == "gaussian" else None

    def forward(self, state: Tensor, observed: Tensor | None = None) -> TorchDistributionMixin:
        """The law of an observation.

        Args:
            state: (..., D).
            observed: bool, broadcasts with (..., num_entries), False at entries that are missing: the law is that of
                the others.

        Returns:
            A distribution of batch shape (...) and event shape (num_entries,).
        """
        params = self.net(state)
        if self.raw_scale is None:
            return independent(dist.Bernoulli(logits=params, validate_args=False), observed)
        return independent(normal(params, self.raw_scale.expand_as(params)).base_dist, observed)
