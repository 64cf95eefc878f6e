import json

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from benchmarks import __main__, nuts
from benchmarks.nuts import Program, Settings, Task
from benchmarks.problem import DisagreementError

TINY = Settings(tasks=(Task(2, 2, 3),), draws=6, warmup=3)


@pytest.mark.parametrize("task", [Task(1, 2, 1), Task(3, 2, 4)])
def test_programs_are_the_same_model(task: Task) -> None:
    program = Program(task)
    nuts.check_densities(program)
    elbos = (
        elbo(max_plate_nesting=2).loss(poutine.condition(function, program.start), lambda *args: None, program.x)
        for elbo, function in ((Trace_ELBO, program.loop), (TraceEnum_ELBO, program.enumerated))
    )
    torch.testing.assert_close(*elbos)


def test_other_programs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(TINY.tasks[0])
    other = Program(TINY.tasks[0])
    other.middle = other.middle + 1
    monkeypatch.setattr(program, "enumerated", other.enumerated)
    with pytest.raises(DisagreementError, match="energies differ"):
        nuts.check_densities(program)


def test_report_and_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nuts, "QUICK", TINY)
    before = torch.get_rng_state()
    assert __main__.main(["nuts", "--quick", "--draws", "8", "--output", str(tmp_path / "run")]) == 0
    assert torch.equal(before, torch.get_rng_state())
    assert (tmp_path / "run.md").read_text() == capsys.readouterr().out
    (row,) = json.loads((tmp_path / "run.json").read_text())["rows"]
    ours, plain, compiled = row["runs"].values()
    # The same chain, from the same random numbers.
    assert ours["gradients"] == plain["gradients"] > 8 and compiled["gradients"] is None
    assert ours["least"] == pytest.approx(plain["least"], rel=1e-3)
    assert 0 < ours["least"] <= ours["median"] and ours["seconds"] > 0
