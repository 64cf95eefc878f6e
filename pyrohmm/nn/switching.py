"""Transitions of continuous states that depend on a discrete one."""

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, select
from pyrohmm.nn._relabel import as_permutation, permute
from pyrohmm.nn.dynamics import LEAST_SCALE, normal

# Their first dimension is that of the states.
_TABLES = ["weight", "bias", "raw_scale", "initial_loc", "initial_raw_scale"]
_UNITS = ["first_weight", "first_bias", "last_weight"]


class SwitchingDynamics(PyroModule):
    r"""The law of a vector h given the one before it, h', and a discrete state: in each state another dynamical system.

    .. math::
        p(h_1 \mid z_1 = k) = N(m_k, S_k^2), \qquad
        p(h \mid h', z = k) = N\big(A_k h' + b_k + \tfrac{1}{H} V_k \tanh(U_k h' + c_k),\; s_k^2\big)

    with diagonal S and s, and the network only if `hidden` > 0. A starts near the identity, b near 0, V at 0. Thanks to
    the mean over the H units a step of Adam moves the law no farther through V than through b.

    Args:
        num_states: K.
        dim: D, of the vectors.
        hidden: H, units of the network of each state; 0 for linear dynamics.
        scale: s at the start; S is 1.
        generator: source of the random start; torch's global one if None.

    Attributes:
        weight, bias: A (K, D, D) and b (K, D), parameters.
        raw_scale: (K, D), parameter; s is softplus(raw_scale) + 1e-4.
        initial_loc, initial_raw_scale: m and S in the same way, (K, D), parameters.
        first_weight, first_bias, last_weight: U (K, H, D), c (K, H), V (K, D, H), parameters; None without a network.

    Raises:
        TypeError, ValueError: a size that is no int in range, or a scale that is not positive.

    >>> dynamics = SwitchingDynamics(3, 2, hidden=8)
    >>> dynamics(torch.arange(3).reshape(3, 1, 1), torch.zeros(4, 5, 2)).batch_shape
    torch.Size([3, 4, 5])
    """

    def __init__(
        self, num_states: int, dim: int, hidden: int = 0, *, scale: float = 0.3, generator: Generator | None = None
    ):
        super().__init__()
        self.num_states, self.dim = count("num_states", num_states), count("dim", dim)
        self.hidden = count("hidden", hidden, least=0)
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")

        def noise(*shape: int) -> Tensor:
            return torch.randn(num_states, *shape, generator=generator)

        self.weight = nn.Parameter(0.95 * torch.eye(dim) + 0.05 * noise(dim, dim))
        self.bias = nn.Parameter(0.05 * noise(dim))
        self.raw_scale = nn.Parameter(raw(torch.full((num_states, dim), float(scale))))
        self.initial_loc = nn.Parameter(0.05 * noise(dim))
        self.initial_raw_scale = nn.Parameter(raw(torch.ones(num_states, dim)))
        self.first_weight = nn.Parameter(noise(hidden, dim) * dim**-0.5) if hidden else None
        self.first_bias = nn.Parameter(0.5 * noise(hidden)) if hidden else None
        self.last_weight = nn.Parameter(torch.zeros(num_states, dim, hidden)) if hidden else None

    def forward(self, state: Tensor, previous: Tensor | None = None) -> TorchDistributionMixin:
        """The law of the next vector in `state`.

        Args:
            state: int64 of any shape, e.g. (K, 1, 1) if enumerated.
            previous: (..., D), the vectors before; None for the law of the first.

        Returns:
            A distribution with batch shape broadcast(state.shape, previous.shape[:-1]) and event shape (D,).
        """
        if previous is None:
            return normal(select(self.initial_loc, state), select(self.initial_raw_scale, state))
        # One matrix product for all states, rows after: a matrix for each step and state would be slow.
        loc = nn.functional.linear(previous, self.weight.flatten(0, 1), self.bias.flatten())
        loc = loc.unflatten(-1, (self.num_states, self.dim))
        if self.first_weight is not None and self.first_bias is not None and self.last_weight is not None:
            units = nn.functional.linear(previous, self.first_weight.flatten(0, 1), self.first_bias.flatten()).tanh()
            units = units.unflatten(-1, (self.num_states, self.hidden))
            # A mean: with a sum the states are lost, since the first steps of Adam go H times as far.
            loc = loc + torch.einsum("...kh,kdh->...kd", units, self.last_weight) / self.hidden
        return normal(select(loc, state), select(self.raw_scale, state))

    def relabel(self, permutation: Sequence[int] | Tensor) -> None:
        """Put the states into another order, in place: the new state i is the old state permutation[i].

        Args:
            permutation: (K,), each state once.

        Raises:
            ValueError: it is no permutation.

        >>> dynamics = SwitchingDynamics(2, 1)
        >>> before = dynamics.bias.detach().clone()
        >>> dynamics.relabel([1, 0])
        >>> torch.equal(dynamics.bias, before.flip(0))
        True
        """
        names = _TABLES + (_UNITS if self.hidden else [])
        permute(self, as_permutation(permutation, self.num_states), names)


def raw(scale: Tensor) -> Tensor:
    """The number of which `normal` makes this standard deviation."""
    scale = (scale - LEAST_SCALE).clamp_min(LEAST_SCALE)
    return scale + (-(-scale).expm1()).log()  # the inverse of softplus
