"""What every fit needs: checks of its arguments, and the modules that it trains."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from pyrohmm.data import Sequences
from pyrohmm.nn import Part


def check_sequences(name: str, value: Any) -> None:
    """A TypeError or ValueError unless these are `Sequences` with something observed."""
    if not isinstance(value, Sequences):
        raise TypeError(f"{name}: expected pyrohmm.data.Sequences, got {type(value).__name__}")
    if value.num_observed == 0:
        raise ValueError(f"{name}: expected at least one observed step, got none")


def check_counts(**counts: int | None) -> None:
    """A TypeError or ValueError unless each is an int of at least 1, or None."""
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def check_positive(**numbers: float | None) -> None:
    """A ValueError unless each is a positive finite number, or None."""
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name}: expected a positive finite number, got {value!r}")


def check_seed(seed: Any) -> None:
    """A TypeError unless it is an int."""
    if not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")


def as_programs(model: Any, guide: Callable[..., Any] | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The model and the guide that a user means: by default the model's own guide, or an empty one.

    Args:
        model: a Pyro program, or an object with `.model` and maybe `.guide`.
        guide: a Pyro program.

    Raises:
        TypeError: one of them is no program.
    """
    program = model if callable(model) else getattr(model, "model", None)
    if not callable(program):
        raise TypeError(f"model: expected a Pyro program or an object with .model, got {type(model).__name__}")
    guide = getattr(model, "guide", _empty_guide) if guide is None else guide
    if not callable(guide):
        raise TypeError(f"guide: expected a Pyro program, got {type(guide).__name__}")
    return program, guide


def _empty_guide(*args: Any) -> None:
    pass


def check_tolerance(tolerance: float) -> None:
    """A ValueError unless it is a finite number of at least 0."""
    if not (isinstance(tolerance, int | float) and 0 <= tolerance < math.inf):
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance!r}")


def check_modes(model: nn.Module) -> None:
    """A ValueError if the prior of a part has no mode: there are no most probable parameters then."""
    for name, part in model.named_modules():
        if isinstance(part, Part) and not part.prior_has_mode:
            raise ValueError(
                f"model.{name}: expected a prior with concentrations of at least 1, which has a mode, got smaller ones "
                "(those are for fit_vb)"
            )


def modules(*programs: Callable[..., Any]) -> list[nn.Module]:
    """The modules that the programs are, or are methods of; not those that are parts of another one."""
    owners = [getattr(program, "__self__", program) for program in programs]
    roots: list[nn.Module] = []
    for owner in owners:
        if isinstance(owner, nn.Module) and not any(owner is part for root in roots for part in root.modules()):
            roots.append(owner)
    return roots


@contextmanager
def mode(modules: Sequence[nn.Module], *, training: bool) -> Iterator[None]:
    """Inside, the modules are in training or eval mode; afterwards each part as before."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, was_training in before:
            part.training = was_training


class Interrupt:
    """Whether Ctrl-C was pressed; see `interrupts_between_steps`."""

    pressed = False

    def check(self) -> None:
        """A KeyboardInterrupt if it was."""
        if self.pressed:
            raise KeyboardInterrupt


@contextmanager
def interrupts_between_steps() -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C waits until it is asked for, so that no step is broken off; the second does not.

    Only in the main thread, and where Ctrl-C has its usual meaning; elsewhere nothing changes.
    """
    interrupt = Interrupt()
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield interrupt
        return

    def press(number: int, frame: Any) -> None:
        if interrupt.pressed:
            usual(number, frame)
        interrupt.pressed = True

    signal.signal(signal.SIGINT, press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, usual)
