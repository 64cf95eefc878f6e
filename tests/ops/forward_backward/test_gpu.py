"""The forms of the Triton kernels that the chains of the common tests are too small for, made to take those as well."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from pyrohmm import ops
from pyrohmm.ops import spans
from pyrohmm.ops.forward_backward import gpu
from pyrohmm.testing import Chain, assert_within_budget, random_chain
from pyrohmm.testing.strategies import chains
from tests.ops.cases import AWKWARD, derivatives, examples

FORMS = ["wide", "spans"]


@pytest.fixture
def form(request, monkeypatch) -> str:
    """A launch a step for any number of states, or spans of two steps."""
    if request.param == "wide":
        monkeypatch.setattr(gpu, "WALK", dict.fromkeys(gpu.WALK, 0))
    else:
        monkeypatch.setattr(spans, "steps_of_span", lambda num_steps, *_: 2 if num_steps >= 4 else None)
    return request.param


def assert_agrees_with_the_reference(chain: Chain, impl: str = "gpu") -> None:
    for op in (ops.log_partition, ops.filter, *(partial(ops.smooth, transitions=which) for which in ("sum", "each"))):
        ours, exact = (op(*chain.logits, lengths=chain.lengths, impl=which) for which in (impl, "reference"))
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_awkward_chains(form, name):
    assert_agrees_with_the_reference(AWKWARD[name])


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
@pytest.mark.parametrize("impossible", [0.0, 0.3])
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_gradient_of_longer_chains(form, impossible, transitions):
    # Spans of spans of spans.
    chain = random_chain(
        3, 11, (3,), transitions=transitions, lengths="ragged", poison=True, impossible=impossible, seed=3
    )
    assert_agrees_with_the_reference(chain)
    ours, exact = (derivatives(partial(ops.log_partition, impl=impl), chain, 1) for impl in ("gpu", "reference"))
    for what in exact:
        torch.testing.assert_close(ours[what], exact[what], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_second_derivatives(form):
    chain = random_chain(3, 5, (2,), transitions="constant", lengths="ragged", poison=True)
    ours, exact = (derivatives(partial(ops.log_partition, impl=impl), chain, 2) for impl in ("gpu", "reference"))
    for what in exact:
        torch.testing.assert_close(ours[what], exact[what], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_steps", [4, 8])
@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("form", ["spans"], indirect=True)
def test_spans_that_end_with_time(form, transitions, num_steps):
    assert_agrees_with_the_reference(random_chain(3, num_steps, (2,), transitions=transitions))


# One of each way to count transitions: in registers, by products of what was kept, and with a launch a step.
@pytest.mark.parametrize("num_states", [3, 20, 70])
@pytest.mark.parametrize("shape", [(), (0, 1), (0, 3), (3,)])
def test_no_sequences(shape, num_states):
    K, f64 = num_states, torch.float64
    chain = Chain(torch.zeros(K, dtype=f64), torch.zeros(*shape, K, K, dtype=f64), torch.zeros(0, 4, K, dtype=f64))
    assert_agrees_with_the_reference(chain)
    leaves = chain.requires_grad().logits
    grads = torch.autograd.grad(ops.log_partition(*leaves, impl="gpu").sum(), leaves, create_graph=True)
    for grad, leaf in zip(grads, leaves, strict=True):
        assert grad.shape == leaf.shape and not grad.any()
    torch.autograd.grad(sum(grad.sum() for grad in grads), leaves)


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("form", ["spans"], indirect=True)
def test_no_sequences_in_spans(form, transitions):
    chain = random_chain(2, 5, (0,), transitions=transitions)
    assert_agrees_with_the_reference(chain)
    derivatives(partial(ops.log_partition, impl="gpu"), chain, 2)


@pytest.mark.parametrize("num_states", [3, 20, 70])
def test_no_transitions_that_were_expanded(num_states):
    transition = torch.zeros(1, 0, num_states, num_states, requires_grad=True)
    observation = torch.zeros(5, 1, num_states)
    log_z = ops.log_partition(observation[0, 0], transition.expand(5, -1, -1, -1), observation, impl="gpu")
    assert torch.autograd.grad(log_z.sum(), transition)[0].shape == transition.shape


@settings(examples, max_examples=15)
@given(chain=chains())
def test_random_chains(chain):
    assert_agrees_with_the_reference(chain)


# Sides of tiles are powers of two, at least 2 or 16; a block has up to 16 sequences; from 65 states on, tiles.
@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize(("num_states", "sequences"), [(2, 37), (5, 19), (17, 3), (33, 2), (64, 2), (65, 3), (130, 2)])
def test_numbers_of_states_and_sequences(num_states, sequences, transitions):
    chain = random_chain(num_states, 4, (sequences,), transitions=transitions, lengths="ragged", poison=True, seed=7)
    assert_agrees_with_the_reference(chain)
    # In log space as well.
    masked = chain.transition_logits.clone()
    masked[..., 0, 0] = -torch.inf
    assert_agrees_with_the_reference(chain._replace(transition_logits=masked))


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_float32_errs_no_more_than_twice_what_the_reference_does(form, transitions):
    chain = random_chain(20, 9, (3,), transitions=transitions, scale=3.0).to(torch.float32)
    assert_errs_no_more_than_twice_what_the_reference_does(ops.smooth, chain)


@pytest.mark.parametrize("transitions", ["shared", "each"])
@pytest.mark.parametrize("form", ["spans"], indirect=True)
def test_a_filter_in_float32_errs_no_more_than_twice_what_the_reference_does(form, transitions):
    chain = random_chain(5, 12, (3,), transitions=transitions, scale=3.0).to(torch.float32)
    assert_errs_no_more_than_twice_what_the_reference_does(ops.filter, chain)


def assert_errs_no_more_than_twice_what_the_reference_does(op, chain: Chain) -> None:
    ours, reference = (op(*chain.logits, impl=impl) for impl in ("gpu", "reference"))
    exact = op(*chain.to(torch.float64).logits, impl="reference")
    for name in exact._fields:
        assert_within_budget(getattr(ours, name), getattr(reference, name), getattr(exact, name))


@pytest.fixture
def tensor_cores(request, monkeypatch) -> None:
    """Products that are cut off, as those of a GPU are, and not rounded."""
    if request.config.getoption("--device") != "cpu":
        return

    def cut_off(builder, a, b, d, input_precision, max_num_imprecise_acc):
        exact = a.data.astype(np.float64) @ b.data.astype(np.float64) + d.data
        rounded = exact.astype(d.data.dtype)
        towards_zero = np.where(np.abs(rounded) > np.abs(exact), np.nextafter(rounded, 0, dtype=rounded.dtype), rounded)
        return TensorHandle(towards_zero, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", cut_off)


@pytest.mark.parametrize(("num_states", "num_steps"), [(20, 100), (40, 40), (70, 40)])
def test_what_tensor_cores_cut_off_does_not_add_up_over_time(num_states, num_steps, tensor_cores):
    chain = random_chain(num_states, num_steps, (16,), seed=2)
    level = ops.log_partition(*chain.logits).mean() / num_steps
    chain = chain._replace(observation_logits=chain.observation_logits - level).to(torch.float32)
    exact = ops.log_partition(*chain.to(torch.float64).logits)
    log_z = ops.log_partition(*chain.logits, impl="gpu")
    evidence = ops.filter(*chain.logits, impl="gpu").log_evidence
    for ours in (log_z, evidence.double().sum(-1)):
        # Rounding goes to either side, in each step of each sequence.
        assert (ours - exact).mean().abs() / num_steps < 2e-8


def test_shapes_that_come_again(request):
    # On a GPU the third time, and those after it, replay what the second one recorded.
    num_steps = 3 if request.config.getoption("--device") == "cpu" else 40
    for seed in range(4):
        chain = random_chain(70, num_steps, (3,), lengths="ragged", poison=True, seed=seed)
        ours, exact = (derivatives(partial(ops.log_partition, impl=impl), chain, 1) for impl in ("gpu", "reference"))
        for what in exact:
            torch.testing.assert_close(ours[what], exact[what], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_states", [5, 70])
def test_the_same_bits_every_time(num_states):
    chain = random_chain(num_states, 6, (20,), lengths="ragged").to(torch.float32)
    first, second = (derivatives(partial(ops.log_partition, impl="gpu"), chain, 1) for _ in range(2))
    assert all(torch.equal(first[what], second[what]) for what in first)


@pytest.mark.parametrize("form", ["spans"], indirect=True)
def test_the_same_bits_every_time_in_spans(form):
    chain = random_chain(3, 9, (5,), lengths="ragged").to(torch.float32)
    for op in (ops.filter, ops.smooth):
        first, second = (op(*chain.logits, lengths=chain.lengths, impl="gpu") for _ in range(2))
        assert all(map(torch.equal, first, second))


def test_time_is_cut_for_few_long_sequences_only(monkeypatch):
    def how(num_states: int, num_steps: int, *batch: int) -> str:
        logits = [torch.zeros(shape) for shape in ((num_states,), (num_states,) * 2, (*batch, num_steps, num_states))]
        return ops.explain(*logits, impl="gpu").why

    assert "spans of 64 steps" in how(2, 5000)
    assert "spans of 256 steps" in how(2, 70_000, 2)
    assert "walks through time" in how(2, 1000)
    assert "walks through time" in how(2, 5000, 2000)
    assert "a launch a step" in how(65, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("transitions", ["shared", "each"])
def test_a_long_sequence_is_cut_of_its_own_accord(transitions):
    lengths = torch.tensor([2111, 1000])
    chain = random_chain(3, 2111, (2,), transitions=transitions, lengths=lengths, scale=3.0, poison=True)
    ours, exact = (ops.filter(*chain.logits, lengths=chain.lengths, impl=which) for which in ("gpu", "reference"))
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)
