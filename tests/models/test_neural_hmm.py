import pytest
import torch

from pyrohmm import nn
from pyrohmm.models import HMM, NeuralHMM
from tests.models.cases import make


def test_is_the_same_program_as_hmm():
    model, data = make("categorical")
    same = NeuralHMM(initial=model.initial, transition=model.transition, emission=model.emission)
    assert isinstance(same, HMM)
    torch.testing.assert_close(same.log_prob(data), model.log_prob(data), rtol=0, atol=0)


def test_inputs_change_the_law_only_through_the_parts_that_read_them():
    model, data = make("inputs")
    changed = data.inputs.clone()
    changed[0, 2] += 1.0
    other = data._replace({"inputs": changed})
    difference = (model.log_prob(other) - model.log_prob(data)).abs()
    assert difference[0] > 1e-6
    assert difference[1:].max() == 0
    plain, _ = make("embedded")
    data = data._replace({"x": torch.ones_like(data.x)})
    assert (plain.log_prob(data) == plain.log_prob(data._replace({"inputs": changed}))).all()


def test_parts_are_required_by_name():
    with pytest.raises(TypeError, match="transition"):
        NeuralHMM(initial=nn.Initial(2), emission=nn.BernoulliEmission(2, 1))  # type: ignore[call-arg]
