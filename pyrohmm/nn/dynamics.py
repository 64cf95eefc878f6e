"""Transitions of continuous states: the law of a vector given the one before it."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, dry_run
from pyrohmm.nn.encoder.encoder import built

# Standard deviations do not fall below it: where softplus ends in float32, a density would be infinite.
LEAST_SCALE = 1e-4


def normal(loc: Tensor, raw_scale: Tensor) -> TorchDistributionMixin:
    """Independent normal entries, with softplus(raw_scale) as their standard deviations, event shape (D,).

    Without validation: it would look at all numbers at every step of a path.
    """
    scale = nn.functional.softplus(raw_scale) + LEAST_SCALE
    return dist.Normal(loc, scale, validate_args=False).to_event(1)


class GaussianTransition(PyroModule):
    r"""A normal law around a function of the vector before: N(h; f(h'), diag(s^2)), s free.

    Args:
        dim: D.
        net: f, any module from (..., D) to (..., D). Default: linear, near the identity.
        scale: s at the start.
        generator: source of the random start; torch's global one if None.

    Attributes:
        initial: the vector before the first step, (D,), a parameter.

    Raises:
        TypeError, ValueError: a `dim` that is no positive int, a `net` that does not fit.

    >>> transition = GaussianTransition(3)
    >>> transition(torch.zeros(2, 5, 3)).batch_shape
    torch.Size([2, 5])
    """

    def __init__(
        self, dim: int, net: nn.Module | None = None, *, scale: float = 0.5, generator: Generator | None = None
    ):
        super().__init__()
        self.dim = count("dim", dim)
        if net is None:
            net = built(lambda: nn.Linear(dim, dim), generator)
            with torch.no_grad():
                net.weight.mul_(0.1).add_(torch.eye(dim))
                net.bias.zero_()
        elif (shape := tuple(dry_run(net, 1, dim).shape)) != (1, dim):
            raise ValueError(f"net: expected output (..., {dim}) for input (..., {dim}), got {shape}")
        if scale <= LEAST_SCALE:
            raise ValueError(f"scale: expected a number above {LEAST_SCALE}, got {scale}")
        self.net = net
        self.raw_scale = nn.Parameter(torch.full((dim,), scale - LEAST_SCALE).expm1().log())
        self.initial = nn.Parameter(torch.zeros(dim))

    def forward(self, previous: Tensor, t: Any = None) -> TorchDistributionMixin:
        """The law of the vectors after `previous` (..., D); `t` is not read. Batch shape (...), event shape (D,)."""
        loc = self.net(previous)
        return normal(loc, self.raw_scale.expand_as(loc))


class GatedTransition(PyroModule):
    r"""A normal law between a linear and a nonlinear function of the vector before, mixed by a gate.

    .. math::
        g = \sigma(\mathrm{mlp}(h')), \qquad u = \mathrm{mlp}(h'), \qquad
        h \sim N\big((1 - g) \odot (W h' + b) + g \odot u,\; \mathrm{softplus}(W_s \mathrm{relu}(u) + b_s)^2\big)

    with hidden layers of rectified linear units. W starts as the identity, b as 0.

    Args:
        dim: D.
        hidden: units of the hidden layer of the gate and of u.
        generator: source of the random start; torch's global one if None.

    Attributes:
        initial: the vector before the first step, (D,), a parameter.

    Raises:
        TypeError, ValueError: a size that is no positive int.

    Reference:
        Krishnan, Shalit and Sontag (2017), "Structured inference networks for nonlinear state space models", AAAI.

    >>> transition = GatedTransition(3, 8)
    >>> transition(torch.zeros(2, 5, 3)).batch_shape
    torch.Size([2, 5])
    """

    def __init__(self, dim: int, hidden: int, *, generator: Generator | None = None):
        super().__init__()
        self.dim, self.hidden = count("dim", dim), count("hidden", hidden)
        # Both hidden layers in one, and the linear function beside them: one matrix product.
        self.first = built(lambda: nn.Linear(dim, 2 * hidden + dim), generator)
        self.gate = built(lambda: nn.Linear(hidden, dim), generator)
        self.proposal = built(lambda: nn.Linear(hidden, dim), generator)
        self.spread = built(lambda: nn.Linear(dim, dim), generator)
        with torch.no_grad():
            self.first.weight[2 * hidden :] = torch.eye(dim)
            self.first.bias[2 * hidden :] = 0
        self.initial = nn.Parameter(torch.zeros(dim))

    def forward(self, previous: Tensor, t: Any = None) -> TorchDistributionMixin:
        """The law of the vectors after `previous` (..., D); `t` is not read. Batch shape (...), event shape (D,)."""
        units, linear = self.first(previous).split([2 * self.hidden, self.dim], -1)
        for_gate, for_proposal = units.relu().chunk(2, -1)
        proposal = self.proposal(for_proposal)
        loc = torch.lerp(linear, proposal, self.gate(for_gate).sigmoid())
        return normal(loc, self.spread(proposal.relu()))
