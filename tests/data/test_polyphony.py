import os

import numpy as np
import pytest
import torch

from pyrohmm.data import Polyphony, load_polyphony
from pyrohmm.data import polyphony as module
from tests.data import miniature

needs_files = pytest.mark.skipif("PYROHMM_DATA" not in os.environ, reason="PYROHMM_DATA names no data folder")

# name -> sequences and steps of train, valid, test, as the source counts them
COUNTS = {
    "jsb": ((229, 76, 77), (13807, 4602, 4725)),
    "nottingham": ((694, 173, 170), (176561, 45513, 44463)),
    "piano": ((87, 12, 25), (75911, 8540, 19036)),
    "muse": ((524, 135, 124), (245202, 82755, 64339)),
}


@needs_files
@pytest.mark.parametrize(
    "name", ["jsb", "piano", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nottingham", "muse"))]
)
def test_counts_of_the_real_sets(name):
    parts = load_polyphony(name)
    num_sequences, num_steps = COUNTS[name]
    assert tuple(len(part) for part in parts) == num_sequences
    assert tuple(part.num_observed for part in parts) == num_steps
    for part in parts:
        assert part.event_shape == (88,)
        assert part.num_total == len(part)
        sounding = torch.count_nonzero(part.x)
        assert 0 < sounding == part.x.sum(dtype=torch.float64)  # with a maximum of 1: all values are 0 or 1
        assert part.x.max() == 1
        assert part.x.min() == 0


@needs_files
def test_keys_of_the_chorales():
    train = load_polyphony("jsb").train
    assert train.x.dtype == torch.get_default_dtype()
    assert (train.x.sum((0, 1)) > 0).sum() == 51  # keys that sound in training, a figure of the literature
    chords = train.x[train.observed].sum(-1)
    assert 3.5 < chords.mean() < 4  # four voices, now and then in unison


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """A set in the files' format, in the place of "jsb", for machines without the real files."""
    rolls = miniature.random_rolls({"traindata": (5, 3, 4), "validdata": (2, 2), "testdata": (6,)})
    path = tmp_path / "polyphony" / "JSB_Chorales.mat"
    sha256 = miniature.write_polyphony(path, rolls)
    monkeypatch.setitem(module._FILES, "jsb", (path.name, sha256))
    monkeypatch.delenv("PYROHMM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path, rolls


def check_rolls(data, rolls):
    assert isinstance(data, Polyphony)
    for part, key in zip(data, ("traindata", "validdata", "testdata"), strict=True):
        for x, roll in zip(part.to_list(), rolls[key], strict=True):
            np.testing.assert_array_equal(x.numpy(), roll)


def test_reads_the_data_folder(small_set, monkeypatch, tmp_path):
    _, rolls = small_set
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path))
    data = load_polyphony("jsb")
    check_rolls(data, rolls)
    assert data.train.x.dtype == torch.get_default_dtype()
    assert load_polyphony("jsb", dtype=torch.float64).test.x.dtype == torch.float64


def test_downloads(small_set, monkeypatch, tmp_path):
    path, rolls = small_set
    monkeypatch.setattr(module, "_URL", path.parent.as_uri() + "/")
    check_rolls(load_polyphony("jsb"), rolls)
    assert (tmp_path / "cache" / "pyrohmm" / "polyphony" / "JSB_Chorales.mat").exists()


def test_wrong_file(small_set, monkeypatch, tmp_path):
    path, _ = small_set
    path.write_bytes(b"something else")
    monkeypatch.setenv("PYROHMM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"JSB_Chorales.mat .* SHA-256"):
        load_polyphony("jsb")


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of jsb, nottingham, piano, muse, got 'JSB'"):
        load_polyphony("JSB")
