import json
from dataclasses import replace

import pytest
import torch

from experiments.switching import __main__ as command
from experiments.switching.config import Config
from experiments.switching.run import accuracy, run
from experiments.switching.track import NUM_REGIMES, track

SMALL = Config(num_steps=400, piece=50, steps=2, batch_size=4, restarts=1, states=4)


def test_track():
    data, places = track(replace(SMALL, num_steps=2000))
    assert data.x.shape == (40, 50, 10) and places.shape == (40, 50, 2)
    assert (torch.bincount(data.labels.flatten(), minlength=NUM_REGIMES) > 100).all()
    assert places.abs().max() < 4  # it stays on the track
    # Observations are places, linearly, but for the noise.
    flat = torch.cat([places.flatten(0, 1), torch.ones(2000, 1)], 1)
    x = data.x.flatten(0, 1)
    rest = x - flat @ torch.linalg.lstsq(flat, x).solution
    assert rest.std() == pytest.approx(0.1, rel=0.05)


def test_accuracy_counts_the_best_order():
    labels = torch.tensor([[0, 1, 2, 3, 3]])
    found, order = accuracy(torch.tensor([[3, 2, 1, 0, 1]]), labels, 4)
    assert found == pytest.approx(0.8) and order.tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("model", ["rslds", "slds", "rsnlds", "snlds"])
def test_runs(tmp_path, model):
    result = run(replace(SMALL, model=model), [0], results=tmp_path, picture=model == "slds", progress=False)
    assert json.loads((tmp_path / f"{model}-4.json").read_text()) == result
    assert 0 <= result["seeds"][0]["test"] <= 1
    assert (tmp_path / "slds-4.png").exists() == (model == "slds")


def test_command_line(monkeypatch, capsys):
    asked = []

    def stub(config, seeds):
        asked.append((config, seeds))
        figures = {"train_at_start": 0.5, "train": 0.75, "test": 0.7, "cpu_seconds": 3.0}
        return {"seeds": [figures, {**figures, "test": 0.8}]}

    monkeypatch.setattr(command, "run", stub)
    command.main(["--model", "slds", "--steps", "7", "--seeds", "4", "5"])
    assert asked == [(Config(model="slds", steps=7), [4, 5])]
    assert capsys.readouterr().out == "| slds | 0.500 to 0.500 | 0.750 to 0.750 | 0.700 to 0.800 | 3 s |\n"
