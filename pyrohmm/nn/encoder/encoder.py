"""What all encoders have in common: missing entries, padding, and symbols as features."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from pyro.nn import PyroModule
from torch import Generator, Tensor, nn

from pyrohmm.nn._common import count, mlp

M = TypeVar("M", bound=nn.Module)


class Encoder(PyroModule):
    """A network from sequences (N, T, *event) to features (N, T, H) of each step, which may look at all other steps.

    Neither padding nor missing entries reach the network: they are 0 in its input, a channel beside the observations
    tells where something is missing, and the features past a sequence's length are 0. So the features of a sequence
    do not depend on what it is padded with, nor on how far.

    A class of your own implements `encode`.

    Args:
        dim: D, numbers in an observation; or, of `symbols`, how many there are.
        hidden: H, features of a step.
        context: C, the size of the inputs; 0 for none.
        symbols: whether an observation is one of D symbols, an int from 0 to D - 1 (N, T).
        missing: what tells of missing observations: "steps" (a channel that is 1 where any entry of the step is
            missing), "entries" (D channels), or None (nothing: a missing entry looks like a 0).

    Attributes:
        num_features: H.
        num_inputs: channels that `encode` is given.

    Raises:
        TypeError, ValueError: a size that is no positive int, or another `missing`.
    """

    def __init__(
        self, dim: int, hidden: int, *, context: int = 0, symbols: bool = False, missing: str | None = "steps"
    ):
        super().__init__()
        self.dim = count("dim", dim)
        self.num_features = count("hidden", hidden)
        self.context = count("context", context, least=0)
        self.symbols = symbols
        self.missing = missing
        channels = {None: 0, "steps": 1, "entries": 1 if symbols else dim}
        if missing not in channels:
            raise ValueError(f"missing: expected 'steps', 'entries' or None, got {missing!r}")
        self.num_inputs = dim + channels[missing] + context

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """The features of each step.

        Args:
            x: observations (N, T, *event) with D numbers in an event, or D symbols (N, T); what is missing or past the
                length may be anything, NaN too.
            lengths: (N,), int64; all T if None.
            observed: bool, True where observed, (N, T) or the shape of x; all if None.
            inputs: covariates (N, T, C), known at every step within the length.

        Returns:
            (N, T, H), 0 past the length.

        Raises:
            ValueError: a shape that does not fit, or a symbol that there is not.
        """
        event_dims, numbers = (0, 1) if self.symbols else (x.dim() - 2, self.dim)
        if x.dim() != 2 + event_dims or event_dims < 0 or x.shape[2:].numel() != numbers:
            expected = "(N, T)" if self.symbols else f"(N, T, *event), with {numbers} numbers in an event"
            raise ValueError(f"x: expected shape {expected}, got {tuple(x.shape)}")
        shape = x.shape[:2]
        if lengths is not None and lengths.shape != shape[:1]:
            raise ValueError(f"lengths: expected shape {tuple(shape[:1])}, got {tuple(lengths.shape)}")
        if observed is not None and observed.shape not in (shape, x.shape):
            expected = f"shape {tuple(shape)} or {tuple(x.shape)}"
            raise ValueError(f"observed: expected {expected}, got {tuple(observed.shape)}")
        wanted = (*shape, self.context) if self.context else None
        if (got := None if inputs is None else tuple(inputs.shape)) != wanted:
            raise ValueError(f"inputs: expected {f'shape {wanted}' if wanted else 'None'}, got {got}")
        if lengths is None:
            lengths = torch.full(shape[:1], shape[1], device=x.device)
        valid = torch.arange(shape[1], device=x.device) < lengths.unsqueeze(-1)
        read = valid if observed is None else observed & valid[(..., *(None,) * (observed.dim() - 2))]
        wide = read[(..., *(None,) * (x.dim() - read.dim()))].expand(x.shape)
        dtype = next(self.parameters()).dtype
        channels = [self._values(torch.where(wide, x, 0), dtype) * (wide.unsqueeze(-1) if self.symbols else 1)]
        absent = (~wide & valid[(..., *(None,) * (x.dim() - 2))]).reshape(*shape, -1).to(dtype)
        if self.missing == "steps":
            channels.append(absent.amax(-1, keepdim=True))
        elif self.missing == "entries":
            channels.append(absent)
        if inputs is not None:
            channels.append(torch.where(valid.unsqueeze(-1), inputs, 0).to(dtype))
        features = self.encode(torch.cat(channels, -1), lengths, valid)
        return torch.where(valid.unsqueeze(-1), features, 0.0)

    def _values(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The observations as D numbers, (N, T, D)."""
        if not self.symbols:
            return x.flatten(2).to(dtype) if x.dim() > 2 else x.unsqueeze(-1).to(dtype)
        if x.is_floating_point():
            raise ValueError(f"x: expected symbols as integers, got {x.dtype}")
        return (x.unsqueeze(-1) == torch.arange(self.dim, device=x.device)).to(dtype)

    def encode(self, channels: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """The features of sequences without gaps.

        Args:
            channels: (N, T, num_inputs), 0 past the length.
            lengths: (N,).
            valid: (N, T) bool, True within the length.

        Returns:
            (N, T, H); what stands past the length does not matter.
        """
        raise NotImplementedError("expected a class that implements encode")


class StepEncoder(Encoder):
    """Features of each step by itself, from a network with one hidden layer: no step sees another.

    Args:
        dim, hidden, context, symbols, missing: as for `Encoder`.
        generator: source of the random start; torch's global one if None.

    >>> StepEncoder(3, 8)(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, hidden: int, *, generator: Generator | None = None, **settings: Any):
        super().__init__(dim, hidden, **settings)
        self.net = nn.Sequential(*mlp(self.num_inputs, hidden, hidden, generator), nn.Tanh())

    def encode(self, channels: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As in `Encoder`."""
        return self.net(channels)


def built(make: Callable[[], M], generator: Generator | None) -> M:
    """A module that torch starts at random, from `generator` and with no effect on the global one if it is given."""
    if generator is None:
        return make()
    with torch.random.fork_rng([]):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        torch.default_generator.manual_seed(int(seed))
        return make()
