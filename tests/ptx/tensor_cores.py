"""Products of small matrices whose entries are spread over the threads of a warp, and how they are loaded.

The layouts are those of the PTX ISA, "Matrix Fragments for mma" and "for wgmma", which are one for all shapes here.
Products are exact, and sums of float32 are cut off, as has been measured: Fasi, Higham, Mikaitis and Pranesh, Numerical
behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330 (2021).
"""

import numpy as np

from tests.ptx.memory import WARP

_LANE = np.arange(WARP)
_GROUP, _MEMBER = _LANE // 4, _LANE % 4


def _left(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of what each lane has in so many registers, (count, lanes) each."""
    i = np.arange(count)[:, None]
    return _GROUP + 8 * (i % 2), _MEMBER + 4 * (i // 2)


def _right(count: int) -> tuple[np.ndarray, np.ndarray]:
    return _MEMBER + 4 * np.arange(count)[:, None], np.broadcast_to(_GROUP, (count, WARP))


def _sum(count: int) -> tuple[np.ndarray, np.ndarray]:
    i = np.arange(count)[:, None]
    return _GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * _MEMBER + i % 2


def left(registers: np.ndarray) -> np.ndarray:
    """The matrix of each warp, from registers (count, threads)."""
    return _gather(registers, _left(len(registers)))


def right(registers: np.ndarray) -> np.ndarray:
    """The matrix of each warp, from registers (count, threads)."""
    return _gather(registers, _right(len(registers)))


def multiply_add(a: np.ndarray, b: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """A B + C of matrices A (warps, M, K), B (warps, K, N) and C in registers (count, threads), as is the result."""
    places = _sum(len(registers))
    exact = a.astype("f8") @ b.astype("f8") + _gather(registers, places)
    values = exact[:, *places].transpose(1, 0, 2).reshape(registers.shape)
    if registers.dtype == np.float64:
        return values
    rounded = values.astype("f4")
    return np.where(np.abs(rounded) > np.abs(values), np.nextafter(rounded, np.float32(0)), rounded)


def truncated(values: np.ndarray) -> np.ndarray:
    """What tensor cores see of float32: as many digits as TF32 has."""
    return (values.view("u4") & np.uint32(0xFFFFE000)).view("f4")


def rows(addresses: np.ndarray, number: int) -> np.ndarray:
    """Where the four bytes of each thread are in matrix `number`, of 8 rows of 16 bytes; a lane has a row's address."""
    return addresses.reshape(-1, WARP)[:, 8 * number + _GROUP].reshape(-1) + 4 * (np.arange(len(addresses)) % 4)


def described(descriptor: int, num_columns: int) -> np.ndarray:
    """Where the entries of a matrix (8, N) of float32 are in shared memory that a descriptor tells of, by columns.

    Raises:
        ValueError: another layout than Triton's.
    """
    # Rows of 128, 64 or 32 bytes; in each, the places of 16 bytes are permuted.
    mode, offset = descriptor >> 62, descriptor >> 49 & 7
    if mode not in (1, 2, 3) or offset:
        raise ValueError(f"descriptor {descriptor:#x}: expected a swizzled matrix without offset")
    row, permuted = {1: (128, 7), 2: (64, 3), 3: (32, 1)}[mode]
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    column, k = np.arange(num_columns), np.arange(8)[:, None]
    places = start + column % 8 * row + column // 8 * stride + 4 * k
    return places ^ (places >> 7 & permuted) << 4


def _gather(registers: np.ndarray, places: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    values = registers.reshape(len(registers), -1, WARP).transpose(1, 0, 2)
    matrix = np.zeros((len(values), places[0].max() + 1, places[1].max() + 1), registers.dtype)
    matrix[:, *places] = values
    return matrix
