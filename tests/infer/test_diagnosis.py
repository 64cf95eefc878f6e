"""What is told of programs whose numbers break."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrohmm.data import Sequences
from pyrohmm.infer.diagnosis import find_not_finite
from tests.infer.programs import latent_guide, latent_model, level_guide, level_model, make_data


def test_nothing_to_tell():
    torch.manual_seed(0)
    assert find_not_finite(latent_model, latent_guide, make_data(), num_particles=3) == []
    assert pyro.infer.util.is_validation_enabled()


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("dim", [-1, -2])
def test_sequences_of_values_and_log_probabilities(event, dim):
    """By their place in the whole set; five of them, and how many more."""
    data = make_data(9)[[8, 0, 3, 4, 5, 6, 7, 1]]
    bad = torch.zeros(len(data), *[1] * (-dim - 1), *[2] * event)
    bad[:-1] = torch.inf

    def program(name: str, **options: Any) -> Any:
        def run(data: Sequences) -> None:
            with pyro.plate("sequences", data.num_total, subsample=data.index, dim=dim):
                law = dist.Normal(torch.zeros(bad.shape) if options else bad, 1.0, validate_args=False)
                pyro.sample(name, law.to_event(int(event)), **options)

        return run

    guide, model = program("level"), program("x", obs=bad)
    where = "in the sequences [8, 0, 3, 4, 5] and 2 more"
    assert find_not_finite(model, guide, data)[0] == f"site 'level' of the guide has a value of inf, {where}"
    assert find_not_finite(model, lambda data: None, data)[0] == f"site 'x' of the model has a value of inf, {where}"


def test_sites_without_sequences():
    """Only the guide is told of, where it broke already."""

    def guide(data: Sequences) -> None:
        pyro.sample("slope", dist.Normal(0.0, 1.0, validate_args=False).mask(True))
        pyro.factor("broken", torch.tensor(-math.inf), has_rsample=True)

    found = find_not_finite(lambda data: pyro.factor("worse", torch.tensor(-math.inf)), guide, make_data())
    assert found == ["site 'broken' of the guide has a log-probability of -inf"]


def test_errors_are_told_of_and_where():
    def model(data: Sequences) -> None:
        level_model(data)
        raise RuntimeError("mine\nand more")

    assert find_not_finite(model, level_guide, make_data()) == [
        "the model, after its site 'time', raises RuntimeError: mine"
    ]
    assert find_not_finite(level_model, model, make_data())[0].startswith("the guide, after its site 'time', raises")


def test_value_outside_of_the_support():
    def model(data: Sequences) -> None:
        with pyro.plate("sequences", data.num_total, subsample=data.index):
            pyro.sample("x", dist.Exponential(1.0), obs=data.x[:, 0])

    data = Sequences(torch.tensor([[1.0], [-1.0]]))
    (told,) = find_not_finite(model, lambda data: None, data)
    assert told.startswith("site 'x' of the model has no log-probability: ")


def test_random_numbers_are_those_of_the_particles():
    """The second of three draws is the first that is negative, in both runs."""
    draws: list[float] = []

    def guide(data: Sequences) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        draws.append(level.item())
        pyro.factor("broken", torch.where(level < 0, -torch.inf, 0.0), has_rsample=True)

    def model(data: Sequences) -> None:
        pyro.sample("level", dist.Normal(0.0, 1.0))

    seed = next(seed for seed in range(99) if _signs(seed)[:2] == [False, True])
    torch.manual_seed(seed)
    assert len(find_not_finite(model, guide, make_data(), num_particles=3)) == 1
    assert draws[:2] == draws[2:]
    draws.clear()
    torch.manual_seed(seed)
    assert find_not_finite(model, guide, make_data(), num_particles=1) == []


def _signs(seed: int) -> list[Any]:
    return (torch.randn(3, generator=torch.Generator().manual_seed(seed)) < 0).tolist()
