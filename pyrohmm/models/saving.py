"""Files of tensors and numbers that say what they are and which version of the library wrote them."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pyro.nn import PyroModule

MODEL = "pyrohmm model, version 1"


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


def library_version() -> str:
    """The installed version of this library."""
    try:
        return version("pyrohmm")
    except PackageNotFoundError:
        return "unknown"


class SavableModel(PyroModule):
    """A model whose parameters can be written to a file and read back."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters and buffers to a file, with the version of the library.

        It holds tensors only: `load` them into a model built in the same way. `state_dict` works as in any module.

        Args:
            path: the file; its folder must exist.

        Example:
            >>> import tempfile
            >>> from pyrohmm.data import Sequences
            >>> from pyrohmm.models import HMM
            >>> from pyrohmm.nn import BernoulliEmission
            >>> model, other = HMM(BernoulliEmission(2, 3)), HMM(BernoulliEmission(2, 3))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(f"{folder}/model.pt")
            ...     other.load(f"{folder}/model.pt")
            >>> data = Sequences(torch.ones(2, 4, 3))
            >>> torch.equal(model.log_prob(data), other.log_prob(data))
            True
        """
        save(Path(path), MODEL, {"state": self.state_dict()})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over the parameters and buffers that `save` wrote, on the model's own device.

        Args:
            path: the file.

        Raises:
            ValueError: it is no such file, or that of a model built in another way.
        """
        content = load("path", Path(path), MODEL)
        try:
            self.load_state_dict(content["state"])
        except RuntimeError as error:
            raise ValueError(
                f"path: expected the parameters of a model like this one, got those that version {content['pyrohmm']} "
                f"of pyrohmm wrote to {path} (this is {library_version()}): {error}"
            ) from error
