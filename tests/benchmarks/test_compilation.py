import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
import triton.language as tl
from triton.runtime import JITFunction, driver

from benchmarks import __main__, compilation
from benchmarks.compilation import Launch, Report, Row, Settings, Usage

ROOT = Path(__file__).parents[2]
COMPILING = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def add(x, stride, count, alone, SIZE: tl.constexpr, FAST: tl.constexpr, SLOW: tl.constexpr):
    tl.store(x + alone + count * stride + tl.arange(0, SIZE), tl.zeros((SIZE,), x.dtype.element_ty))


# What conftest.py has interpreted would not be specialised.
add_kernel = JITFunction(add)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What is noted of launches with different arguments."""
    monkeypatch.setattr(driver, "_active", None)  # put back afterwards

    def operate(_, chain) -> None:
        numbers = torch.zeros(64, dtype=chain.observation.dtype)
        options = {"SIZE": 4, "FAST": True, "SLOW": False, "num_warps": 2}
        for x, stride, count in ((numbers, 32, 5), (numbers, 48, 7), (numbers[1:], 32, 5), (numbers, 2**40, 5)):
            add_kernel[(3,)](x, stride, count, 1, **options)

    monkeypatch.setattr(compilation, "OPERATIONS", {"math": operate})
    return compilation.record(Settings(states=(2,), dtypes=(torch.float32, torch.float64)), 90)


def test_launches_are_specialised_as_triton_does(recorded: list[Launch]) -> None:
    # The second launch of each dtype is like the first: both strides are divisible by 16, neither count is.
    assert [launch.dtype for launch in recorded] == ["float32"] * 3 + ["float64"] * 3
    first, shifted, long, double, *_ = (launch.described for launch in recorded)
    assert first["signature"] == {
        **{"x": "*fp32", "stride": "i32", "count": "i32", "alone": "constexpr"},
        **{"SIZE": "constexpr", "FAST": "constexpr", "SLOW": "constexpr"},
    }
    assert dict(zip((key for (key,) in first["constant_keys"]), first["constant_vals"], strict=True)) == {
        **{3: 1, 4: 4, 5: True, 6: False},
    }
    assert divisible(first) == ["x", "stride"] and divisible(shifted) == ["stride"]
    assert long["signature"]["stride"] == "i64" and double["signature"]["x"] == "*fp64"
    assert first["target"]["arch"] == 90
    assert recorded[0].constants == "SIZE=4 FAST" and recorded[0].num_warps == 2
    assert (recorded[0].name, recorded[0].num_states) == ("add", 2)


def divisible(described: dict) -> list[str]:
    names = list(described["signature"])
    attributes = zip(described["attrs_keys"], described["attrs_vals"], strict=True)
    return [names[path[0]] for path, value in attributes if ["tt.divisibility", 16] in value]


def test_usage_is_read_from_the_log() -> None:
    log = """
ptxas info    : Compiling entry function 'walk' for 'sm_80'
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 440 bytes cmem[0]"""
    assert compilation.usage(log, 100, 1000) == Usage(255, 100, 4, 12)
    assert compilation.usage(log, 1001, 1000).error == "1001 bytes of shared memory, there are 1000"


def row(size: int, *usage: Usage) -> Row:
    described = {
        "signature": {"x": "*fp32", "N": "constexpr"},
        "constant_keys": [[1]],
        "constant_vals": [size],
        "options": {"num_warps": 4},
    }
    launch = Launch("pyrohmm.ops.viterbi.kernels", "walk", "float32", 8, 80, json.dumps(described))
    return Row(launch, dict(zip(compilation.TARGETS, usage, strict=True)))


def test_table_shows_the_worst_variant_and_what_spills() -> None:
    light, heavy = Usage(40, 512), Usage(255, 512, 8, 16)
    rows = [row(2, light, light), row(2, heavy, light), row(4, light, light)]
    report = Report("2026-01-01", {"triton": "3"}, rows)
    text = report.as_markdown()
    assert "| viterbi.kernels.walk | float32 | 8 | N=2 | 2 | 4 | 255 | 512 | **8 / 16** | 40 | 512 | 0 |" in text
    assert "| N=4 | 1 | 4 | 40 | 512 | 0 | 40 | 512 | 0 |" in text
    assert text.endswith("3 kernels, 1 with spills\n") and report.ok
    assert len(report.as_json()["kernels"]) == 3 and report.as_json()["kernels"][1]["sm_80"]["stores"] == 8


def test_failures_are_told() -> None:
    report = Report("2026-01-01", {}, [row(2, Usage(40, 512), Usage(error="PTXASError: no"))])
    assert not report.ok and report.name == "2026-01-01-compile"
    assert "| **failed** |" in report.as_markdown() and "1 kernels, 0 with spills, **1 failed**" in report.as_markdown()
    assert "sm_90, walk, float32, K = 8: PTXASError: no" in report.as_markdown()


def test_interpreted_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="unset TRITON_INTERPRET"):
        __main__.main(["compile"])


SMALL = """
import torch
from benchmarks import __main__, compilation
from benchmarks.compilation import Settings

def partition(gpu, chain):
    gpu.partition(chain, keep=False)

if __name__ == "__main__":
    chains = compilation.chains
    compilation.chains = lambda *which: [next(chains(*which))]
    compilation.OPERATIONS = {"pyrohmm.ops.forward_backward.gpu": partition}
    compilation.Settings = lambda: Settings(states=(16,), dtypes=(torch.float32,), processes=1)
    raise SystemExit(__main__.main(["compile"]))
"""


# Kernels for which ptxas, left to choose, once took fewer registers than they need, on one of the targets.
TIGHT = """
import torch
from benchmarks import compilation
from benchmarks.compilation import Settings

WHICH = {
    (4, torch.float64): ("gpu_log.forward", {"SHARED", "ONWARD"}),
    (8, torch.float64): ("gpu_log.forward", {"KEEP", "FILTER"}),
    (1440, torch.float32): ("gpu_wide_kernels.forward_log", {"SHARED", "FILTER"}),
}

def forward(gpu, chain):
    gpu.partition(chain, keep=False)
    gpu.filter(chain)

if __name__ == "__main__":
    compilation.OPERATIONS = {"pyrohmm.ops.forward_backward.gpu": forward}
    launches = [
        launch
        for (num_states, dtype), (kernel, constants) in WHICH.items()
        for arch in compilation.TARGETS
        for launch in compilation.record(Settings((num_states,), (dtype,)), arch)
        if f"{launch.module}.{launch.name}".endswith(kernel) and constants <= set(launch.constants.split())
    ]
    for launch in launches:
        print(launch.name, launch.num_states, launch.constants, launch.arch, *compilation.compile_launch(launch)[2:])
"""


def run_compiling(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a process where Triton compiles."""
    path = folder / "script.py"
    path.write_text(script)
    environment = {**COMPILING, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder / "cache")}
    return subprocess.run([sys.executable, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_kernels_compile_for_both_targets_without_spills(tmp_path) -> None:
    done = run_compiling(SMALL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sm_80 registers" in done.stdout and "sm_90 registers" in done.stdout
    assert "| forward_backward.gpu_scaled.forward | float32 | 16 |" in done.stdout
    assert "forward_backward.gpu_log.forward" in done.stdout
    assert done.stdout.endswith(" kernels, 0 with spills\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_kernels_that_are_short_of_registers_do_not_spill(tmp_path) -> None:
    done = run_compiling(TIGHT, tmp_path)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert len(found) == 10  # with one matrix or many, of sequences or spans; each for two targets
    assert not [line for line in found if not line.endswith(" 0 0 ")]
