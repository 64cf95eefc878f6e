import pytest
import torch

from benchmarks import ours
from benchmarks.problem import Shape, random_problem

SHAPES = [Shape(3, 2, 5), Shape(3, 2, 5, time_varying=True)]


@pytest.mark.parametrize("shape", SHAPES, ids=["shared", "per step"])
def test_gradients_are_marginals(shape: Shape) -> None:
    problem = random_problem(shape)
    gradient, smooth = (job.read(job.run()) for job in (ours.prepare(name, problem) for name in ("gradient", "smooth")))
    counts = smooth["transition_marginals"] if shape.time_varying else smooth["transition_marginals"].sum(0)
    torch.testing.assert_close(gradient["d_observation"], smooth["state_marginals"])
    torch.testing.assert_close(gradient["d_transition"], counts)
    torch.testing.assert_close(gradient["total"], smooth["log_partition"].sum())


def test_unknown_operation() -> None:
    with pytest.raises(ValueError, match="operation: unknown 'sort'"):
        ours.prepare("sort", random_problem(Shape(2, 1, 2)))
