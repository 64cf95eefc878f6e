"""What the two forms of the loop share: their arguments, masks, and a look at Pyro's stack."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions.distribution import Distribution
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.do_messenger import DoMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK, am_i_wrapped
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrohmm.distributions.padding import fill_unread
from pyrohmm.ops.chain import check_lengths as check_range
from pyrohmm.ops.chain import valid_steps


class LoopMessenger(Messenger):
    """The effect handler that is active while the body of a `markov` loop runs."""

    def __init__(self, name: str, num_steps: int, dim: int, lengths: Tensor | None):
        super().__init__()
        self.name = name
        self.num_steps = num_steps
        self.dim = dim
        self.lengths = lengths
        self.step = slice(0, 1)
        self.simulated: dict[str, list[Tensor]] = {}
        # Sites whose whole path is known before the loop runs: the path, and where its time is, counted from the right.
        self.paths: dict[str, tuple[Tensor, int]] = {}
        self._proposed: dict[str, tuple[Tensor, tuple[CondIndepStackFrame, ...]]] = {}
        self._subsamples: dict[str, Any] = {}

    def read_mask(self, mask: Any) -> Tensor | None:
        """Which entries of the present steps count: within the lengths and not masked; None for all."""
        read = mask if isinstance(mask, Tensor) else None
        if self.lengths is not None:
            valid = valid_steps(self.lengths, self.num_steps)[..., self.step]
            valid = valid.reshape(valid.shape + (1,) * (-self.dim - 1))
            read = valid if read is None else read & valid
        return read

    def reuse_subsample(self, msg: Any) -> bool:
        """Whether the message belongs to a plate's subsampling; each run of the body gets the same indices."""
        if not isinstance(msg["fn"], _Subsample):
            return False
        if msg["name"] in self._subsamples:
            msg["value"], msg["done"], msg["stop"] = self._subsamples[msg["name"]], True, True
        return True

    def take_path(self, msg: Any, name: str) -> None:
        """Give an unobserved site its values at the present steps, if data or a guide have them for all of time.

        Data are those of an enclosing `pyro.condition`; a guide is one that the program is replayed against, which has
        sampled a site of this name.

        Args:
            msg: the site's message, changed in place; it is then an observed one.
            name: the site's name in the body.

        Raises:
            ValueError: what the guide has sampled has another number of steps.
        """
        fn, read = msg["fn"], None
        event_dim = len(getattr(fn, "event_shape", ()))
        path = conditioned_value(name)
        if path is None:
            found = proposed_path(name, event_dim, self.dim)
            if found is None:
                return
            path, value = found
            if path.dim() + self.dim < event_dim or path.shape[self.dim - event_dim] != self.num_steps:
                raise ValueError(
                    f"site {name!r} in loop {self.name!r}: expected a guide that samples all {self.num_steps} steps, "
                    f"with the shape of data, got {tuple(value.shape)}"
                )
            self._proposed[name] = value, msg["cond_indep_stack"]
            read = self.read_mask(None)
        self.paths[name] = path, self.dim - event_dim
        here = path[(slice(None),) * (path.dim() + self.dim - event_dim) + (self.step,)]
        # What follows in the body is computed from it, at all steps.
        msg["value"], msg["is_observed"] = here if read is None else fill_unread(here, read, fn), True

    def leave_proposed(self) -> None:
        """Put the paths that a guide proposed into the program: their densities are in the loop's own sites."""
        if not am_i_wrapped():
            return
        for name, (value, frames) in self._proposed.items():
            with inside_plates(frames):
                sizes = enclosing_plates()
                batch = [sizes.get(dim, 1) for dim in range(min([0, *sizes]), 0)]
                pyro.sample(name, Proposed(value, torch.Size(batch)))  # type: ignore[arg-type]

    def remember(self, site: str, value: Tensor) -> None:
        """Keep the value of a site at the present step, for `previous` and for the sequences of a simulation."""
        self.simulated.setdefault(site, []).append(value)

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            self._subsamples[msg["name"]] = msg["value"]


def running_loop() -> LoopMessenger:
    """The innermost `markov` loop whose body is running.

    Raises:
        RuntimeError: there is none.
    """
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, LoopMessenger):
            return handler
    raise RuntimeError("pyrohmm.previous: expected to be called in the body of a pyrohmm.markov loop")


def enclosing_plates() -> dict[int, int]:
    """Dimension and (subsample) size of each vectorised plate on Pyro's stack."""
    plates = {}
    for handler in _PYRO_STACK:
        if isinstance(handler, IndepMessenger) and handler.dim is not None:
            size = handler.subsample_size if isinstance(handler, SubsampleMessenger) else handler.size
            plates[handler.dim] = int(size)
    return plates


def conditioned_value(name: str) -> Tensor | None:
    """The data that an enclosing `pyro.condition` has for a site, with its full time axis."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, ConditionMessenger) and name in handler.data:
            data: Any = handler.data
            return data.nodes[name]["value"] if isinstance(data, Trace) else data[name]
    return None


class Proposed(Distribution):
    """The law of a path that a guide has sampled: of log-probability zero, since its density is that of a loop.

    It tells no event dimensions, which Pyro would compare with those of the guide's law: a guide may have time among
    its event dimensions, or in a plate.
    """

    def __init__(self, value: Tensor, batch_shape: torch.Size):
        self.value = value
        self.batch_shape = batch_shape

    def sample(self) -> Tensor:
        """The path."""
        return self.value

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero for each entry of the plates around the loop."""
        return torch.zeros((), dtype=self.value.dtype, device=value.device).expand(self.batch_shape)


def proposed_path(name: str, event_dim: int, dim: int) -> tuple[Tensor, Tensor] | None:
    """What the guide that a program is replayed against has sampled for a site of a loop's body.

    Args:
        name: of the site, without a step.
        event_dim: of the site in the body.
        dim: the loop's dimension of time.

    Returns:
        The value with time at `dim`, as data have it, and as the guide has it; None if there is none, and in a loop
        within another one.
    """
    if sum(isinstance(handler, LoopMessenger) for handler in _PYRO_STACK) > 1:
        return None
    for handler in reversed(_PYRO_STACK):
        nodes = handler.trace.nodes if isinstance(handler, ReplayMessenger) and handler.trace is not None else {}
        if name not in nodes or nodes[name]["type"] != "sample" or nodes[name]["is_observed"]:
            continue
        site: Any = nodes[name]
        value = site["value"]
        batch_dim = value.dim() - event_dim - 1
        # Time as an event dimension, and a batch dimension of size one where data have it.
        if site["fn"].event_dim == event_dim + 1 and batch_dim >= -dim and value.shape[batch_dim + dim] == 1:
            return value.transpose(batch_dim + dim, batch_dim).squeeze(batch_dim), value
        return value, value
    return None


def refuse_intervention(loop: str, site: str) -> None:
    """Raise if an enclosing `poutine.do` names a site of a vectorised loop's body, which it would not see.

    Raises:
        ValueError: there is one.
    """
    if any(isinstance(handler, DoMessenger) and site in handler.data for handler in _PYRO_STACK):
        raise ValueError(
            f"site {site!r} in loop {loop!r}: expected no poutine.do on a site of a vectorised loop; use "
            f"vectorized=False, where the sites are {site}_0, {site}_1, ..."
        )


def enumerated_around() -> dict[int, tuple[str, frozenset[int]]]:
    """Sites enumerated by an enclosing inference: enumeration dimension -> name, and dimensions of its plates."""
    found = {}
    for handler in _PYRO_STACK:
        nodes = handler.trace.nodes if isinstance(handler, TraceMessenger) else {}
        for name, node in nodes.items():
            dim = (node.get("infer") or {}).get("_enumerate_dim")
            if dim is not None:
                found[dim] = name, frozenset(frame.dim for frame in node["cond_indep_stack"] if frame.vectorized)
    return found


@contextmanager
def inside_plates(frames: Iterable[CondIndepStackFrame]) -> Iterator[None]:
    """Declare sites to be in plates that the body of a loop had opened; subsampling scales are not applied again."""
    with ExitStack() as stack:
        for frame in frames:
            if frame.vectorized:
                stack.enter_context(IndepMessenger(frame.name, frame.size, frame.dim))
        yield


@contextmanager
def reserved_dim(name: str, dim: int) -> Iterator[None]:
    """Keep a batch dimension from being taken by a plate."""
    _DIM_ALLOCATOR.allocate(name, dim)
    try:
        yield
    finally:
        _DIM_ALLOCATOR.free(name, dim)


def check_masks(name: str, dim: int) -> None:
    """Raise if a mask around the loop differs between steps: it would be applied to the loop's one factor.

    Raises:
        ValueError: there is such a mask.
    """
    for handler in _PYRO_STACK:
        mask = handler.mask if isinstance(handler, MaskMessenger) else None
        if isinstance(mask, Tensor) and mask.dim() >= -dim and mask.shape[dim] > 1:
            raise ValueError(
                f"loop {name!r}: expected a poutine.mask around it to have size 1 at the time dimension {dim}, got "
                f"shape {tuple(mask.shape)}; mask the observed sites in the body, by mask[:, t]"
            )


def check_lengths(lengths: Tensor | None, num_steps: int, dim: int) -> None:
    """Raise unless lengths are integers in 0..T that fit the plates around the loop.

    Raises:
        TypeError: not an integer tensor.
        ValueError: out of range, or of a shape that does not fit.
    """
    if lengths is None:
        return
    check_range(lengths, num_steps)
    plates = enclosing_plates()
    for position in range(1, lengths.dim() + 1):
        size, plate = lengths.shape[-position], plates.get(dim - position)
        if plate is not None and size not in (1, plate):
            raise ValueError(
                f"lengths: expected size {plate} (the plate at dimension {dim - position}) in dimension {-position}, "
                f"got shape {tuple(lengths.shape)}"
            )
