"""Saving the state of a fit to a file, so that a broken run can go on where it stopped."""

from pathlib import Path
from typing import Any

from pyrohmm.models.saving import load, save

_FORMAT = "pyrohmm fit, version 1"


def save_checkpoint(path: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all: a run that dies while writing leaves the former file.

    Args:
        path: the file; its folder must exist.
        state: tensors, numbers, strings, and lists and dicts of them.
        settings: what a later run must have in common with this one.
    """
    save(path, _FORMAT, {"settings": settings, "state": state})


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read the state that `save_checkpoint` wrote, its tensors on the CPU.

    Args:
        path: the file.
        settings: those of the present run.

    Raises:
        ValueError: the file is no checkpoint, or it was written with other settings.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder) / "fit.pt", {"steps": 3}, {"seed": 0})
        ...     load_checkpoint(Path(folder) / "fit.pt", {"seed": 0})
        {'steps': 3}
    """
    content = load("checkpoint", path, _FORMAT)
    for name, value in settings.items():
        if (saved := content["settings"].get(name)) != value:
            raise ValueError(
                f"checkpoint: {path} was written with {name}={saved!r}, got {value!r}; "
                "use the same, or another file (or remove this one) to begin anew"
            )
    return content["state"]
