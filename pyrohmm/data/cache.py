"""Files of public data sets: found in a folder of the user's, or downloaded once into a cache."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

_CHUNK_BYTES = 1 << 16
_TIMEOUT_SECONDS = 30.0


def fetch(
    name: str,
    url: str,
    sha256: str | None,
    subfolder: str = "",
    content: Callable[[Path], bytes] = Path.read_bytes,
) -> Path:
    """The path of a data file, downloaded if it is not there yet.

    Looks for ``subfolder/name`` in the folder that the environment variable PYROHMM_DATA names, if it is set,
    then in the cache (``$XDG_CACHE_HOME/pyrohmm``, by default ``~/.cache/pyrohmm``), and else downloads it
    from the url into the cache. The checksum is compared wherever the file came from; a download takes its
    final name only after that, so an interrupted one leaves nothing behind.

    Args:
        name: file name.
        url: where to download it from.
        sha256: expected SHA-256 of the content, in hexadecimal; None for any.
        subfolder: folder of the file in PYROHMM_DATA and in the cache.
        content: what of a file the checksum is of. Default: all its bytes.

    Raises:
        ValueError: the content has another checksum.
        ConnectionError: the download failed.

    Example:
        >>> from unittest.mock import patch
        >>> checksum = hashlib.sha256(b"do re mi").hexdigest()
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, PYROHMM_DATA=folder):
        ...     _ = Path(folder, "notes.txt").write_bytes(b"do re mi")
        ...     fetch("notes.txt", "https://example.org/notes.txt", checksum).read_text()
        'do re mi'
    """
    data_folder = os.environ.get("PYROHMM_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pyrohmm")
    for folder in [data_folder, cache] if data_folder else [cache]:
        path = Path(folder, subfolder, name)
        if path.exists():
            _check_sha256(path, sha256, content)
            return path

    target = cache / subfolder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        part = Path(temporary, name)
        try:
            _download(url, part)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            wanted = Path(subfolder, name)
            setting = f"PYROHMM_DATA is {data_folder}, which lacks it" if data_folder else "PYROHMM_DATA is not set"
            raise ConnectionError(
                f"could not download {name} from {url}: {error}. Without a network, get the file by other means and "
                f"set the environment variable PYROHMM_DATA to the folder that holds {wanted} ({setting})."
            ) from error
        _check_sha256(part, sha256, content, source=url)
        part.replace(target)
    return target


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, path.open("wb") as file:
        size = response.headers.get("Content-Length")
        # disable=None: no bar where standard error is not a terminal.
        with tqdm(total=size and int(size), desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))


def _check_sha256(
    path: Path, expected: str | None, content: Callable[[Path], bytes], source: str | None = None
) -> None:
    if expected is None:
        return
    got = hashlib.sha256(content(path)).hexdigest()
    if got != expected.lower():
        file_name = f"the file from {source}" if source else f"{path} (remove it to download it again)"
        raise ValueError(f"{file_name} must have the SHA-256 checksum {expected}, got {got}")
