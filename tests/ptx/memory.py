"""Memory that knows who read and wrote it last, and whether a barrier lay between.

Two accesses to one place, of which one writes, are settled if the same thread made both, or if all threads of a program
met at a barrier in between, or those of a warp. Programs never meet.
"""

import warnings
from collections.abc import Iterable

import numpy as np

from tests.ptx.program import Fault, Instruction, Program

WARP = 32
_ALIGNED = 16  # the longest access
_NOBODY = np.iinfo("i4").max


class Hazard(UserWarning):
    """Something that is no fault only if the threads do what a GPU is not obliged to let them do."""


class Order:
    """Who has met whom; the time is the number of meetings.

    Attributes:
        now: the time.
        program: number of the program that runs.
        fenced: what was written before is visible to tensor cores.
    """

    def __init__(self, num_threads: int):
        self.num_threads = num_threads
        self.now = 0
        self.begin(0)

    def begin(self, program: int) -> None:
        """Another program begins."""
        self.program = program
        self.meet()
        self.fence()

    def meet(self) -> None:
        """All threads of the program meet."""
        self.now += 1
        self._met = self._met_in_warps = self.now

    def meet_in_warps(self) -> None:
        """The threads of each warp meet."""
        self.now += 1
        self._met_in_warps = self.now

    def fence(self) -> None:
        """What threads have written goes out to tensor cores."""
        self.now += 1
        self.fenced = self.now

    def threads(self, lanes: np.ndarray) -> np.ndarray:
        """Threads of the program, numbered through all programs."""
        return (self.program * self.num_threads + lanes).astype("i4")

    def settled(self, when: np.ndarray, first: np.ndarray, last: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Whether earlier accesses (none at time zero) by some threads of a range are over for these threads."""
        alone = (first == threads) & (last == threads)
        in_warp = (first // WARP == threads // WARP) & (last // WARP == threads // WARP)
        return (
            (when == 0) | alone | self.inside(first, last) & (when < self._met) | in_warp & (when < self._met_in_warps)
        )

    def inside(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Whether a range of threads is all of this program."""
        return (first // self.num_threads == self.program) & (last // self.num_threads == self.program)


class Space:
    """Memory: regions, each with an address, that are bytes of one array here.

    Args:
        program: for messages.
        order: who has met whom.
        regions: name, address and bytes of each.
        unit: no access is smaller.
        strict: whether it is a fault if a number is read by a thread and then written by another one of the program.
    """

    def __init__(
        self,
        program: Program,
        order: Order,
        regions: Iterable[tuple[str, int, np.ndarray]],
        *,
        unit: int,
        strict: bool,
    ):
        self._program, self._order, self._unit, self._strict = program, order, unit, strict
        self._regions = sorted(regions, key=lambda region: region[1])
        sizes = np.array([memory.size for _, _, memory in self._regions], "i8")
        self._addresses = np.array([address for _, address, _ in self._regions], "i8")
        self._ends = self._addresses + sizes
        # What is aligned in memory is so in the array.
        *places, total = np.cumsum(np.r_[0, (sizes // _ALIGNED + 2) * _ALIGNED])
        self._starts = np.array(places, "i8") + self._addresses % _ALIGNED
        self._bytes = np.zeros(total, "u1")
        for (_, _, memory), start in zip(self._regions, self._starts, strict=True):
            self._bytes[start : start + memory.size] = memory
        units = total // unit
        self._written, self._writer, self._writing = (np.zeros(units, "i4") for _ in range(3))
        self._read, self._first, self._last, self._reading = (np.zeros(units, "i4") for _ in range(4))
        self._pending = np.zeros(units, bool)

    def write_back(self) -> None:
        """Bring what was written to where the regions came from."""
        for (_, _, memory), start in zip(self._regions, self._starts, strict=True):
            memory[:] = self._bytes[start : start + memory.size]

    def read(
        self, instruction: Instruction, lanes: np.ndarray, addresses: np.ndarray, size: int, *, fenced: bool = False
    ) -> np.ndarray:
        """So many bytes for each lane, (lanes,) V; `fenced` if it is tensor cores that read them.

        Raises:
            Fault: out of bounds, not aligned, or another thread's write is not settled or no fence follows it.
        """
        places, units = self._places(instruction, addresses, size)
        threads = self._order.threads(lanes)[:, None]
        written = self._written[units]
        self._check_writes(instruction, units, threads, "read")
        if fenced:
            self._check(
                instruction, units, written >= self._order.fenced, "read without a fence", "writes", self._writing
            )
        over = units[self._settled_reads(units, threads)]
        self._first[over], self._last[over] = _NOBODY, -1
        np.minimum.at(self._first, units, threads)
        np.maximum.at(self._last, units, threads)
        self._read[units], self._reading[units] = self._order.now, instruction.number
        return self._bytes.view(f"V{size}")[places // size]

    def write(self, instruction: Instruction, lanes: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write bytes (lanes,) V.

        Raises:
            Fault: out of bounds, not aligned, what another thread wrote or read is not settled, or lanes write
                different values to one place. It is no fault to write once more what is there.
        """
        size = values.itemsize
        places, units = self._places(instruction, addresses, size)
        threads = self._order.threads(lanes)[:, None]
        memory = self._bytes.view(f"V{size}")
        changed = _differ(memory[places // size], values)[:, None]
        self._check_writes(instruction, units, threads, "written", changed)
        self._check_reads(instruction, units, threads)
        self._written[units], self._writer[units], self._writing[units] = self._order.now, threads, instruction.number
        memory[places // size] = values
        if _differ(memory[places // size], values).any():
            raise Fault(instruction, "lanes write different values to one place")

    def claim(self, instruction: Instruction, lanes: np.ndarray, addresses: np.ndarray, size: int) -> None:
        """From now until `fill`, nobody may touch what a copy goes to.

        Raises:
            Fault: as `write`.
        """
        _, units = self._places(instruction, addresses, size)
        threads = self._order.threads(lanes)[:, None]
        self._check_writes(instruction, units, threads, "written")
        self._check_reads(instruction, units, threads)
        self._pending[units] = True
        self._writing[units] = instruction.number

    def fill(self, instruction: Instruction, lanes: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """What was claimed arrives."""
        places = self._locate(instruction, addresses, values.itemsize)
        self._pending[self._units(places, values.itemsize)] = False
        self.write(instruction, lanes, addresses, values)

    def _locate(self, instruction: Instruction, addresses: np.ndarray, size: int) -> np.ndarray:
        """Place in the array of each address."""
        region = np.searchsorted(self._addresses, addresses, side="right") - 1
        outside = (region < 0) | (addresses + size > self._ends[region]) if len(self._ends) else addresses >= 0
        if outside.any():
            where = addresses[outside][0]
            near = ", ".join(
                f"{where - address:+d} in {name} of {memory.size} bytes" for name, address, memory in self._regions
            )
            raise Fault(instruction, f"out of bounds: {near or 'there is no memory'}")
        if (addresses % size).any():
            raise Fault(instruction, f"misaligned: {addresses[addresses % size != 0][0]} for {size} bytes")
        return addresses - self._addresses[region] + self._starts[region]

    def _units(self, places: np.ndarray, size: int) -> np.ndarray:
        """The units of each access, (lanes, units)."""
        return (places // self._unit)[:, None] + np.arange(size // self._unit)

    def _places(self, instruction: Instruction, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Places, and the units of each, of what no copy goes to."""
        places = self._locate(instruction, addresses, size)
        units = self._units(places, size)
        self._check(instruction, units, self._pending[units], "touched", "copies", self._writing)
        return places, units

    def _settled_reads(self, units: np.ndarray, threads: np.ndarray) -> np.ndarray:
        return self._order.settled(self._read[units], self._first[units], self._last[units], threads)

    def _check_writes(
        self,
        instruction: Instruction,
        units: np.ndarray,
        threads: np.ndarray,
        now: str,
        among: np.ndarray | bool = True,
    ) -> None:
        writer = self._writer[units]
        hazard = ~self._order.settled(self._written[units], writer, writer, threads) & among
        self._check(instruction, units, hazard, now, "writes", self._writing)

    def _check_reads(self, instruction: Instruction, units: np.ndarray, threads: np.ndarray) -> None:
        hazard = ~self._settled_reads(units, threads)
        if not hazard.any():
            return
        # Threads that hold one number together all read it, and the one that goes on with it alone may write it back.
        if self._strict or not self._order.inside(self._first[units], self._last[units])[hazard].all():
            self._check(instruction, units, hazard, "written", "reads", self._reading)
        reader = self._program.instructions[self._reading[units[hazard]][0]]
        where = f"{instruction.kernel}, {instruction.line}"
        warnings.warn(f"{where}: written while other threads may still read it at {reader.line}", Hazard, stacklevel=3)

    def _check(
        self, instruction: Instruction, units: np.ndarray, bad: np.ndarray, now: str, before: str, who: np.ndarray
    ) -> None:
        if bad.any():
            other = self._program.instructions[who[units[bad]][0]]
            raise Fault(instruction, f"race: {now} while another thread still {before} it: {other}")


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether bytes (lanes,) V differ."""
    return (a.view("u1") != b.view("u1")).reshape(len(a), -1).any(1)
