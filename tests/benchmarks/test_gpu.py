import json
import math
from functools import partial

import pytest
import torch

from benchmarks import __main__, device, gpu
from benchmarks.device import Gpu
from benchmarks.gpu import Settings
from benchmarks.measure import Effort
from benchmarks.peers import GPU, peers
from benchmarks.problem import Job, Shape
from benchmarks.svi import Size
from benchmarks.timing import Queued, wall_seconds

# The CPU in the place of a GPU: no events, no streams; kernels are interpreted.
CPU = Gpu(
    torch.device("cpu"),
    {"GPU": "No GPU 80GB"},
    cache=1,
    instructions=1e12,
    seconds=wall_seconds,
    queued=lambda function: Queued(wall_seconds(function), 0.25),
)
TINY = Settings(
    cells=(
        (Shape(2, 2, 3), ("log_partition", "gradient", "viterbi")),
        (Shape(3, 2, 3, time_varying=True), ("gradient",)),
    ),
    effort=Effort(rounds=1, warmups=0),
    svi_size=Size(2, 3, 4, 2),
)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "measure_ceilings", partial(device.measure_ceilings, size=16, copied=100, repeats=1))
    monkeypatch.setattr(device, "find", lambda: CPU)


@pytest.mark.usefixtures("small_machine")
def test_whole_report(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "QUICK", TINY)
    monkeypatch.setattr(gpu, "peers", lambda columns: peers([c for c in columns if c != "dynamax"]))
    file = tmp_path / "new" / "run"
    assert __main__.main(["gpu", "--quick", "--rounds", "2", "--output", str(file)]) == 0
    saved, text = json.loads(file.with_suffix(".json").read_text()), file.with_suffix(".md").read_text()
    assert text == capsys.readouterr().out
    assert [cell["operation"] for cell in saved["cells"]] == ["log_partition", "gradient", "viterbi", "gradient"]
    for cell in saved["cells"]:
        assert cell["timings"]["pyrohmm"]["rounds"] == cell["timings"]["torch loop"]["rounds"] == 2
    assert not saved["left_out"] and "Left out" not in text
    assert saved["svi_step_queued"]["pyrohmm loop"]["device"] == 0.25 and "| 250 |" in text
    assert "| not run |" in text and "| not measured |" in text and "M at 2, 2, 3" in text


@pytest.mark.usefixtures("small_machine")
def test_what_fails_or_disagrees_is_left_out_and_told() -> None:
    def broken(operation: str, problem: object) -> Job:
        raise MemoryError("too\nlarge")

    settings = TINY._replace(cells=TINY.cells[:1])
    liar = Job(lambda: torch.zeros(2), lambda value: {"log_partition": value})
    report = gpu.run(settings, libraries={"broken": broken, "liar": lambda operation, _: liar, "absent": None})
    assert [cell.timings["broken"] for cell in report.cells] == [None] * 3 and not report.ok
    text = report.as_markdown()
    assert "| log_partition (2, 2, 3) | broken | MemoryError | too large |" in text
    assert "| log_partition (2, 2, 3) | liar | DisagreementError |" in text
    assert "| not installed |" in text
    assert all(cell.timings["pyrohmm"] for cell in report.cells)


def test_inputs_leave_the_cache_before_they_come_again() -> None:
    megabyte = 2**20
    assert gpu._pool_size(Shape(8, 1, 2**20), 50 * megabyte) == 7  # 32 MiB each
    assert gpu._pool_size(Shape(8, 1, 2**10), 50 * megabyte) == 8
    assert gpu._pool_size(Shape(32, 256, 512, time_varying=True), 50 * megabyte) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="torch sees no CUDA device") as stopped:
        __main__.main(["gpu", "--quick"])
    assert stopped.value.code != 0 and not capsys.readouterr().out


def test_columns_can_be_prepared() -> None:
    assert {"torch loop", "DiscreteHMM", "bare products"} <= {name for name, there in peers(GPU).items() if there}


# K = 10, B = 2, T = 51: 10^4 floats of a matrix per step and 1020 of the observations, of 4 bytes each.
def test_floors() -> None:
    ceilings = device.Ceilings(flops=1e9, tf32_flops=6e9, bytes=1e6, instructions=1e9)
    each, shared = Shape(10, 2, 51, time_varying=True), Shape(10, 2, 51)
    for operation, passes in (("log_partition", 1), ("gradient", 2), ("viterbi", 1)):
        assert device.floor(operation, each, ceilings) == pytest.approx(passes * 0.04408)
        assert device.memory_floor(operation, shared, ceilings) == pytest.approx(passes * 0.00408)
    fast = ceilings._replace(bytes=math.inf)
    assert device.floor("log_partition", shared, fast) == pytest.approx(2 * 10200 / 2e9)  # TF32 three times
    assert device.floor("gradient", shared, fast._replace(tf32_flops=1e9)) == pytest.approx(6 * 10200 / 1e9)
    assert device.floor("viterbi", shared, fast) == pytest.approx(2 * 10200 / 1e9)


def test_ceilings_leave_the_precision_alone() -> None:
    before = torch.get_float32_matmul_precision()
    ceilings = device.measure_ceilings(CPU, size=16, copied=100, repeats=1)
    assert min(ceilings) > 0 and ceilings.instructions == 1e12
    assert torch.get_float32_matmul_precision() == before
