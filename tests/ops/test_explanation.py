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
    assert inside.form == "scaled" and f"within the {-bound:.1f}" in inside.why
    assert beyond.form == "log" and f"beyond the {-bound:.1f}" in beyond.why
    assert f"{-bound * 1.001:.4g} nats" in beyond.why


@pytest.mark.parametrize("ratio", [-math.inf, math.nan, math.inf])
def test_what_is_no_number_is_in_log_space(ratio):
    assert ops.explain(*with_ratio(ratio, torch.float64).logits).form == "log"


def test_transitions_that_change():
    chain = random_chain(3, 4, (2,), transitions="each")
    assert ops.explain(*chain.logits)[:2] == ("cpu", "scaled")
    chain.transition_logits[1, 2, 0, 1] = -math.inf
    assert ops.explain(*chain.logits)[:2] == ("cpu", "log")
    # A step past the length does not count.
    assert ops.explain(*chain.logits, lengths=torch.tensor([4, 3]))[:2] == ("cpu", "scaled")


def test_sequences_that_pass_are_scaled_all_the_same():
    chain = random_chain(3, 4, (2,), transitions="constant")
    chain.transition_logits[1, 0, 0, 1] = -math.inf
    found = ops.explain(*chain.logits)
    assert found.form == "log" and "scaled all the same" in found.why


def test_kernels_for_the_gpu():
    assert ops.explain(*PLAIN.logits, impl="gpu")[:2] == ("gpu", "scaled")
    assert ops.explain(*random_chain(3, 4, transitions="each").logits, impl="gpu")[:2] == ("gpu", "log")
    chain = random_chain(3, 4, (2,), transitions="constant")
    chain.transition_logits[1, 0, 0, 1] = -math.inf
    found = ops.explain(*chain.logits, impl="gpu")
    assert found.form == "log" and "scaled all the same" in found.why


def test_kernels_for_the_gpu_need_one(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(NotImplementedError, match=r"impl.*'gpu'.*on cpu"):
        ops.explain(*PLAIN.logits, impl="gpu")


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
    with pytest.raises(ValueError, match="transition_logits"):
        ops.explain(PLAIN.initial_logits, torch.zeros(2, 2), PLAIN.observation_logits)
    with pytest.raises(ValueError, match="lengths"):
        ops.explain(*PLAIN.logits, lengths=torch.tensor([5, 1]))


@pytest.mark.parametrize("name", AWKWARD)
def test_it_is_what_happens(name):
    chain = AWKWARD[name]
    found = ops.explain(*chain.logits, lengths=chain.lengths)
    fitted = fit_chain(*chain.logits, chain.lengths)
    _, messages = cpu.partition(fitted, keep=False)
    # A sequence of one step reads no transition: any form will do.
    scaled = messages.scaled[fitted.lengths.flatten().numpy() > 1]
    assert found.impl == "cpu"
    assert found.form == ("scaled" if scaled.all() else "log")
