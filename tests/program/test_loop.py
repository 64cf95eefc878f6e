"""A look at Pyro's stack from a loop."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.runtime import _DIM_ALLOCATOR

from pyrohmm.program.loop import conditioned_value, enclosing_plates, reserved_dim, running_loop


def test_enclosing_plates_are_those_that_are_open():
    with pyro.plate("a", 4, dim=-1), pyro.plate("b", 10, subsample_size=2, dim=-3):
        assert enclosing_plates() == {-1: 4, -3: 2}
    assert enclosing_plates() == {}


def test_conditioned_value():
    data = torch.ones(3)
    with poutine.condition(data={"x": data}):
        assert conditioned_value("x") is data
        assert conditioned_value("y") is None


def test_a_reserved_dimension_is_free_again_after_an_error():
    def open_a_plate_there():
        with reserved_dim("time", -2), pyro.plate("a", 4, dim=-2):
            pass

    with pytest.raises(ValueError, match="collide"):
        open_a_plate_there()
    assert _DIM_ALLOCATOR._stack == []


def test_no_running_loop():
    with pytest.raises(RuntimeError, match="in the body"):
        running_loop()
