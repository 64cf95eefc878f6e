import pytest
import torch

from pyrohmm.infer.parameters import Parameters


def make() -> tuple[torch.nn.Module, torch.Tensor, Parameters]:
    module, other = torch.nn.BatchNorm1d(2), torch.zeros(3, requires_grad=True)
    return module, other, Parameters([module], {"module.weight": module.weight, "other": other})


def test_puts_back_parameters_buffers_and_others_in_place():
    module, other, parameters = make()
    state = parameters.state()
    weight = module.weight
    with torch.no_grad():
        module.weight.fill_(3.0)
        other.fill_(3.0)
    module(torch.randn(5, 2))
    assert (module.running_mean != 0).any()
    parameters.load(state)
    assert module.weight is weight
    assert (weight == 1).all()
    assert (other == 0).all()
    assert (module.running_mean == 0).all()
    assert list(state["others"]) == ["other"]


def test_state_is_a_copy():
    module, other, parameters = make()
    state = parameters.state()
    with torch.no_grad():
        module.weight.fill_(3.0)
        other.fill_(3.0)
    assert (state["modules"][0]["weight"] == 1).all()
    assert (state["others"]["other"] == 0).all()


def test_state_of_others():
    _, _, parameters = make()
    linear = torch.nn.Linear(2, 1)
    for wrong in (Parameters([linear], {}), Parameters([], {}), Parameters([torch.nn.BatchNorm1d(2)], {})):
        with pytest.raises(ValueError, match="another model or guide"):
            parameters.load(wrong.state())
