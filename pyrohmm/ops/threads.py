"""Threads for compiled kernels: shares of the sequences on the threads that torch itself uses.

torch's threads wait for the next piece of work in a busy loop. Threads of our own would have to share the cores with
them, so kernels run on torch's: they enter a parallel region of the OpenMP library that torch has loaded. Where torch
brings another library, or in a process forked off another, whose OpenMP threads are gone, an ordinary pool of threads
does it.
"""

import ctypes
import hashlib
import os
import pkgutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from pyrohmm.ops.chain import PROCESS
from pyrohmm.ops.simd import intrinsic

# A thread gets a share of its own only for this many operations, as long as it takes to wake it.
SMALLEST_SHARE = 100_000

# The part of GNU OpenMP's interface that compilers use; LLVM's library has it too.
OPENMP = all(
    hasattr(ctypes.CDLL(None), name)
    for name in ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
)

_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def split_evenly(count: int, work: float, align: int = 1) -> list[int]:
    """Bounds of ranges of about the same size, one a thread that torch would use, fewer for little work.

    Args:
        count: how many items there are.
        work: arithmetic operations of one item, roughly.
        align: inner bounds are multiples of this where there are several times as many items.

    Example:
        >>> split_evenly(10, work=1.0)
        [0, 10]
    """
    shares = min(torch.get_num_threads(), count, int(count * work / SMALLEST_SHARE))
    if shares < 2:
        return [0, count]
    align = align if count >= 2 * shares * align else 1
    return [round(count * share / shares / align) * align for share in range(shares)] + [count]


def split(work: np.ndarray, align: int = 1) -> list[int]:
    """As `split_evenly`, of items that take differently long.

    Args:
        work: (n,), arithmetic operations of each item, roughly.
        align: as above.

    Example:
        >>> split(np.ones(10))
        [0, 10]
    """
    shares = min(torch.get_num_threads(), len(work), int(work.sum() / SMALLEST_SHARE))
    if shares < 2:
        return [0, len(work)]
    so_far = work.cumsum()
    align = align if len(work) >= 2 * shares * align else 1
    inner = np.searchsorted(so_far, so_far[-1] * np.arange(1, shares) / shares) + 1
    inner = np.minimum(np.rint(inner / align) * align, len(work))
    return [0, *inner.astype(int).tolist(), len(work)]


def run(kernel: Callable[..., Any], bounds: list[int], *arguments: Any, together: bool = False) -> None:
    """Call `kernel(shares, *arguments)`, each share (number, first, last) being one range, side by side.

    Any thread of any process may call.

    Args:
        kernel: a function compiled with `nogil=True` that works off its shares by `in_parallel`.
        bounds: from `split`.
        arguments: passed on.
        together: whether the kernel must have all shares in one call, being more than a loop over them.

    Example:
        >>> run(lambda shares: print(shares.tolist()), [0, 10])
        [[0, 0, 10]]
    """
    parallel = OPENMP and os.getpid() == PROCESS
    if together and not parallel:
        bounds = [bounds[0], bounds[-1]]
    shares = _table(*bounds)
    if parallel or len(shares) == 1:
        kernel(shares, *arguments)
        return
    others, here = [], shares[:1]
    try:
        others = [_workers(len(shares) - 1).submit(kernel, share, *arguments) for share in shares[1:, None]]
    except RuntimeError:  # the interpreter is shutting down and starts no more threads
        here = shares
    try:
        kernel(here, *arguments)
    finally:
        wait(others)
    for other in others:
        other.result()


@lru_cache(maxsize=64)
def _table(*bounds: int) -> np.ndarray:
    """(number, first, last) of each share."""
    return np.array([(share, *pair) for share, pair in enumerate(pairwise(bounds))])


def _workers(number: int) -> ThreadPoolExecutor:
    """The pool, made anew where it is too small or belongs to the process that this one was forked from."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < number:
        _pool = (os.getpid(), number, ThreadPoolExecutor(number, thread_name_prefix="pyrohmm"))
    return _pool[2]


def _openmp_number(builder, name: str, intp):
    """What a function of the OpenMP library without arguments returns."""
    function_type = ir.FunctionType(ir.IntType(32), [])
    return builder.sext(builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), []), intp)


@intrinsic
def in_parallel(typingctx, function, shares, arguments):
    """Inside a kernel: `function(number, first, last, *arguments)` for each of the shares (n, 3), side by side."""
    called = function.get_call_type(typingctx, (types.intp,) * 3 + tuple(arguments), {})

    def codegen(context, builder, sig, args):
        _, shares, arguments = args
        compiled = function.dispatcher.overloads[called.args]
        context.add_linking_libs([compiled.library])
        intp, pointer = context.get_value_type(types.intp), ir.IntType(8).as_pointer()
        array = context.make_array(sig.args[1])(context, builder, shares)
        count = builder.extract_value(array.shape, 0)

        # What the threads share: the arguments, the table of shares and how many there are, and whether one failed.
        fields = [arguments.type, array.data.type, intp, ir.IntType(1)]
        common = cgutils.alloca_once(builder, ir.LiteralStructType(fields))
        for position, value in enumerate((arguments, array.data, count, ir.IntType(1)(0))):
            builder.store(value, cgutils.gep_inbounds(builder, common, 0, position))

        body_type = ir.FunctionType(ir.VoidType(), [pointer])
        body = ir.Function(
            builder.module, body_type, builder.module.get_unique_name("share_of_" + builder.function.name)
        )
        body.linkage = "internal"
        inner = ir.IRBuilder(body.append_basic_block())
        own = inner.bitcast(body.args[0], common.type)
        values = inner.load(cgutils.gep_inbounds(inner, own, 0, 0))
        table = inner.load(cgutils.gep_inbounds(inner, own, 0, 1))
        last = inner.load(cgutils.gep_inbounds(inner, own, 0, 2))
        first, step = intp(0), intp(1)
        if OPENMP:
            first, step = (_openmp_number(inner, name, intp) for name in ("omp_get_thread_num", "omp_get_num_threads"))
        unpacked = [inner.extract_value(values, position) for position in range(len(sig.args[2]))]
        with cgutils.for_range_slice(inner, first, last, step, intp) as (share, _):
            row = [inner.load(inner.gep(table, [inner.add(inner.mul(share, intp(3)), intp(i))])) for i in range(3)]
            status, _ = context.call_internal_no_propagate(inner, compiled.fndesc, called, row + unpacked)
            with cgutils.if_unlikely(inner, status.is_error):
                inner.store(ir.IntType(1)(1), cgutils.gep_inbounds(inner, own, 0, 3))
        inner.ret_void()

        data = builder.bitcast(common, pointer)
        if OPENMP:
            with builder.if_else(builder.icmp_signed(">", count, intp(1))) as (several, one):
                with several:
                    i32 = ir.IntType(32)
                    enter_type = ir.FunctionType(ir.VoidType(), [body_type.as_pointer(), pointer, i32, i32])
                    enter = cgutils.get_or_insert_function(builder.module, enter_type, "GOMP_parallel")
                    builder.call(enter, [body, data, builder.trunc(count, i32), i32(0)])
                with one:
                    builder.call(body, [data])
        else:
            builder.call(body, [data])
        failed = builder.load(cgutils.gep_inbounds(builder, common, 0, 3))
        with cgutils.if_unlikely(builder, failed):
            context.call_conv.return_user_exc(builder, MemoryError, ("a kernel ran out of memory",))
        return context.get_dummy_value()

    return types.void(function, shares, arguments), codegen


@intrinsic
def team_size(typingctx):
    """Inside a share: how many threads work side by side, which may be fewer than there are shares."""

    def codegen(context, builder, sig, args):
        if not OPENMP:
            return context.get_constant(types.intp, 1)
        return _openmp_number(builder, "omp_get_num_threads", context.get_value_type(types.intp))

    return types.intp(), codegen


@intrinsic
def meet(typingctx):
    """Inside a share: wait for all threads of the team."""

    def codegen(context, builder, sig, args):
        if OPENMP:
            barrier = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, barrier, "GOMP_barrier"), [])
        return context.get_dummy_value()

    return types.void(), codegen


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that runs without the interpreter lock, and keep what was compiled on disk.

    numba compiles anew when the function's own file has changed. What the kernels share lies in other files, so these
    are part of the name under which the machine code is kept.
    """
    function.__qualname__ += "-" + _fingerprint()
    try:
        return njit(function, cache=True, nogil=True)
    except RuntimeError:  # no folder to write to: compiled anew in each process
        return njit(function, nogil=True)


@cache
def _fingerprint() -> str:
    sources = [pkgutil.get_data("pyrohmm.ops", name) or b"" for name in ("simd.py", "threads.py")]
    return hashlib.sha256(b"".join(sources) + bytes([OPENMP])).hexdigest()[:12]
