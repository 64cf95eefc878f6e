import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import __main__, em, fit
from benchmarks.em import QUICK, Settings
from benchmarks.fit import Start, Task, random_start
from benchmarks.measure import Effort
from benchmarks.peers import EM, peers
from benchmarks.problem import DisagreementError, Job, check_agreement
from benchmarks.targets import Fitted, em_targets
from benchmarks.timing import Timing

TASKS = [Task("diag", 3, 2, 4, 20, 3), Task("full", 3, 2, 4, 20, 3), Task("categorical", 3, 4, 4, 20, 3)]
TINY = Settings(tasks=TASKS, restarted=TASKS[:1], effort=Effort(rounds=1, warmups=0), repeats=0)
PEERS = {column: prepare for column, prepare in peers(EM).items() if prepare}


def test_without_other_libraries() -> None:
    report = em.run(TINY, libraries={"dynamax fit_em": None})
    assert len(report.fits) == 3 and all(f.timings["pyrohmm float32"] for f in report.fits)
    assert all(f.timings["dynamax fit_em"] is None and 0 < f.gaps["pyrohmm float32"] < 1e-5 for f in report.fits)
    assert report.fits[0].pair_bytes == 4 * 4 * 20 * 9
    (restarts,) = report.restarts
    assert restarts.in_fits(restarts.many) == restarts.many.median / restarts.one.median
    text = report.as_markdown()
    assert "| diag (3, 2, 4, 20), 3 iterations |" in text and "| not installed |" in text and "| not measured |" in text
    assert json.loads(json.dumps(report.as_json()))["fits"][0]["timings"]["pyrohmm float64"]["rounds"] == 1


def test_command_line_saves_both_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(em, "QUICK", TINY._replace(tasks=TASKS[:1]))
    monkeypatch.setattr(em, "peers", lambda columns: dict.fromkeys(columns))
    assert __main__.main(["em", "--quick", "--rounds", "2", "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["fits"][0]["timings"]["pyrohmm float64"]["rounds"] == 2
    assert (tmp_path / "run.md").read_text() == capsys.readouterr().out


def test_wrong_answers_are_not_timed() -> None:
    wrong = Job(lambda: torch.zeros(3), lambda value: {"log_likelihood": value})
    with pytest.raises(DisagreementError, match="liar against pyrohmm float64"):
        em.measure_fit(TASKS[0], {"liar": lambda start: wrong}, TINY)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.emission)
@pytest.mark.parametrize("column", PEERS or [pytest.param("", marks=pytest.mark.skip("none is installed"))])
def test_agrees_with_ours(column: str, task: Task) -> None:
    start = random_start(task)
    expected, got = fit.prepare(start, torch.float64), PEERS[column](start)
    tolerance = 1e-10 if column.startswith("hmmlearn") else 1e-4
    check_agreement(expected.read(expected.run()), got.read(got.run()), column, tolerance=tolerance)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.emission)
def test_every_run_starts_anew(task: Task) -> None:
    job = fit.prepare(random_start(task), torch.float64)
    first, second = (job.read(job.run())["log_likelihood"] for _ in range(2))
    assert first.shape == (task.iterations,) and (first.diff() > 0).all()
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0.0)


def test_start_is_that_of_the_library() -> None:
    start = random_start(TASKS[1])
    model = fit.model_at(start, torch.float64)
    law = model.emission(torch.arange(3))
    torch.testing.assert_close(law.mean, start.loc)
    torch.testing.assert_close(law.covariance_matrix, start.scale.square().diag_embed())
    torch.testing.assert_close(model.transition.log_probs().exp(), start.transition)
    assert isinstance(start, Start) and torch.equal(start.x, start.x.float().double())


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that is made meanwhile."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.nbytes = max([self.nbytes, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
        return result


@pytest.mark.parametrize("emission", ["diag", "full", "categorical"])
def test_no_tensor_has_a_number_for_each_pair_of_states_at_each_step(emission: str) -> None:
    job = fit.prepare(random_start(Task(emission, 32, 2, 4, 100, 1)))
    with Largest() as largest:
        job.run()
    assert 4 * 4 * 100 * 32 <= largest.nbytes <= 4 * 4 * 100 * 32**2 / 4


def test_targets() -> None:
    timings = {"pyrohmm float32": 1.0, "pyrohmm float64": 2.0, "hmmlearn fit scaling": 15.0}
    fitted = Fitted(
        "diag",
        {name: Timing(seconds, seconds, seconds, 3) for name, seconds in timings.items()}
        | {"dynamax fit_em": None, "dynamax fit_em, compiled before": Timing(9.0, 9.0, 9.0, 3)},
        {"hmmlearn fit scaling": 1e-7, "hmmlearn fit log": 2e-6, "dynamax fit_em": 1e-3},
        3.0,
        2.0,
    )
    found = {target.what: (target.measured, target.verdict) for target in em_targets([fitted])}
    assert list(found.values()) == [
        (15.0, "reached"),
        (7.5, "**not reached**"),
        (None, "not measured"),
        (None, "not measured"),
        (9.0, "**not reached**"),
        (4.5, "**not reached**"),
        (2e-6, "**not reached**"),
        (1.5, "**not reached**"),
    ]


def test_quick_is_less() -> None:
    assert len(QUICK.tasks) == 3 and all(task.edges < 2e8 for task in QUICK.tasks)
