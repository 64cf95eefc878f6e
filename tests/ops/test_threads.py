"""Kernels on several threads: who gets which share, and that nobody can tell from the results.

What could hang or bring the process down runs in a process of its own, with a time limit.
"""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from pyrohmm import ops
from pyrohmm.ops import threads
from pyrohmm.testing import Chain, random_chain
from tests.ops.cases import OPS, derivatives, examples

NUM_THREADS = [1, 2, 3, 7]


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_shares(monkeypatch):
    """However little there is to do, every thread gets some."""
    monkeypatch.setattr(threads, "SMALLEST_SHARE", 1)


def in_new_process(script: str) -> str:
    """What a script prints; it fails if the script does, or does not end."""
    preamble = """
        import torch
        from pyrohmm import ops
        from pyrohmm.testing import random_chain
        torch.set_num_threads(2)
        chain = random_chain(4, 500, (64,))

        def value():
            return ops.log_partition(*chain.logits, impl="cpu")
    """
    script = textwrap.dedent(preamble) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Who gets which share.


@pytest.mark.parametrize("number", NUM_THREADS)
def test_a_share_for_each_of_torchs_threads(number):
    torch.set_num_threads(number)
    bounds = threads.split(np.full(420, 1e6))
    assert bounds == [420 * n // number for n in range(number + 1)]


def test_little_work_is_not_shared():
    torch.set_num_threads(7)
    assert threads.split(np.ones(1000)) == [0, 1000]
    assert len(threads.split(np.full(1000, 3.5 * threads.SMALLEST_SHARE / 1000))) == 1 + 3
    assert threads.split(np.full(1, 1e12)) == [0, 1]
    assert threads.split(np.zeros(5)) == [0, 5]
    assert threads.split(np.ones(0)) == [0, 0]


@examples
@given(
    work=st.lists(st.sampled_from([0.0, 1e3, 1e6, 1e9]) | st.floats(0, 1e7), max_size=200),
    number=st.integers(1, 7),
    align=st.sampled_from([1, 4, 8]),
)
def test_shares_follow_one_another(work, number, align):
    torch.set_num_threads(number)
    bounds = threads.split(np.array(work), align)
    assert (bounds[0], bounds[-1]) == (0, len(work))
    assert bounds == sorted(bounds)
    assert len(bounds) - 1 <= max(1, min(number, len(work)))


@pytest.mark.parametrize("number", NUM_THREADS)
@pytest.mark.parametrize("align", [1, 8])
def test_shares_are_even_and_aligned(number, align):
    torch.set_num_threads(number)
    work = np.sort(np.random.default_rng(0).integers(1, 1000, 500) * 1e4)[::-1]
    bounds = threads.split(work, align)
    assert len(bounds) == number + 1
    assert all(bound % align == 0 for bound in bounds[1:-1])
    shares = np.add.reduceat(work, bounds[:-1])
    assert shares.max() - work.sum() / number <= (align + 1) * work.max()


def test_bounds_lie_within_when_the_work_is_at_the_end():
    torch.set_num_threads(2)
    work = np.ones(37)
    work[-1] = 1e9
    bounds = threads.split(work, align=8)
    assert bounds == sorted(bounds) and bounds[-1] == 37


# Running them: on torch's threads, and on a pool where those are not to be had.


@pytest.fixture(params=[True, False], ids=["torch's", "pool"])
def pool_or_not(request, monkeypatch) -> None:
    if request.param and not threads.OPENMP:
        pytest.skip("torch brings an OpenMP library of another kind")
    monkeypatch.setattr(threads, "OPENMP", request.param)


@pytest.fixture
def pool(monkeypatch) -> None:
    monkeypatch.setattr(threads, "OPENMP", False)
    monkeypatch.setattr(threads, "_pool", None)


@njit(nogil=True)
def mark(number, first, last, out, fails):
    for n in range(first, last):
        out[n] += number + 1
    if number == fails:
        raise ValueError


def marking_kernel():
    """Compiled anew, for the way to run that the test is about."""

    @njit(nogil=True)
    def mark_all(shares, out, fails):
        threads.in_parallel(mark, shares, (out, fails))

    return mark_all


@pytest.mark.usefixtures("pool_or_not")
def test_each_share_is_done_once():
    kernel = marking_kernel()
    for bounds in ([0, 9], [0, 4, 9], [0, 1, 1, 9], [0, 2, 3, 4, 5, 7, 9], [0, 0]):
        out = np.zeros(9, np.int64)
        threads.run(kernel, bounds, out, -1)
        expected = np.zeros(9, np.int64)
        expected[: bounds[-1]] = np.repeat(np.arange(1, len(bounds)), np.diff(bounds))
        np.testing.assert_array_equal(out, expected)


@pytest.mark.usefixtures("pool_or_not")
@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_failure_surfaces_when_all_are_done(fails):
    kernel, out = marking_kernel(), np.zeros(6, np.int64)
    with pytest.raises(MemoryError):
        threads.run(kernel, [0, 2, 4, 6], out, fails)
    assert out.tolist() == [1, 1, 2, 2, 3, 3]
    threads.run(kernel, [0, 2, 4, 6], out, -1)
    assert out.tolist() == [2, 2, 4, 4, 6, 6]


@pytest.mark.usefixtures("pool")
def test_shares_run_side_by_side():
    barrier = threading.Barrier(3, timeout=10)
    threads.run(lambda shares: barrier.wait(), [0, 1, 2, 3])
    assert not barrier.broken


@pytest.mark.usefixtures("pool")
def test_an_interrupt_waits_for_the_others():
    done = []

    def kernel(shares):
        if shares[0, 0] == 0:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        done.append(shares[0, 0])

    with pytest.raises(KeyboardInterrupt):
        threads.run(kernel, [0, 1, 2, 3])
    assert sorted(done) == [1, 2]


@pytest.mark.usefixtures("pool")
def test_the_pool_is_no_larger_than_needed():
    before = set(threading.enumerate())
    for _ in range(3):
        threads.run(lambda shares: time.sleep(0.01), [0, 1, 2, 3])
        threads.run(lambda shares: None, [0, 1, 2])
    ours = set(threading.enumerate()) - before
    assert len(ours) <= 2 and all(thread.name.startswith("pyrohmm") for thread in ours)


# The results.

CHAINS = {
    "shared": random_chain(5, 9, (37,), lengths="ragged", poison=True),
    "wide": random_chain(20, 9, (2, 17), lengths="ragged", poison=True),
    "one each": random_chain(5, 9, (37,), transitions="constant", lengths="ragged", poison=True),
    "near-deterministic": random_chain(5, 9, (37,), scale=300.0, lengths="ragged", poison=True),
    "masked": random_chain(5, 9, (37,), impossible=0.2, lengths="ragged", poison=True),
    "changing": random_chain(5, 9, (37,), transitions="each", lengths="ragged", poison=True),
}


def outcome(name: str, chain: Chain) -> tuple[torch.Tensor, ...]:
    seeded = {"generator": torch.Generator().manual_seed(0)} if name == "sample" else {}
    found = OPS[name](*chain.logits, lengths=chain.lengths, impl="cpu", **seeded)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["log_partition", "filter", "viterbi", "k_best", "sample"])
@pytest.mark.usefixtures("small_shares")
def test_the_number_of_threads_does_not_show(name, dtype, kind):
    chain = CHAINS[kind].to(dtype)
    torch.set_num_threads(1)
    alone = outcome(name, chain)
    for number in NUM_THREADS[1:]:
        torch.set_num_threads(number)
        for ours, expected in zip(outcome(name, chain), alone, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.usefixtures("small_shares")
def test_derivatives_are_the_same_but_for_the_order_of_sums(kind):
    def op(*logits, lengths):
        return ops.log_partition(*logits, lengths=lengths, impl="cpu").nan_to_num(neginf=0.0)

    torch.set_num_threads(1)
    alone = derivatives(op, CHAINS[kind], 2)
    for number in NUM_THREADS[1:]:
        torch.set_num_threads(number)
        for name, found in derivatives(op, CHAINS[kind], 2).items():
            torch.testing.assert_close(found, alone[name], rtol=1e-12, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("small_shares")
def test_many_callers_at_once():
    torch.set_num_threads(3)
    jobs = [(name, kind) for name in OPS for kind in CHAINS]
    expected = {job: outcome(job[0], CHAINS[job[1]]) for job in jobs}
    start = threading.Barrier(6, timeout=30)

    def call(turn: int) -> list:
        torch.set_num_threads(3)  # torch keeps this number for each thread
        start.wait()
        return [(job, outcome(job[0], CHAINS[job[1]])) for job in jobs[turn:] + jobs[:turn]]

    with ThreadPoolExecutor(6) as callers:
        for found in callers.map(call, range(0, len(jobs), len(jobs) // 6 + 1)):
            for job, result in found:
                for ours, theirs in zip(result, expected[job], strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# Processes.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads where Linux lists them")
def test_no_threads_beyond_torchs():
    script = """
        import os
        count = lambda: len(os.listdir("/proc/self/task"))
        (torch.zeros(2_000_000) + 1).sum()
        ops.viterbi(*random_chain(2, 3).logits, impl="cpu")  # imports, and what they start
        before = count()
        for _ in range(3):
            value()
            ops.viterbi(*chain.logits, impl="cpu")
        assert count() <= before, (before, count())
    """
    in_new_process(script)


# A child may have torch's own threads no more: the parent makes all tensors that torch would work on in parallel.
FORK = """
    import os, signal, sys

    def in_child():
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # the first call may have to compile
            os._exit(0 if torch.allclose(value(), expected, rtol=1e-12) else 1)
        assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(threads.os, "fork"), reason="needs fork")
class TestFork:
    def test_after_the_parent_used_its_threads(self):
        script = """
            expected = value()
            in_child()
            assert torch.equal(value(), expected)
            in_child()
        """
        in_new_process(textwrap.dedent(FORK) + textwrap.dedent(script))

    def test_before_the_parents_first_call(self):
        script = """
            expected = ops.log_partition(*chain.logits, impl="reference")
            (torch.zeros(2_000_000) + 1).sum()  # torch's threads exist, and are gone in the child
            in_child()
        """
        in_new_process(textwrap.dedent(FORK) + textwrap.dedent(script))

    def test_a_child_of_a_child(self):
        script = """
            expected = value()
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                assert torch.equal(value(), expected)
                in_child()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        """
        in_new_process(textwrap.dedent(FORK) + textwrap.dedent(script))

    def test_a_pool_of_processes(self):
        script = """
            import multiprocessing
            expected = value()
            with multiprocessing.get_context("fork").Pool(2) as pool:
                found = [pool.apply_async(value) for _ in range(4)]
                assert all(torch.equal(each.get(timeout=20), expected) for each in found)
        """
        in_new_process(script)

    def test_workers_of_a_data_loader(self):
        script = """
            class Values(torch.utils.data.Dataset):
                def __len__(self):
                    return 4

                def __getitem__(self, index):
                    return value()

            expected = value()
            for number in (1, 2):
                loader = torch.utils.data.DataLoader(
                    Values(),
                    num_workers=2,
                    multiprocessing_context="fork",
                    worker_init_fn=lambda _: torch.set_num_threads(number),
                    timeout=20,
                )
                for found in loader:
                    assert torch.equal(found[0], expected)
        """
        in_new_process(script)


def test_a_thread_that_outlives_the_main_one():
    script = """
        import threading, time
        expected = value()

        def late():
            threading.main_thread().join()
            torch.set_num_threads(2)
            print(torch.equal(value(), expected))

        threading.Thread(target=late).start()
    """
    assert in_new_process(script) == "True\n"


def test_an_interrupt_leaves_everything_usable():
    script = """
        import signal, threading, time
        expected = value()
        interrupted = 0
        for turn in range(20):
            timer = threading.Timer(0.002 * turn, signal.raise_signal, [signal.SIGINT])
            try:
                timer.start()
                while timer.is_alive():
                    value()
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
        assert torch.equal(value(), expected)
        print(interrupted)
    """
    assert int(in_new_process(script)) > 0
