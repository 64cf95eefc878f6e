"""Encoders of dilated convolutions."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn.encoder.encoder import Encoder, built


class ConvolutionalEncoder(Encoder):
    r"""Features from residual layers of convolutions over time whose reach doubles from layer to layer.

    .. math:: f^{l}_t = f^{l-1}_t + \mathrm{relu}\Big(\sum_j W^{l}_j f^{l-1}_{t + 2^l (j - (w-1)/2)} + b^{l}\Big)

    A step sees (w - 1) (2^L - 1) / 2 steps to either side; the steps beyond the ends are 0.

    Args:
        dim, hidden: as for `Encoder`.
        num_layers: L, at least 1.
        width: w, steps that a convolution reads, odd.
        generator: source of the random start; torch's global one if None.
        **settings: `context`, `symbols` and `missing`, as for `Encoder`.

    Raises:
        TypeError, ValueError: as `Encoder`; an even width.

    Reference:
        Bai, Kolter and Koltun (2018), "An empirical evaluation of generic convolutional and recurrent networks for
        sequence modeling", without their causal masks.

    >>> ConvolutionalEncoder(3, 8, num_layers=2)(torch.randn(2, 5, 3), torch.tensor([5, 2])).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        num_layers: int = 4,
        width: int = 3,
        generator: Generator | None = None,
        **settings: Any,
    ):
        super().__init__(dim, hidden, **settings)
        if count("width", width) % 2 == 0:
            raise ValueError(f"width: expected an odd number, got {width}")
        count("num_layers", num_layers)
        self.first = built(lambda: nn.Linear(self.num_inputs, hidden), generator)
        self.layers = nn.ModuleList(
            built(lambda spread=2**number: nn.Conv1d(hidden, hidden, width, padding="same", dilation=spread), generator)
            for number in range(num_layers)
        )

    def encode(self, channels: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As in `Encoder`."""
        within = valid.unsqueeze(1)
        features = self.first(channels).mT
        for layer in self.layers:
            # Zero past the end of each sequence, as beyond the end of the tensor.
            features = features + layer(torch.where(within, features, 0.0)).relu()
        return features.mT
