"""What all ops have in common: the choice of an implementation."""

import pytest
import torch

from pyrohmm import ops
from pyrohmm.ops import chain
from pyrohmm.testing import random_chain
from tests.ops.cases import OPS

CHAIN = random_chain(3, 5, (4,), transitions="each", impossible=0.1, lengths="ragged")


def flat(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", OPS)
def test_auto_is_one_of_the_implementations(name, impl):
    if (name, impl) == ("k_best", "gpu"):
        pytest.skip("has no kernel for it")
    if name == "sample":
        results = [
            OPS[name](*CHAIN.logits, lengths=CHAIN.lengths, impl=which, generator=torch.Generator().manual_seed(0))
            for which in (impl, "auto")
        ]
    else:
        results = [OPS[name](*CHAIN.logits, lengths=CHAIN.lengths, impl=which) for which in (impl, "auto")]
    for ours, auto in zip(*map(flat, results), strict=True):
        torch.testing.assert_close(ours, auto, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPS)
def test_auto_is_the_default(name):
    results = []
    for arguments in ({}, {"impl": "auto"}):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            results.append(OPS[name](*CHAIN.logits, lengths=CHAIN.lengths, **arguments))
    for default, auto in zip(*map(flat, results), strict=True):
        assert torch.equal(default, auto)


@pytest.mark.parametrize("name", OPS)
def test_unknown_implementation(name):
    with pytest.raises(ValueError, match=r"impl.*fastest"):
        OPS[name](*CHAIN.logits, impl="fastest")


@pytest.mark.parametrize("name", OPS)
def test_an_explicit_request_never_falls_back(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(NotImplementedError, match="gpu"):
        OPS[name](*CHAIN.logits, impl="gpu")


def test_a_triton_that_is_too_old_is_not_taken(monkeypatch):
    monkeypatch.setattr(chain, "_version_of_triton", lambda: (3, 4))
    with pytest.raises(NotImplementedError, match="triton is older than 3.5"):
        ops.log_partition(*CHAIN.logits, impl="gpu")


@pytest.mark.parametrize("name", OPS)
def test_inputs_are_left_alone(name, impl):
    if (name, impl) == ("k_best", "gpu"):
        pytest.skip("has no kernel for it")
    before = [x.clone() for x in CHAIN if x is not None]
    OPS[name](*CHAIN.logits, lengths=CHAIN.lengths, impl=impl)
    assert all(torch.equal(x, y) for x, y in zip(before, CHAIN, strict=True))


def test_result_fields():
    assert ops.FilterResult._fields == ("log_probs", "log_evidence")
    assert ops.SmoothResult._fields == ("log_partition", "state_marginals", "transition_marginals")
    assert ops.ViterbiResult._fields == ("states", "log_prob")
    assert ops.KBestResult._fields == ("states", "log_prob")
