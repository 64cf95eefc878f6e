"""Triton's driver of a device that there is not: it compiles kernels for a GPU, and emulates what they do."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from benchmarks.compilation import TARGETS, ClaimedDriver
from tests.ptx.machine import Machine
from tests.ptx.program import parse

_FORMATS = {"i32": "<i", "i64": "<q"}


class Launcher:
    """A compiled kernel; made and called by Triton."""

    def __init__(self, source: Any, metadata: Any):
        path = get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")
        self._machine = Machine(parse(Path(path).read_text()), metadata.shared)
        self._signature = list(source.signature.items())

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        _stream, _function, _packed, _metadata, _enter, _exit, *arguments = rest
        given, memory = [], {}
        for (name, kind), argument in zip(self._signature, arguments, strict=True):
            if isinstance(argument, Tensor):
                given.append(struct.pack("<Q", argument.data_ptr()))
                storage = argument.untyped_storage()
                if storage.nbytes():
                    raw = torch.tensor([], dtype=torch.uint8).set_(storage)
                    memory[storage.data_ptr()] = (name, storage.data_ptr(), raw.numpy())
            elif kind != "constexpr":
                given.append(struct.pack(_FORMATS[kind], argument))
        self._machine.launch((x, y, z), given, list(memory.values()))


class Emulator(ClaimedDriver):
    """What Triton asks of a driver, and a launcher."""

    launcher_cls = Launcher

    @property
    def utils(self) -> SimpleNamespace:
        """To load what was compiled: nothing is, and a program may have as many threads as a GPU allows."""
        return SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": TARGETS[self.arch]},
            load_binary=lambda name, binary, shared, device: (name, None, 0, 0, 1024),
        )


def emulate(arch: int) -> None:
    """From now on, kernels that are launched run in an emulator; the tensors are on the CPU.

    Memory that was not written is NaN, as far as torch knows of it.

    Args:
        arch: compute capability, 80 or 90.

    Raises:
        ValueError: another one.
    """
    if arch not in TARGETS:
        raise ValueError(f"arch: expected one of {', '.join(map(str, TARGETS))}, got {arch}")
    driver.set_active(Emulator(arch))
    knobs.runtime.interpret = False
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
