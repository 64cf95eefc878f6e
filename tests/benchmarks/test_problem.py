import pytest
import torch

from benchmarks.problem import DisagreementError, Shape, check_agreement, path_score, random_problem


@pytest.mark.parametrize("shape", [Shape(3, 2, 4), Shape(3, 2, 4, time_varying=True)])
def test_laws_are_normalised(shape: Shape) -> None:
    problem = random_problem(shape)
    assert problem.initial.logsumexp(-1).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(problem.transition.logsumexp(-1), torch.zeros(problem.transition.shape[:-1]))
    assert problem.observation.shape == (2, 4, 3)


def test_shared_chain_is_stationary() -> None:
    problem = random_problem(Shape(4, 1, 2))
    torch.testing.assert_close(problem.initial.exp() @ problem.transition.exp(), problem.initial.exp())


@pytest.mark.parametrize("time_varying", [False, True])
def test_path_score_adds_up_along_the_path(time_varying: bool) -> None:
    problem = random_problem(Shape(3, 2, 3, time_varying))
    _, initial, transition, observation = problem
    states = torch.tensor([[0, 2, 1], [1, 1, 0]])
    steps = transition if time_varying else transition.expand(2, 2, 3, 3)
    expected = [
        initial[a] + steps[n, 0, a, b] + steps[n, 1, b, c] + observation[n, [0, 1, 2], [a, b, c]].sum()
        for n, (a, b, c) in enumerate(states.tolist())
    ]
    torch.testing.assert_close(path_score(problem, states).float(), torch.stack(expected))


@pytest.mark.parametrize(
    "got",
    [
        {"x": torch.tensor([1.0, 2.1])},
        {"x": torch.tensor([1.0, torch.nan])},
        {"x": torch.ones(1)},
        {"y": torch.ones(2)},
    ],
    ids=["value", "NaN", "shape", "nothing in common"],
)
def test_disagreement_is_an_error(got: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DisagreementError, match="viterbi"):
        check_agreement({"x": torch.tensor([1.0, 2.0])}, got, "viterbi")


def test_rounding_is_no_disagreement() -> None:
    check_agreement({"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([1.0, 2.0001]), "y": torch.ones(1)}, "smooth")
