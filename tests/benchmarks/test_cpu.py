import json
from functools import partial

import pytest
import torch

from benchmarks import __main__, cpu, fresh, machine
from benchmarks.cpu import QUICK, SHAPES, Settings
from benchmarks.measure import Effort
from benchmarks.peers import peers
from benchmarks.problem import OPERATIONS, DisagreementError, Job, Shape
from benchmarks.svi import Size

TINY = Settings(
    shapes=[Shape(2, 1, 4), Shape(3, 2, 3, time_varying=True)],
    effort=Effort(rounds=1, warmups=0),
    svi_size=Size(2, 3, 4, 2),
)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = partial(machine.measure_ceilings, size=16, copied=100, repeats=1)
    monkeypatch.setattr(machine, "measure_ceilings", ceilings)
    monkeypatch.setattr(fresh, "MEASUREMENTS", {})


@pytest.mark.usefixtures("small_machine")
def test_without_other_libraries() -> None:
    report = cpu.run(TINY, libraries={"dynamax": None})
    assert len(report.cells) == len(TINY.shapes) * len(OPERATIONS)
    assert all(cell.timings["pyrohmm"] and not cell.timings["dynamax"] for cell in report.cells)
    assert report.steps["pyrohmm loop"] and report.steps["TraceEnum_ELBO"]
    text = report.as_markdown()
    assert "| 3, 2, 3 per step |" in text and "| not installed |" in text and "| not measured |" in text
    assert json.loads(json.dumps(report.as_json()))["cells"][0]["shape"]["num_states"] == 2


@pytest.mark.usefixtures("small_machine")
def test_command_line_saves_both_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "QUICK", TINY)
    monkeypatch.setattr(cpu, "peers", lambda: {"dynamax": None})
    assert __main__.main(["cpu", "--quick", "--rounds", "2", "--output", str(tmp_path / "new" / "run")]) == 0
    saved = json.loads((tmp_path / "new" / "run.json").read_text())
    assert saved["cells"][0]["timings"]["pyrohmm"]["rounds"] == 2
    assert (tmp_path / "new" / "run.md").read_text() == capsys.readouterr().out


def test_wrong_answers_are_not_timed() -> None:
    wrong = Job(lambda: torch.zeros(1), lambda value: {"log_partition": value})
    ceilings = machine.Ceilings(1.0, 1.0, 1.0)
    with pytest.raises(DisagreementError, match="log_partition \\(2, 1, 4\\): liar against pyrohmm"):
        cpu.measure_cell("log_partition", Shape(2, 1, 4), {"liar": lambda *_: wrong}, ceilings, TINY)


def test_what_takes_too_long_is_left_out() -> None:
    slow = Job(lambda: pytest.fail("was run"), lambda value: {}, seconds=TINY.effort.longest + 1)
    ceilings = machine.Ceilings(1.0, 1.0, 1.0)
    cell = cpu.measure_cell("viterbi", Shape(2, 1, 4), {"slow": lambda *_: slow}, ceilings, TINY)
    assert cell.timings["slow"] is None and cell.timings["pyrohmm"] is not None


def test_columns_are_those_of_installed_libraries() -> None:
    columns = peers()
    assert callable(columns["DiscreteHMM"])  # Pyro is there
    assert set(QUICK.shapes) < set(SHAPES)
