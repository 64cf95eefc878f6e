import json
import math

import pytest
import torch

from experiments.bee_dance import __main__ as command
from experiments.bee_dance.config import TABLE, Config
from experiments.bee_dance.model import build, features
from experiments.bee_dance.picture import write_picture
from experiments.bee_dance.run import at_random, baseline, check, evenly_spaced, run
from pyrohmm.data import BeeDance, Sequences

QUICK = {"steps": 20, "restarts": 1}


def dancer(num_steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A track that waggles (heading to and fro, fast), turns left, and turns right, slowly, 25 steps each."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.arange(num_steps) // 25 % 3
    noise = torch.randn(num_steps, generator=generator)
    to_and_fro = 1.0 - 2.0 * (torch.arange(num_steps) % 2)
    change = torch.where(phase == 0, 2.0 * to_and_fro, torch.where(phase == 1, 0.4, -0.4)) + 0.1 * noise
    speed = torch.tensor([3.0, 1.0, 0.3])[phase] * (0.2 * torch.randn(num_steps, generator=generator)).exp()
    heading = change.cumsum(0)
    place = (speed.unsqueeze(-1) * torch.stack([heading.cos(), heading.sin()], -1)).cumsum(0)
    track = torch.cat([place, change.unsqueeze(-1)], -1)
    track = (track - track.amin(0)) / (track.amax(0) - track.amin(0))
    return track, torch.arange(25, num_steps, 25)


@pytest.fixture(scope="module")
def dance() -> BeeDance:
    tracks = [dancer(160, 0), dancer(120, 1)]
    return BeeDance(Sequences.from_list([track for track, _ in tracks]), tuple(points for _, points in tracks))


def test_features(dance):
    data = features(dance.tracks.to_list()[1])
    assert data.x.dtype == torch.float64
    assert data.entries is not None
    assert data.entries[0, :2].tolist() == [[True, False], [True, True]]  # the first step has no speed
    torch.testing.assert_close(data.x[0, 1:].mean(0), torch.zeros(2).double(), atol=1e-6, rtol=0)
    still = torch.ones(5, 3)
    still[:3, 0] = torch.tensor([0.0, 0.5, 0.9])  # and then it stands
    still[:, 2] = torch.arange(5.0)
    assert features(still).x.isfinite().all()


@pytest.mark.parametrize("config", TABLE, ids=lambda config: config.name)
def test_prior_on_staying(config):
    model = build(config, 200)
    assert model.emission.order == config.order
    assert (model.log_prior() != 0) == (config.stickiness > 0)


def test_change_points_of_a_plain_dance_are_found(dance, tmp_path):
    config = Config(**QUICK)
    result = run(config, [0, 1], dance=dance, results=tmp_path, progress=False)
    assert json.loads((tmp_path / f"{config.name}.json").read_text()) == result
    assert result["summary"]["f1 within 5"]["mean"] > 0.7
    assert baseline(at_random, dance, range(5))["f1 within 5"]["mean"] < 0.6
    found = [figures["tracks"][0]["within 5"]["f1"] for figures in result["seeds"]]
    assert result["summary"]["f1 within 5"]["tracks"][0] == pytest.approx(sum(found) / 2)


def test_baselines_have_as_many_points_as_the_truth():
    generator = torch.Generator().manual_seed(0)
    assert evenly_spaced(100, 3, generator).tolist() == [25, 50, 75]
    drawn = at_random(100, 99, generator)
    assert sorted(drawn.tolist()) == list(range(1, 100))


def test_checks_are_probabilities(dance):
    found = check(dance.tracks.to_list()[1], Config(**QUICK), num_simulations=5)
    values = [p for some in found.values() for p in some]
    assert "residuals, autocorrelation" in found and "transition counts" in found
    assert all(0 <= p <= 1 for p in values)


def test_picture(dance, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    write_picture(dance, 1, tmp_path / "track.png")
    assert (tmp_path / "track.png").stat().st_size > 10_000


def test_command_line(dance, monkeypatch, capsys):
    calls = []
    figures = {"bic": math.pi, **{f"f1 within {n}": {"mean": 0.5, "std": 0.0, "tracks": [0.25, 0.75]} for n in (5, 10)}}

    def fake_run(config, seeds, **kwargs):
        calls.append((config, list(seeds)))
        return {"summary": figures}

    monkeypatch.setattr(command, "run", fake_run)
    monkeypatch.setattr(command, "load_bee_dance", lambda: dance)
    command.main(["--seeds", "3", "4"])
    assert calls == [(config, [3, 4]) for config in TABLE]
    printed = capsys.readouterr().out
    assert "| order1-states3-sticky1 | 3 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.25, 0.75 |" in printed
    assert "| evenly_spaced |" in printed
    calls.clear()
    command.main(["--select"])
    assert {seeds for _, (seeds,) in calls} == {0}
    assert {(config.states, config.order) for config, _ in calls} == {(k, n) for k in (2, 3, 4, 5) for n in (0, 1, 2)}
