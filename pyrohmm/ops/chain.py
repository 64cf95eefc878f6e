"""The waist of the library: shapes, broadcasting, lengths and validation of a chain's three log-potentials."""

import os
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

# A process forked off this one must not use its OpenMP threads: they are gone.
PROCESS = os.getpid()
# The first version of Triton that multiplies matrices of float64.
TRITON = (3, 5)

_NAMES = ("initial_logits", "transition_logits", "observation_logits")

Impl = Literal["auto", "reference", "cpu", "gpu"]


class Chain(NamedTuple):
    """Checked log-potentials of a batch of linear chains (not expanded: batch dimensions may have size one).

    Entries that no sequence reads (past the lengths) may hold anything until `clear_padding`.

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


class Tangent(NamedTuple):
    """Inner products with the Hessian of log Z, as an implementation's `hessian_product` returns them."""

    initial: Tensor
    transition: Tensor
    observation: Tensor
    expectation: Tensor


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
    """Check the three log-potentials, entries included, and clear the padding.

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
    chain = fit_chain(initial_logits, transition_logits, observation_logits, lengths)
    check_entries(chain)
    return clear_padding(chain)


def fit_chain(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Chain:
    """The chain of three log-potentials whose shapes fit; arguments and errors as `as_chain`, entries unread."""
    potentials = (initial_logits, transition_logits, observation_logits)
    for name, value in zip(_NAMES, potentials, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a floating tensor, got {type(value).__name__}")
    _check_potentials(*((value.shape, value.dtype, value.device) for value in potentials))
    transition = transition_logits.unsqueeze(0) if transition_logits.dim() == 2 else transition_logits
    num_steps, device = observation_logits.shape[-2], observation_logits.device
    if lengths is not None:
        check_lengths(lengths, num_steps)
        lengths = lengths.to(device, torch.int64)
    batch_shape = _broadcast(
        initial_logits.shape[:-1],
        transition.shape[:-3],
        observation_logits.shape[:-2],
        torch.Size() if lengths is None else lengths.shape,
    )
    lengths = _all_steps(num_steps, batch_shape, device) if lengths is None else lengths.expand(batch_shape)
    return Chain(initial_logits, transition, observation_logits, lengths, batch_shape)


@lru_cache(maxsize=256)
def _all_steps(num_steps: int, batch_shape: torch.Size, device: torch.device) -> Tensor:
    """Lengths of sequences that end at the last step; they take the memory of one number."""
    with torch.inference_mode(False):
        return torch.tensor(num_steps, device=device).expand(batch_shape)


# Training asks the same question at every step.
@lru_cache(maxsize=256)
def _check_potentials(*described: tuple[torch.Size, torch.dtype, torch.device]) -> None:
    """Raise if potentials of these shapes, dtypes and devices do not make a chain."""
    for name, (shape, dtype, _), dims in zip(_NAMES, described, (1, 2, 2), strict=True):
        if not dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating tensor, got {dtype}")
        if len(shape) < dims:
            raise ValueError(f"{name}: expected at least {dims} dimension(s), got shape {tuple(shape)}")
    (initial, _, _), (transition, _, _), (observation, dtype, device) = described
    for name, (_, own_dtype, own_device) in zip(_NAMES, described, strict=True):
        if own_dtype != dtype or own_device != device:
            raise TypeError(
                f"{name}: expected {dtype} on {device} like observation_logits, got {own_dtype} on {own_device}"
            )
    num_steps, num_states = observation[-2:]
    if num_states == 0:
        raise ValueError(f"observation_logits: expected at least one state, got shape {tuple(observation)}")
    if initial[-1] != num_states:
        raise ValueError(
            f"initial_logits: expected {num_states} states in the last dimension as in observation_logits "
            f"{tuple(observation)}, got shape {tuple(initial)}"
        )
    if transition[-2:] != (num_states, num_states):
        raise ValueError(
            f"transition_logits: expected last dimensions ({num_states}, {num_states}) [from, to], "
            f"got shape {tuple(transition)}"
        )
    if len(transition) > 2 and transition[-3] not in (1, max(num_steps - 1, 0)):
        raise ValueError(
            f"transition_logits: expected 1 (shared) or T-1 = {max(num_steps - 1, 0)} transitions in dimension -3, "
            f"got shape {tuple(transition)}"
        )


@lru_cache(maxsize=256)
def _broadcast(*batch_shapes: torch.Size) -> torch.Size:
    """The common batch shape of the potentials and the lengths."""
    try:
        # Not torch's own, which imports all of sympy at its first call.
        return torch.Size(np.broadcast_shapes(*batch_shapes))
    except ValueError as error:
        named = zip((*_NAMES, "lengths"), batch_shapes, strict=True)
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in named)
        raise ValueError(f"batch shapes do not broadcast: {shapes}") from error


def check_entries(chain: Chain) -> None:
    """Raise if an entry that a sequence reads is NaN or +inf, where torch's distribution validation is on.

    Raises:
        ValueError: naming the argument and the first such index.
    """
    if not Distribution._validate_args:  # what pyro.enable_validation switches
        return
    limit = torch.finfo(chain.observation.dtype).max
    if all(bool(logits.amax() <= limit) for logits in chain[:3] if logits.numel() > 0):
        return  # nothing bad anywhere, padding included
    for name, logits, read in zip(_NAMES, chain[:3], _reads(chain), strict=True):
        bad = ~(logits <= limit) & read
        if bad.any():
            index = tuple(bad.nonzero()[0].tolist())
            value = logits[index].item()
            if name == "transition_logits" and logits.dim() == 3 and logits.shape[0] == 1:
                index = index[1:]  # one matrix for all has no dimension of time
            raise ValueError(f"{name}: expected no NaN and no +inf, got {value} at index {index}")


def clear_padding(chain: Chain) -> Chain:
    """The chain with zeros in all entries that no sequence reads; differentiable."""
    # Elsewhere than on the CPU the question would cost a synchronisation.
    if chain.num_steps > 1 and chain.lengths.device.type == "cpu" and bool((chain.lengths == chain.num_steps).all()):
        return chain
    zero = chain.observation.new_zeros(())
    logits = [torch.where(read, logits, zero) for logits, read in zip(chain[:3], _reads(chain), strict=True)]
    return chain._replace(initial=logits[0], transition=logits[1], observation=logits[2])


def _reads(chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries are read by any sequence, of shapes that broadcast to those of the potentials."""
    lengths, valid, per_step = chain.lengths, chain.valid, chain.transition.shape[-3] > 1
    initial = _any_to_size((lengths > 0) & (chain.num_steps > 0), chain.initial.shape[:-1])
    transition = valid[..., 1:] if per_step else (lengths > 1).unsqueeze(-1)
    transition = _any_to_size(transition, chain.transition.shape[:-2])
    observation = _any_to_size(valid, chain.observation.shape[:-1])
    return initial.unsqueeze(-1), transition[..., None, None], observation.unsqueeze(-1)


def choose(impl: str, observation: Tensor, no_kernel: str = "") -> Literal["reference", "cpu", "gpu"]:
    """The implementation that `impl` means for a chain with these observation logits.

    Args:
        impl: as the user named it.
        observation: for its device and dtype.
        no_kernel: why there is none for the GPU, if there is none.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: an implementation that this installation does not have, or that does not take this chain
            (no silent fall back).
    """
    return decide(impl, observation, no_kernel)[0]


def decide(impl: str, observation: Tensor, no_kernel: str = "") -> tuple[Literal["reference", "cpu", "gpu"], str]:
    """The implementation that `impl` means, and why; arguments and errors as `choose`."""
    if impl not in ("auto", "reference", "cpu", "gpu"):
        raise ValueError(f"impl: expected 'auto', 'reference', 'cpu' or 'gpu', got {impl!r}")
    if impl == "reference":
        return "reference", "asked for"
    on_gpu = observation.is_cuda
    named = impl if impl != "auto" else "gpu" if on_gpu else "cpu"
    obstacle = no_kernel or _obstacle_to_gpu(observation) if named == "gpu" else _obstacle_to_cpu(observation)
    if obstacle and impl != "auto":
        raise NotImplementedError(f"impl: {impl!r} is not available: {obstacle}; use 'auto' or 'reference'")
    if obstacle:
        return "reference", obstacle
    if impl != "auto":
        return named, "asked for"
    return named, f"the tensors are on {'a GPU and triton' if on_gpu else 'the CPU and numba'} is installed"


def _obstacle_to_cpu(observation: Tensor) -> str:
    """Why kernels compiled for the CPU cannot take these tensors; empty if they can."""
    if observation.device.type != "cpu":
        return f"the tensors are on {observation.device}"
    return _obstacle_to_compiled(observation) or ("" if is_installed("numba") else "numba is not installed")


def _obstacle_to_gpu(observation: Tensor) -> str:
    """Why Triton kernels cannot take these tensors; empty if they can."""
    if not is_installed("triton"):
        return "triton is not installed"
    # Triton's own switch: it then runs kernels on the CPU, slowly, for tests.
    if not observation.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {observation.device}"
    if _version_of_triton() < TRITON:
        return f"triton is older than {'.'.join(map(str, TRITON))}"
    return _obstacle_to_compiled(observation)


def _obstacle_to_compiled(observation: Tensor) -> str:
    """What no compiled kernel can take; empty if there is nothing."""
    if observation.dtype not in (torch.float32, torch.float64):
        return f"the tensors are {observation.dtype}, not float32 or float64"
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "torch.jit records operations of torch only"
    return ""


@cache
def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


@cache
def _version_of_triton() -> tuple[int, ...]:
    # Not from the metadata, where it goes by several names. Loaded here because loading it takes a while.
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])


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


def check_lengths(lengths: Tensor, num_steps: int) -> None:
    """Raise unless lengths are integers in 0..T.

    Raises:
        TypeError: no integer tensor.
        ValueError: out of range; elsewhere than on the CPU only where torch's distribution validation is on.
    """
    check_integers(lengths)
    # On the CPU always: compiled code would read beyond the end. Elsewhere the question costs a synchronisation.
    if lengths.device.type == "cpu" or Distribution._validate_args:
        bad = (lengths < 0) | (lengths > num_steps)
        if bad.any():
            index = tuple(bad.nonzero()[0].tolist())
            raise ValueError(f"lengths: expected values in 0..{num_steps}, got {int(lengths[index])} at index {index}")


def _any_to_size(mask: Tensor, shape: torch.Size) -> Tensor:
    """Reduce a batch mask by `any` over the dimensions that `shape` broadcasts."""
    # A size-0 target (no transitions at T = 1) has nothing to reduce into.
    if 0 in shape:
        return mask.new_zeros(shape)
    full = np.broadcast_shapes(mask.shape, shape)
    return mask.expand(full).int().sum_to_size(shape) > 0
