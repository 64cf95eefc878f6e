import pytest

from benchmarks.device import Ceilings
from benchmarks.problem import Shape
from benchmarks.targets import HUGE, LONG, MANY, PITCH, STREAM, WIDE, Cell, Target, gpu_targets, targets
from benchmarks.timing import Timing


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 3)


def cell(operation: str, shape: Shape, ours: float, floor: float = 1.0, **peers: float) -> Cell:
    timings = {"pyrohmm": timing(ours), "hmmlearn log": None}
    return Cell(operation, shape, timings | {name: timing(seconds) for name, seconds in peers.items()}, floor)


CELLS = [
    cell("log_partition", Shape(4, 1, 100), 1.0, dynamax=1.0),
    cell("log_partition", Shape(64, 2, 10), 2.0, 0.5, dynamax=18.0, **{"hmmlearn log": 20.0, "hmmlearn scaled": 8.0}),
    cell("viterbi", Shape(4, 2, 10), 2.0, dynamax=3.0),
    cell("viterbi", Shape(128, 2, 10), 1.0, dynamax=19.0),
    cell("gradient", Shape(4, 2, 10, time_varying=True), 3.0, 1.0),
]
FOUND = {
    target.what: target
    for target in targets(
        CELLS, {"pyrohmm loop": timing(1.0), "DiscreteHMM": timing(10.0)}, {"peak memory": 2.5e8, "import": 0.5}
    )
}


@pytest.mark.parametrize(
    ("what", "measured", "verdict"),
    [
        ("log_partition: dynamax / ours, geometric mean", 3.0, "reached"),
        ("smooth: dynamax / ours, geometric mean", None, "not measured"),
        ("dynamax / ours, smallest", 1.0, "reached"),
        ("viterbi: dynamax / ours, smallest", 1.5, "reached"),
        ("viterbi: dynamax / ours, smallest, K >= 128", 19.0, "**not reached**"),
        ("hmmlearn / ours, smallest, B > 1", 4.0, "**not reached**"),
        ("hmmlearn / ours, smallest", 4.0, "reached"),
        ("SVI step: DiscreteHMM / pyrohmm loop", 10.0, "reached"),
        ("SVI step: TraceEnum_ELBO / pyrohmm loop", None, "not measured"),
        ("log_partition: ours / arithmetic floor, largest, K >= 32", 4.0, "**not reached**"),
        ("gradient, matrix per step: ours / bandwidth floor, largest", 3.0, "reached"),
        ("peak memory over the inputs at (4, 1, 1000000), MB", 250.0, "**not reached**"),
        ("import after pyro, seconds", 0.5, "reached"),
        ("first call in a second process, seconds", None, "not measured"),
    ],
)
def test_targets(what: str, measured: float | None, verdict: str) -> None:
    assert FOUND[what].measured == (measured if measured is None else pytest.approx(measured))
    assert FOUND[what].verdict == verdict


def test_goal_in_words() -> None:
    assert Target("", 1.0, at_least=2).goal == "at least 2"
    assert Target("", 1.0, at_most=0.5).goal == "at most 0.5"


# Rates at which the goals are round numbers of seconds.
GPU_CELLS = [
    cell("gradient", MANY, 3.0, DiscreteHMM=180.0),
    cell("log_partition", WIDE, 4.0),
    cell("log_partition", STREAM, 2.0),
    cell("gradient", LONG, 0.003),
    cell("gradient", HUGE, 3.0, **{"bare products": 2.0}),
    cell("viterbi", PITCH, 5.0),
]
GPU_CEILINGS = Ceilings(
    flops=2.0 * WIDE.edges,
    tf32_flops=1.0,
    bytes=4.0 * MANY.batch * MANY.num_steps * MANY.num_states,
    instructions=2.0 * PITCH.edges,
)
GPU_FOUND = {target.what: target for target in gpu_targets(GPU_CELLS, GPU_CEILINGS)}


@pytest.mark.parametrize(
    ("what", "measured", "verdict"),
    [
        ("gradient (16, 4096, 1000): ours / memory floor", 1.5, "reached"),
        ("gradient (16, 4096, 1000): DiscreteHMM / ours", 60.0, "reached"),
        ("log_partition (64, 1024, 512): share of the rate of float32 products", 0.25, "**not reached**"),
        (
            "log_partition (32, 256, 512 per step): share of the copy",
            (256 * 511 * 1024 + 256 * 512 * 32) / (16 * 4096 * 1000) / 2,
            "reached",
        ),
        ("gradient (32, 256, 512 per step): share of the copy", None, "not measured"),
        ("gradient (8, 1, 1000000): ms", 3.0, "**not reached**"),
        ("gradient (4096, 64, 256): ours / bare products", 1.5, "reached"),
        ("log_partition (4096, 64, 256): ours / bare products", None, "not measured"),
        ("viterbi (1440, 512, 100): share of the instructions", 0.2, "**not reached**"),
    ],
)
def test_gpu_targets(what: str, measured: float | None, verdict: str) -> None:
    assert len(GPU_FOUND) == 9
    assert GPU_FOUND[what].measured == (measured if measured is None else pytest.approx(measured))
    assert GPU_FOUND[what].verdict == verdict
