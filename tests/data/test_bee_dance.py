import hashlib
import os

import numpy as np
import pytest
import scipy.io
import torch

from pyrohmm.data import bee_dance as module
from pyrohmm.data import load_bee_dance

needs_files = pytest.mark.skipif("PYROHMM_DATA" not in os.environ, reason="PYROHMM_DATA names no data folder")


@needs_files
def test_the_real_tracks():
    tracks, change_points = load_bee_dance()
    assert tracks.lengths.tolist() == [1057, 1124, 602, 756, 813, 608]
    assert [len(points) for points in change_points] == [19, 22, 16, 17, 28, 15]
    assert tracks.event_shape == (3,)
    assert tracks.mask is None
    for x, points in zip(tracks.to_list(), change_points, strict=True):
        torch.testing.assert_close(x.amin(0), torch.zeros(3))
        torch.testing.assert_close(x.amax(0), torch.ones(3))
        assert (points.diff() > 0).all()
        assert 0 < points[0] and points[-1] < len(x)


@needs_files
def test_the_third_column_is_a_change_of_heading():
    tracks, _ = load_bee_dance(dtype=torch.float64)
    for x in tracks.to_list()[3:]:  # the tracks with little noise
        direction = torch.atan2(*x[:, :2].diff(dim=0).flip(-1).unbind(-1))
        turn = direction.diff()
        turn = torch.atan2(turn.sin(), turn.cos())
        assert torch.corrcoef(torch.stack([x[1:-1, 2], turn]))[0, 1] > 0.3


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """Two tracks in the files' format, for machines without the real files."""
    folder = tmp_path / "beedance"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files, tracks = {}, []
    for number, (length, points) in enumerate([(6, [2, 5]), (4, [])], 1):
        track, marks = rng.random((length, 3)), np.zeros((length, 1), dtype=np.int64)
        marks[points] = 1
        path = folder / f"beedance-{number}.mat"
        scipy.io.savemat(path, {"Y": track, "L": marks})
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        tracks.append((track, points))
    monkeypatch.setattr(module, "_FILES", files)
    monkeypatch.delenv("PYROHMM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder, tracks


def check(dance, tracks):
    for x, points, (track, expected) in zip(dance.tracks.to_list(), dance.change_points, tracks, strict=True):
        np.testing.assert_allclose(x.numpy(), track, rtol=1e-6)
        assert points.dtype == torch.int64
        assert points.tolist() == expected


def test_reads_the_data_folder(small_set, monkeypatch, tmp_path):
    _, tracks = small_set
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path))
    dance = load_bee_dance()
    check(dance, tracks)
    assert dance.tracks.x.dtype == torch.get_default_dtype()
    assert load_bee_dance(dtype=torch.float64).tracks.x.dtype == torch.float64


def test_downloads(small_set, monkeypatch, tmp_path):
    folder, tracks = small_set
    monkeypatch.setattr(module, "_URL", folder.as_uri() + "/")
    check(load_bee_dance(), tracks)
    assert (tmp_path / "cache" / "pyrohmm" / "beedance" / "beedance-2.mat").exists()


def test_wrong_file(small_set, monkeypatch, tmp_path):
    folder, _ = small_set
    (folder / "beedance-2.mat").write_bytes(b"something else")
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"beedance-2.mat .* SHA-256"):
        load_bee_dance()
