"""From the features of an encoder to the potentials of a chain of states."""

from typing import NamedTuple

import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn.encoder.encoder import Encoder
from pyrohmm.nn.transition import sticky_logits


class ChainLogits(NamedTuple):
    """Potentials of a chain, none of them normalised, as `MarkovChain.from_potentials` takes them.

    Attributes:
        initial: (K,).
        transition: (K, K), or (N, T-1, K, K).
        observation: (N, T, K).
    """

    initial: Tensor
    transition: Tensor
    observation: Tensor


class ChainEncoder(PyroModule):
    r"""Potentials of a chain q(z | x) of states, from a network that reads the sequence x.

    .. math::
        q(z_{1:T} \mid x) \propto e^{a_{z_1}} \prod_{t<T} e^{A_{z_t z_{t+1}} + B(f_{t+1})_{z_t z_{t+1}}}
        \prod_t e^{u(f_t)_{z_t}}

    with features f = encoder(x), linear u and, if pairwise, linear B.

    Args:
        num_states: K.
        encoder: from (N, T, *event) to features (N, T, H); see `Encoder`.
        pairwise: whether transitions too depend on the sequence. Otherwise they are one matrix A.
        generator: source of the random start; torch's global one if None.

    Attributes:
        initial, transition: a (K,) and A (K, K), parameters.

    Raises:
        TypeError, ValueError: a size that is no positive int, or an `encoder` that is none.

    Reference:
        Johnson et al. (2016), "Composing graphical models with neural networks"; for the pairwise form Lafferty,
        McCallum and Pereira (2001), "Conditional random fields".

    >>> from pyrohmm.nn import RecurrentEncoder
    >>> logits = ChainEncoder(4, RecurrentEncoder(3, 8))(torch.randn(2, 5, 3), torch.tensor([5, 2]))
    >>> logits.transition.shape, logits.observation.shape
    (torch.Size([4, 4]), torch.Size([2, 5, 4]))
    """

    def __init__(
        self, num_states: int, encoder: Encoder, *, pairwise: bool = False, generator: Generator | None = None
    ):
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise TypeError(f"encoder: expected a pyrohmm.nn.Encoder, got {type(encoder).__name__}")
        self.num_states = count("num_states", num_states)
        self.encoder = encoder
        self.initial = nn.Parameter(torch.zeros(num_states))
        self.transition = nn.Parameter(sticky_logits(num_states, 1.0, generator))
        self.unary = small_linear(encoder.num_features, num_states, generator)
        self.pairwise = small_linear(encoder.num_features, num_states**2, generator) if pairwise else None

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> ChainLogits:
        """The potentials; arguments as for `Encoder`."""
        features = self.encoder(x, lengths, observed=observed, inputs=inputs)
        transition = self.transition
        if self.pairwise is not None:
            transition = transition + self.pairwise(features[:, 1:]).unflatten(-1, transition.shape)
        return ChainLogits(self.initial, transition, self.unary(features))


def small_linear(num_in: int, num_out: int, generator: Generator | None) -> nn.Linear:
    """A linear layer whose outputs are near 0 at the start, so that no state is preferred, but none like another."""
    layer = nn.utils.skip_init(nn.Linear, num_in, num_out, device=torch.get_default_device())
    assert isinstance(layer, nn.Linear)
    nn.init.normal_(layer.weight, 0.0, num_in**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
