"""The waist of the library: shapes, broadcasting, lengths and validation of a chain's three log-potentials."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

Impl = Literal["auto", "reference", "cpu", "gpu"]


class Chain(NamedTuple):
    """Checked log-potentials of a batch of linear chains (not expanded: batch dimensions may have size one).

    Entries that no sequence reads (past the lengths) are zero, whatever the caller left in them.

    Attributes:
        initial: (..., K), potential of the first state.
        transition: (..., 1, K, K) shared over time or (..., T-1, K, K), indexed [from, to].
        observation: (..., T, K), unary potential of each step.
        lengths: (*batch_shape), int64, number of valid steps of each sequence.
        batch_shape: the common batch shape of the four.
    """

    initial: Tensor
    transition: Tensor
    observation: Tensor
    lengths: Tensor
    batch_shape: torch.Size

    @property
    def num_steps(self) -> int:
        """Number of steps T, padding included."""
        return self.observation.shape[-2]

    @property
    def num_states(self) -> int:
        """Number of states K."""
        return self.observation.shape[-1]

    @property
    def valid(self) -> Tensor:
        """Which steps lie within the lengths, (*batch_shape, T) bool."""
        return valid_steps(self.lengths, self.num_steps)

    def transition_at(self, step: int) -> Tensor:
        """Potentials of the transition from `step` to `step + 1`, (..., K, K)."""
        return self.transition[..., step if self.transition.shape[-3] > 1 else 0, :, :]


def valid_steps(lengths: Tensor, num_steps: int) -> Tensor:
    """Which steps lie within the lengths: `step < length`.

    Args:
        lengths: (...), int64.
        num_steps: number of steps T.

    Returns:
        (..., T), bool.

    Example:
        >>> valid_steps(torch.tensor([1, 3]), 3).int().tolist()
        [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)


def as_chain(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Chain:
    """Check the three log-potentials and bring them into the form that every implementation reads.

    Args:
        initial_logits: (..., K).
        transition_logits: (K, K), (..., 1, K, K) or (..., T-1, K, K), indexed [from, to].
        observation_logits: (..., T, K).
        lengths: (...), int64 in 0..T; all T when None.

    Returns:
        The `Chain`.

    Raises:
        TypeError: an argument is no floating tensor, dtypes differ, or lengths are not integers.
        ValueError: shapes do not fit, lengths lie outside 0..T, or (with torch's distribution validation on,
            as `pyro.enable_validation` sets it) an entry within the lengths is NaN or +inf.

    Example:
        >>> chain = as_chain(torch.zeros(2), torch.zeros(2, 2), torch.zeros(5, 3, 2))
        >>> chain.batch_shape, chain.transition.shape
        (torch.Size([5]), torch.Size([1, 2, 2]))
    """
    potentials = {
        "initial_logits": initial_logits,
        "transition_logits": transition_logits,
        "observation_logits": observation_logits,
    }
    for (name, value), dims in zip(potentials.items(), (1, 2, 2), strict=True):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating tensor, got {got}")
        if value.dim() < dims:
            raise ValueError(f"{name}: expected at least {dims} dimension(s), got shape {tuple(value.shape)}")
    for name, value in potentials.items():
        if value.dtype != observation_logits.dtype or value.device != observation_logits.device:
            raise TypeError(
                f"{name}: expected {observation_logits.dtype} on {observation_logits.device} like observation_logits, "
                f"got {value.dtype} on {value.device}"
            )
    num_steps, num_states = observation_logits.shape[-2:]
    if num_states == 0:
        raise ValueError(
            f"observation_logits: expected at least one state, got shape {tuple(observation_logits.shape)}"
        )
    if initial_logits.shape[-1] != num_states:
        raise ValueError(
            f"initial_logits: expected {num_states} states in the last dimension as in observation_logits "
            f"{tuple(observation_logits.shape)}, got shape {tuple(initial_logits.shape)}"
        )
    if transition_logits.shape[-2:] != (num_states, num_states):
        raise ValueError(
            f"transition_logits: expected last dimensions ({num_states}, {num_states}) [from, to], "
            f"got shape {tuple(transition_logits.shape)}"
        )
    transition = transition_logits.unsqueeze(0) if transition_logits.dim() == 2 else transition_logits
    if transition.shape[-3] not in (1, max(num_steps - 1, 0)):
        raise ValueError(
            f"transition_logits: expected 1 (shared) or T-1 = {max(num_steps - 1, 0)} transitions in dimension -3, "
            f"got shape {tuple(transition_logits.shape)}"
        )
    if lengths is None:
        lengths = torch.full((), num_steps, device=observation_logits.device)
        ragged = False
    else:
        _check_lengths(lengths, num_steps)
        lengths = lengths.to(observation_logits.device)
        ragged = True
    batch_shapes = (initial_logits.shape[:-1], transition.shape[:-3], observation_logits.shape[:-2], lengths.shape)
    try:
        batch_shape = torch.broadcast_shapes(*batch_shapes)
    except RuntimeError as error:
        names = [*potentials, "lengths"]
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(names, batch_shapes, strict=True))
        raise ValueError(f"batch shapes do not broadcast: {shapes}") from error
    lengths = lengths.expand(batch_shape)

    # Which entries are read, at the shape of each argument: anything else may hold NaN.
    valid = valid_steps(lengths, num_steps)
    reads = (
        _any_to_size((lengths > 0) & (num_steps > 0), initial_logits.shape[:-1]),
        _any_to_size(
            valid[..., 1:] if transition.shape[-3] > 1 else (lengths > 1).unsqueeze(-1), transition.shape[:-2]
        ),
        _any_to_size(valid, observation_logits.shape[:-1]),
    )
    read_logits = [reads[0].unsqueeze(-1), reads[1][..., None, None], reads[2].unsqueeze(-1)]
    checked = [initial_logits, transition, observation_logits]
    if Distribution._validate_args:  # what pyro.enable_validation switches
        for (name, value), logits, read in zip(potentials.items(), checked, read_logits, strict=True):
            _check_entries(name, value, logits, read)
    if ragged:
        checked = [
            torch.where(read, logits, logits.new_zeros(())) for logits, read in zip(checked, read_logits, strict=True)
        ]
    initial, transition, observation = checked
    return Chain(initial, transition, observation, lengths, batch_shape)


def check_impl(impl: str) -> None:
    """Raise unless `impl` is one of the names that every operation knows.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: an implementation that this installation does not have (no silent fall back).
    """
    if impl in ("cpu", "gpu"):
        raise NotImplementedError(f"impl: {impl!r} is not available here; use 'auto' or 'reference'")
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl: expected 'auto', 'reference', 'cpu' or 'gpu', got {impl!r}")


def logsumexp(logits: Tensor, dim: int) -> Tensor:
    """`log(sum(exp(logits)))` whose value is -inf and whose gradient is zero (not NaN) where all entries are -inf."""
    shift = finite(logits.detach().amax(dim, keepdim=True))
    total = (logits - shift).exp().sum(dim)
    possible = total > 0
    return torch.where(possible, torch.where(possible, total, 1.0).log() + shift.squeeze(dim), -torch.inf)


def finite(values: Tensor) -> Tensor:
    """Zero in place of what is not finite: a shift that can be subtracted from -inf without making NaN."""
    return torch.where(values.isfinite(), values, 0.0)


def check_integers(lengths: Tensor) -> None:
    """Raise unless lengths are a tensor of integers.

    Raises:
        TypeError: they are not.
    """
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths: expected an int64 tensor, got {got}")


def _check_lengths(lengths: Tensor, num_steps: int) -> None:
    check_integers(lengths)
    if Distribution._validate_args:
        bad = (lengths < 0) | (lengths > num_steps)
        if bad.any():
            index = tuple(bad.nonzero()[0].tolist())
            raise ValueError(f"lengths: expected values in 0..{num_steps}, got {int(lengths[index])} at index {index}")


def _check_entries(name: str, value: Tensor, logits: Tensor, read: Tensor) -> None:
    largest = torch.finfo(logits.dtype).max
    bad = ~(logits <= largest) & read
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())[logits.dim() - value.dim() :]
        raise ValueError(f"{name}: expected no NaN and no +inf, got {value[index].item()} at index {index}")


def _any_to_size(mask: Tensor, shape: torch.Size) -> Tensor:
    """Reduce a batch mask by `any` over the dimensions that `shape` broadcasts."""
    # A size-0 target (no transitions at T = 1) has nothing to reduce into.
    if 0 in shape:
        return mask.new_zeros(shape)
    full = torch.broadcast_shapes(mask.shape, shape)
    return mask.expand(full).int().sum_to_size(shape) > 0
