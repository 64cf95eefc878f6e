import json
from dataclasses import replace

import pytest
import torch

from experiments.polyphony import __main__ as command
from experiments.polyphony.config import Config, config_for
from experiments.polyphony.model import build
from experiments.polyphony.run import nats_per_step, run, run_seed, seen_keys
from pyrohmm.data import Polyphony, Sequences

NUM_KEYS = 6
CONFIGS = [
    Config(model=kind, states=2, epochs=2, batch_size=4, learning_rate=0.1, hidden=3)
    for kind in ("hmm", "arhmm", "nnhmm")
]


def rolls(num_sequences: int, seed: int) -> Sequences:
    """Piano rolls in which one of two chords is held for a while; keys 0 and 5 are silent."""
    generator = torch.Generator().manual_seed(seed)
    chords = torch.tensor([[0.05, 0.9, 0.9, 0.1, 0.1, 0.05], [0.05, 0.1, 0.1, 0.9, 0.9, 0.05]])
    chords[:, [0, 5]] = 0
    lengths = torch.randint(4, 13, (num_sequences,), generator=generator).tolist()
    paths = [(torch.rand(n, generator=generator) < 0.2).cumsum(0) % 2 for n in lengths]
    return Sequences.from_list([torch.bernoulli(chords[path], generator=generator) for path in paths])


@pytest.fixture(scope="module")
def music() -> Polyphony:
    test = rolls(5, 2)
    test.x[0, 0, 5] = 1  # a key never heard in training
    return Polyphony(rolls(12, 0), rolls(4, 1), test)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model)
def test_training_helps_and_figures_agree(music, config):
    start = nats_per_step(build(music.train, config, seed=0).eval(), music.train)
    model, figures = run_seed(music, config, 0, progress=False)
    assert not model.training  # no dropout in what comes out
    assert figures["train"] < start
    assert figures["validation"] == pytest.approx(min(figures["validation_by_epoch"]), abs=1e-3)
    with torch.no_grad():
        expected = -model.log_prob(music.test).sum().item() / music.test.num_observed
    assert figures["test"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model)
def test_a_key_that_is_not_counted_adds_nothing(music, config):
    model = build(music.train, config, seed=0).eval()
    seen = seen_keys(music.train)
    assert seen.tolist() == [False, True, True, True, True, False]
    some, every = nats_per_step(model, music.test, seen), nats_per_step(model, music.test)
    assert some < every
    assert nats_per_step(model, music.test, torch.ones(NUM_KEYS, dtype=torch.bool)) == pytest.approx(every, rel=1e-5)
    assert nats_per_step(model, music.test, torch.zeros(NUM_KEYS, dtype=torch.bool)) == pytest.approx(0, abs=1e-5)
    # At the start an unseen key depends neither on the state nor, but through the network, on the previous chord, so
    # the likelihood is a product.
    if config.model != "nnhmm":
        assert some + nats_per_step(model, music.test, ~seen) == pytest.approx(every, rel=1e-5)


def test_states_start_near_chords_of_the_music(music):
    config = replace(CONFIGS[0], contrast=1.0)
    probs = build(music.train, config, seed=0).emission.emission.logits.sigmoid()
    chords = music.train.x[music.train.observed]
    assert all((chords - row).abs().amax(-1).min() < 2e-3 for row in probs)
    flat = build(music.train, replace(config, contrast=0.0), seed=0).emission.emission.logits.sigmoid()
    torch.testing.assert_close(flat, chords.mean(0).clamp_min(1e-3).expand(2, -1))


@pytest.mark.parametrize("kind", ["arhmm", "nnhmm"])
def test_the_emission_sees_the_previous_chord(music, kind):
    config = next(config for config in CONFIGS if config.model == kind)
    model, _ = run_seed(music, config, 0, progress=False)
    state = torch.arange(2)
    silence, chord = torch.zeros(1, NUM_KEYS), torch.ones(1, NUM_KEYS)
    laws = [model.emission(state, None, previous).base_dist.logits for previous in (silence, chord)]
    effect = laws[1] - laws[0]
    assert effect.abs().max() > 1e-3
    # The linear one has the same effect in both states, the network another.
    assert torch.allclose(effect[0], effect[1], atol=1e-6) == (kind == "arhmm")


def test_run_writes_figures_and_models(music, tmp_path):
    config = replace(CONFIGS[0], epochs=1)
    result = run(config, [0, 1], music=music, results=tmp_path / "results", runs=tmp_path / "runs", progress=False)
    assert json.loads((tmp_path / "results" / "jsb-hmm-2.json").read_text()) == result
    assert result["num_keys"] == NUM_KEYS
    assert result["num_seen_keys"] == 4
    assert result["test_notes_on_unseen_keys"] == 1
    assert result["num_parameters"] == 2 + 2 * 2 + 2 * NUM_KEYS
    tests = [figures["test"] for figures in result["seeds"]]
    assert tests[0] != tests[1]
    assert result["summary"]["test"]["mean"] == pytest.approx(sum(tests) / 2)
    assert result["summary"]["test"]["std"] == pytest.approx(abs(tests[0] - tests[1]) / 2**0.5)

    again = run(config, [2], music=music, results=tmp_path / "results", runs=tmp_path / "runs", progress=False)
    assert again["seeds"][:2] == result["seeds"]
    assert [figures["seed"] for figures in again["seeds"]] == [0, 1, 2]
    other = replace(config, learning_rate=0.2)
    other = run(other, [2], music=music, results=tmp_path / "results", runs=tmp_path / "runs", progress=False)
    assert [figures["seed"] for figures in other["seeds"]] == [2]

    model = build(music.train, config, seed=5)
    model.load_state_dict(torch.load(tmp_path / "runs" / "jsb-hmm-2-seed1.pt", weights_only=True))
    assert nats_per_step(model, music.test) == pytest.approx(tests[1], rel=1e-5)


def test_command_line_overrides_the_defaults(monkeypatch, capsys):
    calls = []

    def fake_run(config, seeds):
        calls.append((config, seeds))
        figures = {"mean": 1.0, "std": 0.5}
        return {"num_parameters": 7, "summary": {"test": figures, "test_seen_keys": figures}}

    monkeypatch.setattr(command, "run", fake_run)
    command.main(["--dataset", "jsb", "--model", "nnhmm", "--states", "8", "--seeds", "4"])
    command.main([])
    assert calls == [(config_for("nnhmm", 8), [4]), (config_for(), [0, 1, 2])]
    assert calls[0][0].states == 8
    assert calls[1][0] == Config()
    assert "| nnhmm | 8 | 7 | 1.000 ± 0.500 | 1.000 ± 0.500 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--model", "rnn"])
