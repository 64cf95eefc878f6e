"""Random chains to test with, awkward ones on request."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Chain(NamedTuple):
    """The arguments of an op: `op(*chain.logits, lengths=chain.lengths)`."""

    initial_logits: Tensor
    transition_logits: Tensor
    observation_logits: Tensor
    lengths: Tensor | None = None

    @property
    def logits(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three potentials, without the lengths."""
        return self.initial_logits, self.transition_logits, self.observation_logits

    @property
    def batch_shape(self) -> torch.Size:
        """The shape all four arguments broadcast to, time and states left out."""
        return torch.broadcast_shapes(
            self.initial_logits.shape[:-1],
            self.transition_logits.shape[:-3],
            self.observation_logits.shape[:-2],
            () if self.lengths is None else self.lengths.shape,
        )

    def to(self, dtype: torch.dtype) -> "Chain":
        """The same chain with potentials of another dtype."""
        return self._with(logits.to(dtype) for logits in self.logits)

    def requires_grad(self) -> "Chain":
        """The same chain, its potentials leaves that ask for gradients. Strides are kept, memory is shared."""
        return self._with(logits.detach().requires_grad_() for logits in self.logits)

    def _with(self, logits: Iterable[Tensor]) -> "Chain":
        initial_logits, transition_logits, observation_logits = logits
        return Chain(initial_logits, transition_logits, observation_logits, self.lengths)


def random_chain(
    num_states: int = 3,
    num_steps: int = 4,
    batch_shape: Sequence[int] = (),
    *,
    transitions: Literal["shared", "constant", "each"] = "shared",
    impossible: float = 0.0,
    lengths: Tensor | Literal["ragged"] | None = None,
    scale: float = 1.0,
    broadcast: bool = False,
    contiguous: bool = True,
    poison: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Chain:
    """Potentials drawn from `scale` times a standard normal, not normalised; the same seed gives the same chain.

    Args:
        num_states: K.
        num_steps: T.
        batch_shape: the shape of the batch, `...` below.
        transitions: "shared" (K, K); "constant" (..., 1, K, K), the same at every step; "each" (..., T-1, K, K).
        impossible: the expected fraction of potentials that are -inf, 0 to 1. Whole sequences may become impossible.
        lengths: (...) integers, or "ragged" to draw them uniformly from 0 to T.
        scale: the standard deviation of the potentials.
        broadcast: give each batch dimension to one of the three potentials only; the other two have size 1 there
            (a "shared" transition has no batch dimensions and is left out).
        contiguous: if False, potentials are transposed and strided views, their neighbours in memory NaN.
        poison: fill with NaN every entry that no sequence may read, being past the length.
        dtype: of the potentials.
        seed: of the random numbers. Torch's global random state is left alone.

    Raises:
        ValueError: if `transitions`, `impossible` or `lengths` is none of the above.

    >>> chain = random_chain(2, 3, (4,), transitions="each", lengths=torch.tensor([0, 3, 1, 2]), poison=True)
    >>> [tuple(logits.shape) for logits in chain.logits]
    [(4, 2), (4, 2, 2, 2), (4, 3, 2)]
    >>> chain.observation_logits.isnan().any(-1).sum(-1)
    tensor([3, 0, 2, 1])
    """
    if transitions not in ("shared", "constant", "each"):
        raise ValueError(f"transitions must be 'shared', 'constant' or 'each', but got {transitions!r}")
    if not 0 <= impossible <= 1:
        raise ValueError(f"impossible must be a fraction between 0 and 1, but got {impossible}")
    if not (lengths is None or isinstance(lengths, Tensor) or lengths == "ragged"):
        raise ValueError(f"lengths must be a tensor, 'ragged' or None, but got {lengths!r}")
    generator = torch.Generator().manual_seed(seed)
    batch_shape = torch.Size(batch_shape)
    if isinstance(lengths, str):
        lengths = torch.randint(num_steps + 1, batch_shape, generator=generator)

    time = {"shared": (), "constant": (1,), "each": (max(num_steps - 1, 0),)}[transitions]
    batches = _batch_shapes(batch_shape, broadcast, transitions == "shared", generator)
    shapes = (
        (*batches[0], num_states),
        (*batches[1], *time, num_states, num_states),
        (*batches[2], num_steps, num_states),
    )

    def draw(shape: tuple[int, ...]) -> Tensor:
        logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return logits.masked_fill(torch.rand(shape, generator=generator) < impossible, -float("inf"))

    initial_logits, transition_logits, observation_logits = map(draw, shapes)
    chain = Chain(initial_logits, transition_logits, observation_logits, lengths)
    if poison:
        chain = poison_padding(chain)
    return chain if contiguous else chain._with(map(_scatter, chain.logits))


def poison_padding(chain: Chain) -> Chain:
    """Fill with NaN every potential that no sequence of the chain may read, being past its length.

    Step t of `observation_logits` counts when t < length, a transition from t to t + 1 when t + 1 < length, and
    `initial_logits` when length >= 1. An entry shared by several sequences stays as long as one of them reads it.

    >>> chain = Chain(torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2), lengths=torch.tensor(1))
    >>> poison_padding(chain).observation_logits
    tensor([[0., 0.],
            [nan, nan],
            [nan, nan]])
    """
    batch_shape, num_steps = chain.batch_shape, chain.observation_logits.shape[-2]
    lengths = torch.tensor(num_steps) if chain.lengths is None else chain.lengths
    lengths = lengths.expand(batch_shape).unsqueeze(-1)
    step = torch.arange(num_steps)
    initial, transition, observation = chain.logits
    each_step = transition if transition.dim() > 2 else transition.unsqueeze(0)
    return Chain(
        _poison(initial, lengths > 0),
        _poison(each_step, (step[1:] < lengths)[..., None, None]).reshape(transition.shape),
        _poison(observation, (step < lengths)[..., None]),
        chain.lengths,
    )


def _poison(logits: Tensor, read: Tensor) -> Tensor:
    """NaN where no element that `logits` is broadcast to is read. `read` ends in the dimensions of `logits`."""
    full = torch.broadcast_shapes(read.shape, logits.shape)
    readers = read.expand(full).to(torch.int64).sum_to_size(*logits.shape)
    return logits.masked_fill(readers == 0, float("nan"))


def _batch_shapes(
    batch_shape: torch.Size, broadcast: bool, shared: bool, generator: torch.Generator
) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The batch shapes of initial, transition and observation potentials."""
    if not broadcast:
        return batch_shape, () if shared else batch_shape, batch_shape
    owners = (0, 2) if shared else (0, 1, 2)
    owner = [owners[int(torch.randint(len(owners), (), generator=generator))] for _ in batch_shape]

    def batch(argument: int) -> list[int]:
        return [n if who == argument else 1 for n, who in zip(batch_shape, owner, strict=True)]

    return batch(0), () if shared else batch(1), batch(2)


def _scatter(values: Tensor) -> Tensor:
    """Equal values in transposed, strided memory, with NaN between them."""
    memory = torch.full((*reversed(values.shape), 2), float("nan"), dtype=values.dtype)
    view = memory[..., 0].permute(*reversed(range(values.dim())))
    return view.copy_(values)
