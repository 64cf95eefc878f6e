"""Encoders of self-attention."""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn.encoder.encoder import Encoder, built


class TransformerEncoder(Encoder):
    """Features from layers of self-attention over all steps of a sequence.

    Positions are told by sines and cosines of wavelengths from 2 pi to 20000 pi steps. Time and memory grow with T^2.

    Args:
        dim: as for `Encoder`.
        hidden: H, even, and divisible by the number of heads.
        num_layers: at least 1.
        num_heads: at least 1.
        dropout: in training mode.
        generator: source of the random start; torch's global one if None.
        **settings: `context`, `symbols` and `missing`, as for `Encoder`.

    Raises:
        TypeError, ValueError: as `Encoder`; an H that does not divide.

    Reference:
        Vaswani et al. (2017), "Attention is all you need"; norms come first, as in Xiong et al. (2020).

    >>> TransformerEncoder(3, 8, num_heads=2).eval()(torch.randn(2, 5, 3), torch.tensor([5, 2])).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
        generator: Generator | None = None,
        **settings: Any,
    ):
        super().__init__(dim, hidden, **settings)
        count("num_layers", num_layers)
        if hidden % count("num_heads", num_heads) or hidden % 2:
            raise ValueError(f"hidden: expected an even multiple of num_heads={num_heads}, got {hidden}")
        self.first = built(lambda: nn.Linear(self.num_inputs, hidden), generator)
        self.layers = nn.ModuleList(
            built(
                lambda: nn.TransformerEncoderLayer(
                    hidden, num_heads, 4 * hidden, dropout, batch_first=True, norm_first=True
                ),
                generator,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def encode(self, channels: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As in `Encoder`."""
        features = self.first(channels)
        features = features + _positions(features)
        # Of no step at all the softmax would be NaN: an empty sequence looks at its first place, which nobody reads.
        first = torch.arange(valid.shape[1], device=valid.device) == 0
        unread = ~(valid | first)
        for layer in self.layers:
            features = layer(features, src_key_padding_mask=unread)
        return self.norm(features)


def _positions(features: Tensor) -> Tensor:
    """Sines and cosines of the steps, (T, H)."""
    num_steps, width = features.shape[-2:]
    steps = torch.arange(num_steps, device=features.device, dtype=features.dtype)
    rates = torch.arange(0, width, 2, device=features.device, dtype=features.dtype) * (-math.log(10000.0) / width)
    angles = steps.unsqueeze(-1) * rates.exp()
    return torch.cat([angles.sin(), angles.cos()], -1)
