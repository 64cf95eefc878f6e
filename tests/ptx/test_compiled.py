"""What Triton compiles, with `--device sm_80` or `sm_90`: kernels of one thing each, and a chain of each of ours."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from pyrohmm import ops
from pyrohmm.ops.chain import clear_padding, fit_chain
from pyrohmm.ops.sampling import gpu as sampling_gpu
from pyrohmm.ops.sampling import reference as sampling_reference
from pyrohmm.testing import random_chain
from tests.ptx.machine import Machine
from tests.ptx.program import Fault, parse


@pytest.fixture
def is_hopper(pytestconfig) -> bool:
    return pytestconfig.option.emulated >= 90


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N), tl.arange(0, K)
    x, y = tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m * N + n[None, :], tl.dot(x, y, input_precision="tf32x3"))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((16, 16, 32), torch.float32), ((64, 32, 64), torch.float32), ((16, 16, 32), torch.float64)],
    ids=str,
)
def test_products_by_tensor_cores(shape, dtype, is_hopper):
    M, N, K = shape
    a, b, c = normal(M, K, dtype=dtype), normal(K, N, dtype=dtype), torch.full((M, N), torch.nan, dtype=dtype)
    ptx = product[(1,)](a, b, c, M, N, K, num_warps=4).asm["ptx"]
    assert ("wgmma.mma_async" in ptx) == (is_hopper and M == 64)
    assert ("wgmma" in ptx) or ("mma.sync" in ptx)
    exact, most = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    error = (c - exact).abs() / most
    # Each sum of eight products or four is cut off; two of the three TF32 parts make up 22 digits.
    assert error.max() < (K / 8 * 2**-23 + 2**-21 if dtype == torch.float32 else 2**-50)
    if dtype == torch.float32:
        assert error.max() > 2**-26


@triton.jit
def sums(x, total, rows, N: tl.constexpr):
    row, n = tl.arange(0, N)[:, None], tl.arange(0, N)
    tl.store(total + n, tl.sum(tl.load(x + row * N + n[None, :], mask=row < rows, other=0.0), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_warps", [1, 4])
def test_reduction_of_masked_loads(dtype, num_warps):
    x = normal(23, 32, dtype=dtype)  # what is masked is not there
    total = torch.full((32,), torch.nan, dtype=dtype)
    sums[(1,)](x, total, 23, 32, num_warps=num_warps)
    torch.testing.assert_close(total, x.sum(0))


def test_every_barrier_of_a_reduction_is_missed():
    x, total = normal(32, 32), torch.zeros(32)
    compiled = sums[(1,)](x, total, 32, 32, num_warps=4)
    memory = [(name, t.data_ptr(), t.numpy().reshape(-1).view("u1")) for name, t in (("x", x), ("total", total))]
    arguments = [address.to_bytes(8, "little") for _, address, _ in memory]
    before, *after = compiled.asm["ptx"].split("bar.sync")
    assert after
    for missing in range(len(after)):
        parts = [
            before,
            *("bar.sync" + part if k != missing else part.partition(";")[2] for k, part in enumerate(after)),
        ]
        with pytest.raises(Fault, match="race"):
            Machine(parse("".join(parts)), compiled.metadata.shared).launch((1,), arguments, memory)


@triton.jit
def pipelined(x, y, steps, N: tl.constexpr):
    n = tl.arange(0, N)
    carry = tl.zeros((N, N), tl.float32)
    for t in tl.range(steps, num_stages=3):
        matrix = tl.load(x + t * N * N + n[:, None] * N + n[None, :])
        carry = tl.dot(matrix, carry + 1, input_precision="tf32x3")
    tl.store(y + n[:, None] * N + n[None, :], carry)


@pytest.mark.parametrize("steps", [0, 2, 7])  # Triton makes a kernel of its own of one step
def test_loads_in_a_pipeline(steps):
    x, y = normal(steps, 16, 16) / 4, torch.full((16, 16), torch.nan)
    ptx = pipelined[(1,)](x, y, steps, 16, num_warps=2).asm["ptx"]
    assert "cp.async.wait_group" in ptx
    exact = torch.zeros(16, 16, dtype=torch.float64)
    for matrix in x.double():
        exact = matrix @ (exact + 1)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@triton.jit
def collatz(x, steps):
    value, count = tl.load(x + tl.program_id(0)), 0
    while value != 1:
        value = tl.where(value % 2 == 0, value // 2, 3 * value + 1)
        count += 1
    tl.store(steps + tl.program_id(0), count)


def test_loops_that_data_end():
    steps = torch.zeros(4, dtype=torch.int32)
    collatz[(4,)](torch.tensor([1, 6, 7, 27], dtype=torch.int32), steps)
    assert steps.tolist() == [0, 8, 16, 111]


@triton.jit
def shift(x, size, number, N: tl.constexpr):
    n = tl.arange(0, N)
    tl.store(x + n + tl.program_id(0) * number, tl.load(x + n + 1, mask=n < size), mask=n < size)


def test_what_goes_past_the_end():
    with pytest.raises(Fault, match=r"shift, test_compiled.py:\d+.*: out of bounds: .* in x of 1024 bytes"):
        shift[(1,)](torch.zeros(256), 256, 0, 256)


@pytest.mark.filterwarnings("ignore::tests.ptx.memory.Hazard")
def test_what_one_program_writes_and_another_reads():
    with pytest.raises(Fault, match="race"):
        shift[(2,)](torch.arange(512.0), 255, 128, 256)


def test_memory_is_as_it_was_left_by_no_one():
    assert torch.empty(5).isnan().all()


# In scaled space and in log space in a walk, and with a launch a step.
@pytest.mark.parametrize(
    ("num_states", "transitions", "dtype"),
    [(5, "shared", torch.float32), (5, "each", torch.float64), (70, "shared", torch.float32)],
)
def test_filters(num_states, transitions, dtype):
    chain = random_chain(num_states, 4, (3,), transitions=transitions, lengths="ragged", poison=True).to(dtype)
    ours, exact = (ops.filter(*chain.logits, lengths=chain.lengths, impl=impl) for impl in ("gpu", "reference"))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("num_states", "dtype"), [(5, torch.float64), (70, torch.float32)])
def test_viterbi(num_states, dtype):
    chain = random_chain(num_states, 4, (3,), lengths="ragged", poison=True).to(dtype)
    ours, exact = (ops.viterbi(*chain.logits, lengths=chain.lengths, impl=impl) for impl in ("gpu", "reference"))
    assert torch.equal(ours.states, exact.states)


def test_samples():
    chain = random_chain(5, 4, (3,), lengths="ragged", poison=True).to(torch.float32)
    log_probs = ops.filter(*chain.logits, lengths=chain.lengths, impl="reference").log_probs
    fitted = fit_chain(*chain.logits, chain.lengths)
    uniforms = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = sampling_gpu.sample(fitted, log_probs, uniforms)
    assert torch.equal(ours, sampling_reference.sample(clear_padding(fitted), log_probs, uniforms))
