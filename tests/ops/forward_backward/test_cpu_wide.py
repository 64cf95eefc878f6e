"""Threads that divide the columns of a matrix find what threads that divide the sequences do."""

import pytest
import torch

from pyrohmm import ops
from pyrohmm.ops import threads
from pyrohmm.ops.forward_backward import cpu
from pyrohmm.testing import random_chain
from tests.ops.cases import AWKWARD, derivatives


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """However few states there are, and however little there is to do."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "WIDE", 1)
    monkeypatch.setattr(threads, "SMALLEST_SHARE", 1)
    yield
    torch.set_num_threads(before)


def cpu_log_partition(*logits, lengths):
    return ops.log_partition(*logits, lengths=lengths, impl="cpu").nan_to_num(neginf=0.0)


def expected_log_partition(*logits, lengths):
    return ops.log_partition(*logits, lengths=lengths, impl="reference").nan_to_num(neginf=0.0)


MORE = {
    "several blocks": random_chain(70, 6, (11,), lengths="ragged", poison=True),
    "a matrix each": random_chain(40, 5, (3, 2), transitions="constant", lengths="ragged", poison=True),
    "two groups": random_chain(33, 5, (2, 10), lengths="ragged", poison=True),
    "a full panel": random_chain(32, 3, (2,)),
    "more threads than panels": random_chain(17, 7, (9,)),
}


@pytest.mark.parametrize("name", [*AWKWARD, *MORE])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_value_and_gradient(name, num_threads):
    chain = {**AWKWARD, **MORE}[name]
    torch.set_num_threads(num_threads)
    ours = derivatives(cpu_log_partition, chain, 1)
    for what, expected in derivatives(expected_log_partition, chain, 1).items():
        torch.testing.assert_close(ours[what], expected, rtol=1e-10, atol=1e-10, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("transitions", ["sum", "each"])
@pytest.mark.parametrize("name", ["ragged_shared", "impossible_sequences", *MORE])
def test_smooth(name, transitions):
    chain = {**AWKWARD, **MORE}[name]
    torch.set_num_threads(2)
    ours, expected = (
        ops.smooth(*chain.logits, lengths=chain.lengths, transitions=transitions, impl=impl)
        for impl in ("cpu", "reference")
    )
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MORE)
def test_the_number_of_threads_does_not_show(name, dtype):
    chain, found = MORE[name].to(dtype), []
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        result = ops.smooth(*chain.logits, lengths=chain.lengths, impl="cpu")
        found.append((result.log_partition, result.state_marginals))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_float32_is_as_exact_as_the_other_form(monkeypatch):
    chain = random_chain(64, 300, (3,), dtype=torch.float32)
    exact = ops.smooth(*(logits.double() for logits in chain.logits), impl="reference")
    wide = ops.smooth(*chain.logits, impl="cpu")
    monkeypatch.setattr(cpu, "WIDE", 1000)
    other = ops.smooth(*chain.logits, impl="cpu")
    for found, rival, true in zip(wide, other, exact, strict=True):
        error, allowed = ((x.double() - true).abs().max() for x in (found, rival))
        assert error <= 3 * allowed + 1e-7


def test_of_a_thousand_states_on_its_own_accord(monkeypatch):
    monkeypatch.undo()
    assert cpu.WIDE == 1024
    chain = random_chain(1025, 4, (3,), lengths=torch.tensor([4, 1, 3]))
    ours = derivatives(cpu_log_partition, chain, 1)
    for what, expected in derivatives(expected_log_partition, chain, 1).items():
        torch.testing.assert_close(ours[what], expected, rtol=1e-10, atol=1e-10, msg=lambda m, w=what: f"{w}: {m}")
