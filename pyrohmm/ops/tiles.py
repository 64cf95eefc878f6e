"""What Triton kernels compute with in several places: logarithms that know zero, shifts that know -inf."""

import triton
import triton.language as tl


@triton.jit
def finite(values):
    """Zero in place of -inf: a shift that can be subtracted from -inf without making NaN."""
    return tl.where(values == -float("inf"), 0.0, values)


@triton.jit
def log_of(mass):
    """log(mass), -inf for zero. NaN stays."""
    return tl.where(mass == 0.0, -float("inf"), tl.log(tl.where(mass == 0.0, 1.0, mass)))


@triton.jit
def inverse_of(mass):
    """1 / mass, zero for zero. NaN stays."""
    return tl.where(mass == 0.0, 0.0, 1.0 / tl.where(mass == 0.0, 1.0, mass))
