import pyro
import pytest
import torch
from pyro.nn import PyroModule, PyroParam

from pyrohmm.models.isolation import own_parameters, random_state, seeded, set_random_state


class Part(PyroModule):
    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.scale = PyroParam(torch.ones(()), constraint=torch.distributions.constraints.positive)
        self.net = torch.nn.Linear(1, 1)

    def forward(self) -> torch.Tensor:
        return self.weight + self.scale + self.net(torch.ones(1)).sum()


@pytest.mark.parametrize("name", ["", "part"])
def test_parameters_of_another_module_are_neither_read_nor_lost(name):
    first, second = Part(name), Part(name)
    with torch.no_grad():
        first.weight.fill_(5.0)
        first.scale = torch.tensor(7.0)
    first()
    store = pyro.get_param_store()
    names = set(store)
    assert len(names) == 4
    with own_parameters(second):
        assert second().item() == pytest.approx(1 + second.net.weight.item() + second.net.bias.item())
        assert store._params[f"{name}.weight".strip(".")] is second.weight
    assert set(store) == names
    assert first.weight.item() == 5.0
    assert store._params[f"{name}.weight".strip(".")] is first.weight


def test_parameters_of_plain_functions_stay():
    part = Part()
    pyro.param("known", torch.tensor(1.0))
    with own_parameters(part):
        part()
        assert pyro.param("known").item() == 1.0
        pyro.param("new", torch.tensor(2.0))
    assert set(pyro.get_param_store()) == {"known", "new"}


def test_store_is_put_back_after_an_error():
    part = Part()
    part()
    names = set(pyro.get_param_store())
    with pytest.raises(RuntimeError, match="stop"), own_parameters(part):
        raise RuntimeError("stop")
    assert set(pyro.get_param_store()) == names


def test_frozen_parameters_stay_frozen():
    part = Part()
    part.weight.requires_grad_(False)
    with own_parameters(part):
        part()
    assert not part.weight.requires_grad
    assert part.net.weight.requires_grad


def test_seeded_twice_and_nested():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    with seeded(3, cpu):
        first = torch.rand(2)
        with seeded(3, cpu):
            assert (torch.rand(2) == first).all()
        second = torch.rand(2)
    with seeded(3, cpu):
        assert (torch.rand(4) == torch.cat([first, second])).all()
    assert (torch.rand(2) == expected).all()


def test_random_state_is_a_copy():
    cpu = torch.device("cpu")
    with seeded(0, cpu):
        state = random_state(cpu)
        first = torch.rand(3)
        set_random_state(cpu, state)
        assert (torch.rand(3) == first).all()


def test_inside_of_a_program_others_keep_their_parameters():
    """Pyro's optimisers look for the unconstrained value of each parameter that a trace met."""
    part = Part()

    def program() -> None:
        pyro.param("mine", torch.tensor(1.0))
        with own_parameters(part):
            part()

    part()
    with pyro.poutine.trace(param_only=True) as capture:
        program()
    assert capture.trace.nodes["mine"]["value"].unconstrained() is pyro.get_param_store()._params["mine"]
