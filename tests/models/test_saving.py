"""Models in files: the same numbers, the version, and errors for files of anything else."""

import pytest
import torch

import pyrohmm
from pyrohmm import nn
from pyrohmm.models import HMM, saving
from tests.models.cases import CASES, make


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_has_the_same_numbers(name, tmp_path):
    model, data = make(name, seed=0)
    other, _ = make(name, seed=1)
    model.save(tmp_path / "model.pt")
    assert not torch.equal(other.log_prob(data), model.log_prob(data))
    other.load(str(tmp_path / "model.pt"))
    assert torch.equal(other.log_prob(data), model.log_prob(data))
    assert torch.load(tmp_path / "model.pt", weights_only=True)["pyrohmm"] == pyrohmm.__version__


def test_other_files(tmp_path):
    model = HMM(nn.BernoulliEmission(2, 3))
    torch.save(model.state_dict(), tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="path: expected a file of form 'pyrohmm model, .*something else"):
        model.load(tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="path: expected a file of form 'pyrohmm model, .*No such file"):
        model.load(tmp_path / "none.pt")
    HMM(nn.BernoulliEmission(3, 3)).save(tmp_path / "three.pt")
    with pytest.raises(ValueError, match="a model like this one, got those that version .* of pyrohmm wrote"):
        model.load(tmp_path / "three.pt")
    saving.save(tmp_path / "fit.pt", "pyrohmm fit, version 1", {})
    with pytest.raises(ValueError, match="which is pyrohmm fit, version 1"):
        model.load(tmp_path / "fit.pt")


def test_a_library_that_is_not_installed(monkeypatch):
    def missing(name):
        raise saving.PackageNotFoundError(name)

    monkeypatch.setattr(saving, "version", missing)
    assert saving.library_version() == "unknown"
