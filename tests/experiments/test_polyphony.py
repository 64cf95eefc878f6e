import json
from dataclasses import replace

import pytest
import torch

from experiments.polyphony import __main__ as command
from experiments.polyphony import deep, guides
from experiments.polyphony.config import Config, config_for
from experiments.polyphony.deep import DeepConfig, SimilarLengths, bound_per_step, build_deep, run_deep
from experiments.polyphony.model import build
from experiments.polyphony.run import nats_per_step, run, run_seed, seen_keys
from experiments.polyphony.style import StyleConfig, build_style, run_style
from experiments.polyphony.style import bound_per_step as style_bound_per_step
from pyrohmm import fit_svi, ops
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


DEEP = DeepConfig(
    states=2, epochs=3, every=1, batch_size=4, emission=3, transition=3, recurrent=3, annealing=1, particles=5
)


def test_deep_markov_model_is_trained_in_pieces_and_goes_on(music, tmp_path, monkeypatch):
    def broken_off(*args, steps, **kwargs):
        if steps == 9:
            raise KeyboardInterrupt
        return fit_svi(*args, steps=steps, **kwargs)

    def numbers(figures):
        rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in figures["curve"]]
        return rows, [figures[name] for name in ("test", "test_importance", "validation", "train", "best_epoch")]

    model, figures = run_deep(music, DEEP, 0, checkpoint=tmp_path / "a.ckpt", progress=False)
    assert not model.training
    assert [row["epoch"] for row in figures["curve"]] == [1, 2, 3]
    assert figures["train"] < bound_per_step(build_deep(music.train, DEEP, 0).eval(), music.train)
    assert figures["test"] == pytest.approx(bound_per_step(model, music.test))
    assert 0 < figures["test_importance"] < figures["test"]
    best = min(figures["curve"], key=lambda row: row["validation"])
    assert figures["best_epoch"] == best["epoch"]

    # Broken off after a piece, and when all is done.
    monkeypatch.setattr(deep, "fit_svi", broken_off)
    with pytest.raises(KeyboardInterrupt):
        run_deep(music, DEEP, 0, checkpoint=tmp_path / "b.ckpt", progress=False)
    monkeypatch.undo()
    for checkpoint in ("b.ckpt", "a.ckpt"):
        _, resumed = run_deep(music, DEEP, 0, checkpoint=tmp_path / checkpoint, progress=False)
        assert numbers(resumed) == numbers(figures)
    with pytest.raises(ValueError, match="checkpoint: expected a new file, or one of a run with"):
        run_deep(music, replace(DEEP, dropout=0.3), 0, checkpoint=tmp_path / "a.ckpt", progress=False)


def test_similar_lengths(music):
    data = SimilarLengths(music.train.x, music.train.lengths)
    batches = list(data.batches(4, shuffle=True, generator=torch.Generator().manual_seed(0)))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(12))
    assert all(batch.num_total == 12 for batch in batches)
    plain = list(music.train.batches(4, shuffle=True, generator=torch.Generator().manual_seed(0)))
    assert sum(batch.num_steps for batch in batches) < sum(batch.num_steps for batch in plain)
    assert [len(batch) for batch in data.batches(5)] == [5, 5, 2]


def test_run_writes_deep_figures(music, tmp_path):
    config = replace(DEEP, epochs=1)
    result = run(config, [0], music=music, results=tmp_path / "results", runs=tmp_path / "runs", progress=False)
    assert json.loads((tmp_path / "results" / "jsb-dmm-2.json").read_text()) == result
    assert result["summary"].keys() == {"test", "test_importance"}
    assert result["seeds"][0]["curve"][0]["test_of_best"] > 0


def test_guides_are_compared(music, tmp_path, monkeypatch, capsys):
    folders = {"results": tmp_path / "results", "runs": tmp_path / "runs"}
    each = [{"inference": "both"}, {"inference": "right-left", "flows": 1}]
    found = guides.compare(replace(DEEP, epochs=1), each, music=music, progress=False, **folders)
    assert json.loads((tmp_path / "results" / "jsb-dmm-2-guides.json").read_text()) == found
    both, flow = found["guides"]
    assert both["inference"] == "both" and flow["flows"] == 1
    assert both["num_parameters"] != flow["num_parameters"] and both["test"] != flow["test"]
    again = guides.compare(replace(DEEP, epochs=1), each, music=music, progress=False, **folders)
    assert [row["test"] for row in again["guides"]] == [both["test"], flow["test"]]

    asked = []

    def stub(config, seed):
        asked.append((config, seed))
        return {"guides": [{**flow, "test": 7.0, "num_parameters": 5}]}

    monkeypatch.setattr(guides, "compare", stub)
    guides.main(["--epochs", "3", "--seed", "2"])
    assert asked == [(replace(guides.SHORT, epochs=3), 2)]
    assert "| right-left, 1 flow | 5 | 7.000 |" in capsys.readouterr().out


STYLE = StyleConfig(states=2, style=1, epochs=2, batch_size=4, encoder=3, particles=200)


def test_style_starts_at_the_plain_model(music):
    plain, _ = run_seed(music, CONFIGS[0], 0, progress=False)
    model = build_style(plain, STYLE, 0).eval()
    silent = torch.zeros(len(music.test), 1)
    with torch.no_grad():
        found, expected = model.potentials(music.test, effects=silent), plain.potentials(music.test)
        valid = music.test.valid
        torch.testing.assert_close(found.observation[valid], expected.observation[valid])
        torch.testing.assert_close(found.transition[:, 0], expected.transition.expand(5, 2, 2))
        torch.testing.assert_close(found.initial, expected.initial.expand(5, 2))


def test_style_is_trained_and_between_bound_and_likelihood(music):
    plain, _ = run_seed(music, CONFIGS[0], 0, progress=False)
    start = style_bound_per_step(build_style(plain, STYLE, 0).eval(), music.train)
    model, figures = run_style(music, STYLE, 0, plain, progress=False)
    assert not model.training
    assert figures["train"] < start
    assert figures["epochs"] == len(figures["validation_by_epoch"]) == 2
    # The integral over the one number u, on a grid.
    grid = torch.linspace(-6, 6, 241)
    each = []
    with torch.no_grad():
        for u in grid:
            potentials = model.potentials(music.test, effects=u.expand(len(music.test), 1))
            each.append(ops.log_partition(*potentials, lengths=music.test.lengths).double())
    weights = torch.distributions.Normal(0.0, 1.0).log_prob(grid).double() + (grid[1] - grid[0]).double().log()
    exact = -(torch.stack(each) + weights.unsqueeze(-1)).logsumexp(0).sum().item() / music.test.num_observed
    assert figures["test_importance"] == pytest.approx(exact, abs=0.01)
    assert figures["test"] > exact


def test_run_writes_figures_of_style_and_of_its_start(music, tmp_path):
    config = replace(STYLE, epochs=1)
    result = run(config, [0], music=music, results=tmp_path / "results", runs=tmp_path / "runs", progress=False)
    assert json.loads((tmp_path / "results" / "jsb-style-2.json").read_text()) == result
    assert result["summary"].keys() == {"test", "test_importance"}
    plain, figures = run_seed(music, config_for("hmm", 2), 0, progress=False)
    assert result["seeds"][0]["start"]["test"] == pytest.approx(figures["test"])
    model = build_style(plain, config, 0).eval()
    model.load_state_dict(torch.load(tmp_path / "runs" / "jsb-style-2-seed0.pt", weights_only=True))
    assert style_bound_per_step(model, music.test) == pytest.approx(result["seeds"][0]["test"])


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
    command.main(["--model", "dmm", "--states", "8", "--inference", "both"])
    assert calls[2][0] == DeepConfig(states=8, inference="both")
    command.main(["--model", "style", "--style", "2"])
    assert calls[3][0] == StyleConfig(style=2)
    for wrong in (["--model", "rnn"], ["--model", "dmm", "--hidden", "3"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
