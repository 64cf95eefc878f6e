"""Recurrent encoders."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count
from pyrohmm.nn.encoder.encoder import Encoder, built

DIRECTIONS = ("forward", "backward", "both")


class RecurrentEncoder(Encoder):
    """Features from gated recurrent units (GRU) that run through the sequence forward, backward, or both.

    With "forward" the features of step t depend on steps 1..t, with "backward" on t..T; with "both" half of the
    features are of each kind in the first layer, and each layer sees both halves of the one below.

    Args:
        dim: as for `Encoder`.
        hidden: H, even for "both".
        direction: "forward", "backward" or "both".
        num_layers: at least 1.
        dropout: of the features between layers, in training mode.
        generator: source of the random start; torch's global one if None.
        **settings: `context`, `symbols` and `missing`, as for `Encoder`.

    Raises:
        TypeError, ValueError: as `Encoder`; another direction, an odd H for "both".

    Reference:
        Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder"; Schuster and Paliwal (1997),
        "Bidirectional recurrent neural networks".

    >>> x = torch.randn(2, 5, 3)
    >>> RecurrentEncoder(3, 8)(x, torch.tensor([5, 2])).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        direction: str = "both",
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        generator: Generator | None = None,
        **settings: Any,
    ):
        super().__init__(dim, hidden, **settings)
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected one of {DIRECTIONS}, got {direction!r}")
        if direction == "both" and hidden % 2:
            raise ValueError(f"hidden: expected an even number for direction='both', got {hidden}")
        self.direction = direction
        # Not called by direction: a module has a method forward.
        ways = {"forward": ["from_left"], "backward": ["from_right"], "both": ["from_left", "from_right"]}[direction]
        sizes = [self.num_inputs] + [hidden] * (count("num_layers", num_layers) - 1)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    way: built(lambda size=size: nn.GRU(size, hidden // len(ways), batch_first=True), generator)
                    for way in ways
                }
            )
            for size in sizes
        )
        self.dropout = nn.Dropout(dropout)

    def encode(self, channels: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As in `Encoder`."""
        features = channels
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleDict)
            if number:
                features = self.dropout(features)
            ways = [
                unit(features)[0] if way == "from_left" else flip(unit(flip(features, lengths))[0], lengths)
                for way, unit in layer.items()
            ]
            features = torch.cat(ways, -1)
        return features


def flip(values: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence (N, T, ...) reversed within its length; what is past it stays where it is.

    No packing: that would sort by length on the CPU, for which a GPU has to be waited for.

    >>> flip(torch.tensor([[1, 2, 3, 9], [1, 2, 9, 9]]), torch.tensor([3, 2]))
    tensor([[3, 2, 1, 9],
            [2, 1, 9, 9]])
    """
    steps = torch.arange(values.shape[1], device=values.device)
    index = lengths.unsqueeze(-1) - 1 - steps
    index = torch.where(index >= 0, index, steps)
    return values.gather(1, index[(..., *(None,) * (values.dim() - 2))].expand_as(values))
