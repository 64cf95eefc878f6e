import pytest
import torch

from pyrohmm.infer.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = {"seed": 0, "batch_size": None}


def test_round_trip_leaves_one_file(tmp_path):
    path = tmp_path / "fit.pt"
    save_checkpoint(path, {"x": torch.arange(3), "list": [1.5, "a", None]}, SETTINGS)
    save_checkpoint(path, {"x": torch.arange(4), "list": [1.5, "a", None]}, SETTINGS)
    state = load_checkpoint(path, SETTINGS)
    assert (state["x"] == torch.arange(4)).all()
    assert state["list"] == [1.5, "a", None]
    assert list(tmp_path.iterdir()) == [path]


def test_former_file_survives_a_broken_write(tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    save_checkpoint(path, {"x": 1}, SETTINGS)

    def broken(content, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"x": 2}, SETTINGS)
    assert load_checkpoint(path, SETTINGS) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_other_settings(tmp_path):
    path = tmp_path / "fit.pt"
    save_checkpoint(path, {}, SETTINGS)
    with pytest.raises(ValueError, match="seed=0, got 1"):
        load_checkpoint(path, {"seed": 1, "batch_size": None})
    with pytest.raises(ValueError, match="batch_size=None, got 5"):
        load_checkpoint(path, {"seed": 0, "batch_size": 5})


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_no_checkpoint(tmp_path, content):
    path = tmp_path / "fit.pt"
    if content is None:
        torch.save({"x": 1}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint: expected a file of form 'pyrohmm fit, version 1'"):
        load_checkpoint(path, SETTINGS)
