"""Files of tensors and numbers that say what they are and which version of the library wrote them."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write a file, whole or not at all: a run that dies while writing leaves the former one.

    Args:
        path: the file; its folder must exist.
        kind: what it is, e.g. "pyrohmm model, version 1".
        content: tensors, numbers, strings, and lists and dicts of them.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        torch.save({"format": kind, "pyrohmm": library_version(), **content}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(name: str, path: Path, kind: str) -> dict[str, Any]:
    """Read what `save` wrote, tensors on the CPU.

    Args:
        name: of the caller's argument, for errors.
        path: the file.
        kind: what it must be.

    Raises:
        ValueError: the file is something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder) / "three.pt", "number, version 1", {"number": 3})
        ...     load("path", Path(folder) / "three.pt", "number, version 1")["number"]
        3
    """
    try:
        # Weights only: a file from elsewhere must not be able to run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{name}: expected a file of form {kind!r}, got {path}: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != kind:
        raise ValueError(f"{name}: expected a file of form {kind!r}, got {path}, which is {found or 'something else'}")
    return content


def load_state(model: nn.Module, path: Path, kind: str) -> None:
    """Put into a model the state that `save` wrote, `{"state": model.state_dict()}`.

    Raises:
        ValueError: the file is something else, or that of a model built in another way.
    """
    content = load("path", path, kind)
    try:
        model.load_state_dict(content["state"])
    except RuntimeError as error:
        raise ValueError(
            f"path: expected the parameters of a model like this one, got those that version {content['pyrohmm']} "
            f"of pyrohmm wrote to {path} (this is {library_version()}): {error}"
        ) from error


def library_version() -> str:
    """The installed version of this library."""
    try:
        return version("pyrohmm")
    except PackageNotFoundError:
        return "unknown"
