"""What `explain` says, and that it is what happens."""

import math
import warnings

import pytest
import torch

from pyrohmm import ops
from pyrohmm.ops.certificate import smallest_log_ratio
from pyrohmm.ops.chain import fit_chain
from pyrohmm.ops.forward_backward import cpu
from pyrohmm.testing import Chain, random_chain
from tests.ops.cases import AWKWARD

PLAIN = random_chain(3, 4, (2,), dtype=torch.float32)


def with_ratio(ratio: float, dtype: torch.dtype, num_states: int = 3) -> Chain:
    chain = random_chain(num_states, 4, dtype=dtype)
    transition_logits = torch.zeros_like(chain.transition_logits)
    transition_logits[0, -1] = ratio
    return chain._replace(transition_logits=transition_logits)


def test_a_plain_chain():
    found = ops.explain(*PLAIN.logits)
    assert found == ops.explain(*PLAIN.logits, impl="auto")
    assert (found.impl, found.form) == ("cpu", "scaled")
    assert "numba is installed" in found.why and "3 states in float32" in found.why


def test_as_a_line():
    found = ops.Explanation("cpu", "log", "asked for; it is so")
    assert found._fields == ("impl", "form", "why")
    assert str(found) == "cpu, log space: asked for; it is so"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_states", [2, 16, 100])
def test_the_bound_decides_on_the_form(dtype, num_states):
    bound = smallest_log_ratio(dtype, num_states)
    inside = ops.explain(*with_ratio(bound * 0.999, dtype, num_states).logits)
    beyond = ops.explain(*with_ratio(bound * 1.001, dtype, num_states).logits)
    assert inside.form == "scaled" and f">= {bound:.1f}" in inside.why
    assert beyond.form == "log" and f"< {bound:.1f}" in beyond.why
    assert f"{bound * 1.001:.4g} nats" in beyond.why


@pytest.mark.parametrize("ratio", [-math.inf, math.nan, math.inf])
def test_what_is_no_number_is_in_log_space(ratio):
    assert ops.explain(*with_ratio(ratio, torch.float64).logits).form == "log"


def test_transitions_that_change():
    found = ops.explain(*random_chain(3, 4, transitions="each").logits)
    assert (found.impl, found.form) == ("cpu", "log")
    assert "changes from step to step" in found.why


def test_asked_for():
    assert ops.explain(*PLAIN.logits, impl="reference") == ("reference", "log", "asked for")
    assert ops.explain(*PLAIN.logits, impl="cpu").why.startswith("asked for; ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(dtype):
    chain = PLAIN.to(dtype)
    found = ops.explain(*chain.logits)
    assert (found.impl, found.form) == ("reference", "log")
    assert str(dtype) in found.why
    assert torch.equal(ops.log_partition(*chain.logits), ops.log_partition(*chain.logits, impl="reference"))
    with pytest.raises(NotImplementedError, match=f"impl.*'cpu'.*{dtype}"):
        ops.explain(*chain.logits, impl="cpu")


def test_another_device():
    logits = [x.to("meta") for x in PLAIN.logits]
    found = ops.explain(*logits)
    assert (found.impl, found.form) == ("reference", "log")
    assert "on meta" in found.why
    with pytest.raises(NotImplementedError, match=r"impl.*'cpu'.*on meta"):
        ops.explain(*logits, impl="cpu")


def test_while_torch_traces():
    seen = []

    def traced(*logits):
        seen.append(ops.explain(*logits))
        with pytest.raises(NotImplementedError, match=r"impl.*'cpu'.*torch.jit"):
            ops.explain(*logits, impl="cpu")
        return logits[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own tracer deprecated
        torch.jit.trace(traced, PLAIN.logits, check_trace=False)
    assert (seen[0].impl, seen[0].form) == ("reference", "log")
    assert "torch.jit" in seen[0].why


def test_errors():
    with pytest.raises(ValueError, match=r"impl.*fastest"):
        ops.explain(*PLAIN.logits, impl="fastest")
    with pytest.raises(NotImplementedError, match=r"impl.*gpu"):
        ops.explain(*PLAIN.logits, impl="gpu")
    with pytest.raises(ValueError, match="transition_logits"):
        ops.explain(PLAIN.initial_logits, torch.zeros(2, 2), PLAIN.observation_logits)
    with pytest.raises(ValueError, match="lengths"):
        ops.explain(*PLAIN.logits, lengths=torch.tensor([5, 1]))


@pytest.mark.parametrize("name", AWKWARD)
def test_it_is_what_happens(name):
    chain = AWKWARD[name]
    found = ops.explain(*chain.logits, lengths=chain.lengths)
    _, messages = cpu.partition(fit_chain(*chain.logits, chain.lengths), keep=False)
    assert found.impl == "cpu"
    assert found.form == ("scaled" if messages.scaled else "log")
