"""A loop of small launches as a single one: CUDA graphs, recorded where the same loop comes again."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrohmm.ops.places import unexpanded

# What all graphs together may hold of a device's memory: each has its own copy of what it reads and writes.
SHARE = 1 / 16
# Copying so many bytes takes as long as a launch does, and copying as such some launches.
BYTES, FEWEST = 2**24, 32
# The most loops that are remembered, recorded or not.
LOOPS = 256

Loop = Callable[..., tuple[Tensor, ...]]


class Recorded(NamedTuple):
    """A loop that was recorded.

    Attributes:
        start: does all of it again.
        inputs, outputs: what it reads and writes.
        size: bytes that it holds.
    """

    start: Callable[[], Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    size: int


# In the order of their last use: a recorded loop; True if it may be recorded, False if not.
_known: OrderedDict[tuple, Recorded | bool] = OrderedDict()
# Between the copies to what a graph reads and those of what it has written, no other thread may start it.
_lock = RLock()


def run(loop: Loop, *tensors: Tensor, launches: int, **settings: Any) -> tuple[Tensor, ...]:
    """loop(*tensors, **settings), on a GPU by one launch from the third time on, where copies are worth it.

    The host takes some microseconds for every launch, more than a small kernel does. A loop is run as it is for the
    first time. If it comes again, with tensors of the same shapes and places of their entries in memory and the same
    settings, on the same stream, it is recorded as a CUDA graph, which knows memory by its address: what it reads is
    copied, and its results are copies.

    Args:
        loop: launches kernels and returns new tensors, which depend on its arguments only. It waits for nothing, and
            copies nothing from the host.
        tensors: all that it reads.
        launches: how many there are in it.
        settings: hashable.
    """
    device = tensors[0].device
    if launches < FEWEST or not can_record(device):
        return loop(*tensors, **settings)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    places = tuple((x.shape, x.stride(), x.dtype) for x in tensors)
    key = (loop, device, stream, places, *sorted(settings.items()))
    with _lock:
        known = _known.pop(key, None)
        if known is True:
            known, results = _record(loop, device, tensors, launches, settings)
        elif isinstance(known, Recorded):
            _copy(tensors, known.inputs)
            known.start()
            results = tuple(x.clone() for x in known.outputs)
        else:
            known, results = known is None, loop(*tensors, **settings)
        _known[key] = known
        _forget(device)
        return results


def can_record(device: torch.device) -> bool:
    """Whether there are CUDA graphs on a device, and this loop is not part of one already."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def capture(loop: Callable[[], tuple[Tensor, ...]], device: torch.device) -> tuple[Callable, tuple[Tensor, ...]]:
    """What starts a loop's graph, and what that writes; the loop is not run, but what is under way is waited for."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = loop()
    return graph.replay, outputs


def memory_of(device: torch.device) -> int:
    """Bytes that a device has."""
    return torch.cuda.get_device_properties(device).total_memory


def _record(
    loop: Loop, device: torch.device, tensors: tuple[Tensor, ...], launches: int, settings: dict[str, Any]
) -> tuple[Recorded | bool, tuple[Tensor, ...]]:
    """The loop as it was recorded, if that was possible, and its results."""
    results = loop(*tensors, **settings)
    size = sum(_size(x) for x in (*tensors, *results))
    if size > min(BYTES * launches, SHARE * memory_of(device)):
        return False, results
    inputs = tuple(_room(x) for x in tensors)
    _copy(tensors, inputs)
    try:
        # Where they lie may ask for another form of a kernel, and no kernel is loaded while a graph is recorded.
        loop(*inputs, **settings)
        start, outputs = capture(lambda: loop(*inputs, **settings), device)
    except RuntimeError as error:
        warnings.warn(f"kernels are launched one by one, since no CUDA graph could be recorded: {error}", stacklevel=2)
        return False, results
    return Recorded(start, inputs, outputs, size), results


def _forget(device: torch.device) -> None:
    """Give up what was used least recently where there is too much."""
    recorded = [(key, known.size) for key, known in _known.items() if isinstance(known, Recorded) and key[1] == device]
    held = sum(size for _, size in recorded)
    for key, size in recorded[:-1]:
        if held <= SHARE * memory_of(device):
            break
        _known[key] = True
        held -= size
    while len(_known) > LOOPS:
        _known.popitem(last=False)


def _size(tensor: Tensor) -> int:
    return unexpanded(tensor, 0).numel() * tensor.element_size()


def _room(tensor: Tensor) -> Tensor:
    """Memory of its own for a tensor, laid out alike."""
    once = unexpanded(tensor, 0)
    return torch.empty_strided(once.shape, once.stride(), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _copy(sources: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
    for source, target in zip(sources, targets, strict=True):
        unexpanded(target, 0).copy_(unexpanded(source, 0))
