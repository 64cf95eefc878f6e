"""Without a GPU a recorded loop is one that is run again, on the memory that it was recorded with."""

import pytest
import torch

from pyrohmm import ops
from pyrohmm.ops import cuda_graphs
from pyrohmm.ops.viterbi import gpu
from pyrohmm.testing import random_chain


@pytest.fixture
def recorded(monkeypatch) -> list:
    """What was recorded, on a device that claims to have graphs and 1024 bytes."""
    recorded = []

    def capture(loop, device):
        outputs = loop()

        def start():
            for output, result in zip(outputs, loop(), strict=True):
                output.copy_(result)

        recorded.append(start)
        return start, outputs

    monkeypatch.setattr(cuda_graphs, "can_record", lambda device: True)
    monkeypatch.setattr(cuda_graphs, "capture", capture)
    monkeypatch.setattr(cuda_graphs, "memory_of", lambda device: 1024 / cuda_graphs.SHARE)
    monkeypatch.setattr(cuda_graphs, "FEWEST", 2)
    monkeypatch.setattr(cuda_graphs, "_known", type(cuda_graphs._known)())
    return recorded


def double_and_shift(x: torch.Tensor, y: torch.Tensor, *, by: int) -> tuple[torch.Tensor, ...]:
    return 2 * x + y, x + by


def call(x: torch.Tensor, y: torch.Tensor, by: int = 1) -> None:
    results = cuda_graphs.run(double_and_shift, x, y, launches=2, by=by)
    for result, expected in zip(results, double_and_shift(x, y, by=by), strict=True):
        assert torch.equal(result, expected)


def test_a_loop_is_recorded_when_it_comes_again(recorded):
    for n in range(5):
        call(torch.full((3,), float(n)), torch.arange(3.0) * n)
        assert len(recorded) == min(n, 1)


def test_each_shape_layout_and_setting_has_its_own(recorded):
    square = torch.arange(9.0).view(3, 3)
    for count, (x, by) in enumerate([(square, 1), (square, 2), (square.mT, 1), (square[:2], 1)], start=1):
        for _ in range(3):
            call(x, x, by)
        assert len(recorded) == count


def test_results_are_not_those_of_the_next_call(recorded):
    x = torch.arange(3.0)
    *_, first, second = [cuda_graphs.run(double_and_shift, x + n, x, launches=2, by=1) for n in range(4)]
    assert torch.equal(first[1], x + 3) and torch.equal(second[1], x + 4)
    first[1].zero_()
    call(x, x)


def test_memory_that_was_expanded_or_has_holes(recorded):
    for n in range(4):
        call((torch.arange(8.0) * n).view(2, 4)[:, :2], torch.full((2, 1), float(n)).expand(2, 2))
    assert len(recorded) == 1
    (known,) = cuda_graphs._known.values()
    assert [x.stride() for x in known.inputs] == [(4, 1), (1, 0)]


def test_what_was_used_least_recently_is_given_up(recorded):
    sizes = [torch.zeros(n) for n in (24, 25, 26)]  # 4 times 96 bytes or more: three times that is too much
    for x in sizes:
        for _ in range(3):
            call(x, x)
    held = [known for known in cuda_graphs._known.values() if isinstance(known, cuda_graphs.Recorded)]
    assert [known.inputs[0].numel() for known in held] == [25, 26]
    # It is recorded again.
    call(sizes[0], sizes[0])
    assert len(recorded) == 4


def test_what_is_too_large_is_never_recorded(recorded, monkeypatch):
    x = torch.zeros(65)  # 4 times 260 bytes
    for _ in range(4):
        call(x, x)
    monkeypatch.setattr(cuda_graphs, "BYTES", 50)
    for _ in range(4):  # 4 times 28 bytes for two launches
        call(x[:7], x[:7])
    assert not recorded


def test_a_few_launches_are_not_recorded(recorded, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "FEWEST", 3)
    for _ in range(4):
        call(torch.zeros(3), torch.zeros(3))
    assert not recorded


def test_only_so_many_loops_are_remembered(recorded, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "LOOPS", 3)
    for n in range(1, 10):
        call(torch.zeros(n), torch.zeros(n))
    assert len(cuda_graphs._known) == 3


def test_a_loop_that_cannot_be_recorded_is_run_as_it_is(recorded, monkeypatch):
    def fails(loop, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "capture", fails)
    x = torch.arange(3.0)
    call(x, x)
    with pytest.warns(UserWarning, match="one by one, since .* operation not permitted"):
        call(x, x)
    for _ in range(3):
        call(x, x)


def test_nothing_is_remembered_on_the_cpu():
    before = len(cuda_graphs._known)
    for _ in range(3):
        call(torch.arange(3.0), torch.arange(3.0))
    assert len(cuda_graphs._known) == before


@pytest.mark.parametrize("transitions", ["shared", "constant", "each"])
def test_operations_over_many_states(transitions, recorded, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "memory_of", lambda device: 2**30)
    for seed in range(3):
        chain = random_chain(70, 4, (2,), transitions=transitions, lengths="ragged", poison=True, seed=seed)
        leaves = chain.requires_grad().logits
        results = []
        for impl in ("gpu", "reference"):
            log_z = ops.log_partition(*leaves, lengths=chain.lengths, impl=impl)
            results.append((log_z, *torch.autograd.grad(log_z.sum(), leaves)))
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    assert len(recorded) == 2  # forward and backward


@pytest.mark.parametrize("transitions", ["shared", "each"])
def test_viterbi_over_many_states(transitions, recorded, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "memory_of", lambda device: 2**30)
    monkeypatch.setattr(gpu, "TO", 64)
    for seed in range(3):
        chain = random_chain(70, 5, (2,), transitions=transitions, lengths="ragged", poison=True, seed=seed)
        ours, exact = (ops.viterbi(*chain.logits, lengths=chain.lengths, impl=impl) for impl in ("gpu", "reference"))
        assert torch.equal(ours.states, exact.states)
        torch.testing.assert_close(ours.log_prob, exact.log_prob)
    assert len(recorded) == 1
