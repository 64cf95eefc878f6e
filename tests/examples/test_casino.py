"""The casino is simulated as it is said to be, found by EM, and drawn."""

import pytest
import torch

from examples import casino


def test_the_casino_is_the_one_of_the_book():
    transition, faces = casino.parameters(casino.casino())
    torch.testing.assert_close(transition, casino.TRANSITION)
    torch.testing.assert_close(faces, casino.FACES)
    rolls = casino.casino().simulate(100, casino.NUM_ROLLS, seed=0)
    assert rolls.labels is not None
    assert float(rolls.labels.double().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float((rolls.x[rolls.labels == 1] == 5).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_first_state_that_is_found_is_the_fair_die(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    result = casino.run(tmp_path, seed=1, num_sequences=6, restarts=1)
    assert (tmp_path / "casino.png").read_bytes().startswith(b"\x89PNG")
    assert f"right die at {result['accuracy']:.1%} of the rolls" in capsys.readouterr().out
    # Far better than always to say "fair", for which a third is wrong.
    assert result["accuracy"] > 0.7
    assert 0.7 < result["accuracy_of_the_truth"] < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_run_finds_the_casino(seed, tmp_path):
    pytest.importorskip("matplotlib")
    result = casino.run(tmp_path, seed)
    assert result["found"]
    assert result["accuracy"] > result["accuracy_of_the_truth"] - 0.03
    assert (tmp_path / "casino.png").stat().st_size < 100_000
