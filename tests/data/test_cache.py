import hashlib
import os
import urllib.error
from pathlib import Path

import pytest

from pyrohmm.data.cache import fetch

CONTENT = bytes(range(256)) * 1000  # several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, with no data folder of the user's."""
    monkeypatch.delenv("PYROHMM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyrohmm"


@pytest.fixture
def source(tmp_path):
    """A file to download."""
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_downloads_once_into_the_cache(cache, source):
    path = fetch("notes.bin", source.as_uri(), SHA256, "music")
    assert path == cache / "music" / "notes.bin"
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["music/notes.bin"]
    assert os.listdir(cache / "music") == ["notes.bin"]
    source.unlink()
    assert fetch("notes.bin", source.as_uri(), SHA256, "music") == path


def test_without_a_subfolder(cache, source):
    assert fetch("notes.bin", source.as_uri(), SHA256) == cache / "notes.bin"


def test_checksum_may_be_written_in_capitals(cache, source):
    assert fetch("notes.bin", source.as_uri(), SHA256.upper()).read_bytes() == CONTENT


def test_default_cache_is_in_the_home_folder(cache, source, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    path = fetch("notes.bin", source.as_uri(), SHA256, "music")
    assert path == tmp_path / "home" / ".cache" / "pyrohmm" / "music" / "notes.bin"


def test_data_folder_comes_first(cache, source, monkeypatch, tmp_path):
    fetch("notes.bin", source.as_uri(), SHA256, "music")
    folder = tmp_path / "data"
    (folder / "music").mkdir(parents=True)
    (folder / "music" / "notes.bin").write_bytes(CONTENT)
    monkeypatch.setenv("PYROHMM_DATA", str(folder))
    assert fetch("notes.bin", source.as_uri(), SHA256, "music") == folder / "music" / "notes.bin"


def test_data_folder_without_the_file_falls_back(cache, source, monkeypatch, tmp_path):
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path / "elsewhere"))
    assert fetch("notes.bin", source.as_uri(), SHA256, "music") == cache / "music" / "notes.bin"
    assert not (tmp_path / "elsewhere").exists()


def test_wrong_checksum_of_a_download_leaves_nothing(cache, source):
    source.write_bytes(CONTENT[:-1])
    got = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(ValueError, match=f"{source.as_uri()} must have .* {SHA256}, got {got}"):
        fetch("notes.bin", source.as_uri(), SHA256, "music")
    assert files_in(cache) == []
    assert os.listdir(cache / "music") == []


def test_wrong_checksum_of_a_cached_file(cache, source):
    path = fetch("notes.bin", source.as_uri(), SHA256, "music")
    path.write_bytes(b"broken")
    got = hashlib.sha256(b"broken").hexdigest()
    with pytest.raises(ValueError, match=rf"notes.bin \(remove it to download it again\) must .* {SHA256}, got {got}"):
        fetch("notes.bin", source.as_uri(), SHA256, "music")


def test_wrong_checksum_in_the_data_folder(cache, source, monkeypatch, tmp_path):
    (tmp_path / "notes.bin").write_bytes(b"broken")
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"{tmp_path / 'notes.bin'} .*{SHA256}"):
        fetch("notes.bin", source.as_uri(), SHA256)


def test_failed_download_says_what_to_set(cache, source, monkeypatch):
    source.unlink()
    message = r"could not download notes.bin from .* set .* PYROHMM_DATA to the folder that holds music/notes.bin"
    with pytest.raises(ConnectionError, match=message + r" \(PYROHMM_DATA is not set\)"):
        fetch("notes.bin", source.as_uri(), SHA256, "music")
    monkeypatch.setenv("PYROHMM_DATA", "/nowhere")
    with pytest.raises(ConnectionError, match=message + r" \(PYROHMM_DATA is /nowhere, which lacks it\)"):
        fetch("notes.bin", source.as_uri(), SHA256, "music")
    assert files_in(cache) == []


class BrokenResponse:
    """A response that gives one chunk and then fails."""

    def __init__(self, error):
        self.error = error
        self.headers = {}
        self.chunks = [b"first"]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return None

    def read(self, size):
        if self.chunks:
            return self.chunks.pop()
        raise self.error


@pytest.mark.parametrize("error", [TimeoutError("slow"), ConnectionResetError("reset"), urllib.error.URLError("gone")])
def test_interrupted_download_leaves_nothing(cache, monkeypatch, error):
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: BrokenResponse(error))
    with pytest.raises(ConnectionError, match=r"could not download notes\.bin"):
        fetch("notes.bin", "https://example.invalid/notes.bin", SHA256, "music")
    assert os.listdir(cache / "music") == []


def test_ctrl_c_leaves_nothing(cache, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: BrokenResponse(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fetch("notes.bin", "https://example.invalid/notes.bin", SHA256, "music")
    assert os.listdir(cache / "music") == []


def test_checksum_of_a_part_of_the_content(cache, source):
    with pytest.raises(ValueError, match="SHA-256"):
        fetch("notes.bin", source.as_uri(), hashlib.sha256(CONTENT[:10]).hexdigest())
    path = fetch(
        "notes.bin",
        source.as_uri(),
        hashlib.sha256(CONTENT[:10]).hexdigest(),
        content=lambda path: path.read_bytes()[:10],
    )
    assert path.read_bytes() == CONTENT


def test_any_content(cache, source):
    assert fetch("notes.bin", source.as_uri(), None).read_bytes() == CONTENT
