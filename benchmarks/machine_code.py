"""What the machine code of a kernel does: SASS of sm_90 read into counts for one warp.

A warp is walked through its code once. A forward branch that would skip a block is not taken, but where that block is
there to call a routine, which are the rare ends of division and square root, and of two sides the longer one is. Of
loops, found by their backward branches, the number of trips is given; their instructions count as often.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_a-z.]*)([^;]*);", re.MULTILINE)
NAMES = re.compile(r"\b(U?R\d+|U?P\d)(\.64)?")
WARP = 32
GROUP = 4  # warps that start a product of the matrix units together

# Clocks in which a multiprocessor takes one instruction of a warp, by unit; 128, 64 and 16 lanes.
FULL, HALF, SIXTEENTH = 0.25, 0.5, 2.0
# integers, comparisons, selections, bits and packing, at half of the rate of fp32 arithmetic
HALF_RATE = frozenset(
    """LOP3 LOP SHF PRMT FMNMX FMNMX3 FSEL FSETP FSET SEL ISETP IADD3 IADD VIADD VIADDMNMX VIMNMX LEA IMNMX PLOP3 F2FP
    I2FP SGXT BMSK R2P P2R FCHK IABS FLO VOTE IMAD IDP""".split()
)
CONVERSIONS = frozenset("F2F F2I I2F FRND POPC BREV".split())

# Clocks until a result may be read. Of memory: under load. Others as published measurements of Hopper have them.
LATENCY = {"LDG": 800, "LD": 800, "ATOMG": 800, "LDS": 30, "LDSM": 33, "SHFL": 24, "MUFU": 22, "BAR": 30, "S2R": 20}
LATENCY |= {"LDC": 30, "ULDC": 12, "S2UR": 20, "REDUX": 30, "VOTE": 12} | dict.fromkeys(CONVERSIONS, 22)
ARITHMETIC = 5
NO_RESULT = frozenset("STG ST STS STSM BRA EXIT BAR RED LDGSTS LDGDEPBAR DEPBAR CALL RET NOP BSSY BSYNC".split())


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    name: str
    operands: str

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)", self.operands) if self.stem in ("BRA", "CALL") else None
        return int(found.group(1), 16) if found else None

    @property
    def bytes(self) -> int:
        """What a lane moves by it."""
        if self.stem in ("LDSM", "STSM"):
            return 4 * int((re.search(r"M88\.(\d)", self.name) or [0, "1"])[1])
        for part, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
            if part in self.name:
                return size
        return 4

    @property
    def product(self) -> tuple[int, int, int] | None:
        """m, n and k of a product of the matrix units."""
        found = re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", self.name)
        if found:
            return tuple(map(int, found.groups()))
        found = re.match(r"HMMA\.(\d{2})(\d)(\d{1,2})\.", self.name)
        return tuple(map(int, found.groups())) if found else None


@dataclass
class Counts:
    """Of one warp from its start to its end, predicated instructions counted as if they did their work.

    Attributes:
        instructions: issued.
        half: of those, at half rate.
        mufu: of the unit for exponentials, reciprocals and such, and conversions on it.
        shuffles, barriers: of their kind.
        shared: clocks of the 128 bytes that memory next to the processor gives in one, of its loads and stores, of
            shuffles, of accesses to global memory through it, and of what products read there.
        narrow: accesses to global memory of less than 16 bytes a lane.
        loaded, stored: bytes of global memory.
        macs: multiply-adds on the matrix units, where a product that a warp starts with three others counts a quarter.
        tensor: clocks of all the matrix units of a multiprocessor.
    """

    instructions: float = 0
    half: float = 0
    mufu: float = 0
    shuffles: float = 0
    barriers: float = 0
    shared: float = 0
    narrow: float = 0
    loaded: float = 0
    stored: float = 0
    macs: float = 0
    tensor: float = 0

    def add(self, x: Instruction, times: float) -> None:
        self.instructions += times
        stem = x.stem
        if stem in HALF_RATE and not x.name.startswith("IMAD.MOV"):
            self.half += times
        elif stem == "MUFU" or stem in CONVERSIONS:
            self.mufu += times
        elif stem == "BAR":
            self.barriers += times
        elif stem == "SHFL":
            self.shuffles += times
            self.shared += times
        elif stem in ("LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LD", "ST", "LDGSTS"):
            moved = WARP * x.bytes
            self.shared += times * max(moved / 128, 1)
            if stem in ("LDG", "LD", "LDGSTS"):
                self.loaded += times * moved
            if stem in ("STG", "ST"):
                self.stored += times * moved
            if stem in ("LDG", "STG", "LD", "ST"):
                self.narrow += times * (x.bytes < 16)
        elif x.product:
            m, n, k = x.product
            of_group = stem == "HGMMA"
            macs = m * n * k / (GROUP if of_group else 1)
            # 2048 multiply-adds of 16 bits a clock; of TF32, whose products are 8 or 4 deep, half; half without wgmma
            rate = 2048 / (1 if k == 16 else 2) / (1 if of_group else 2)
            self.macs += times * macs
            self.tensor += times * macs / rate
            if of_group:
                size = 32 // k
                left = m * k * size if re.match(r"\s*R\d+, gdesc", x.operands) else 0
                self.shared += times * (left + n * k * size) / 128 / GROUP


@dataclass
class Loop:
    """Instructions from the target of a backward branch to the branch."""

    start: int
    end: int
    trips: int = 1
    counts: Counts = field(default_factory=Counts)


class Code:
    """One kernel's SASS: ``loops`` in order of their first instruction."""

    def __init__(self, sass: str):
        every = [
            Instruction(int(address, 16), (predicate or "").strip(), name, operands.strip())
            for address, predicate, name, operands in LINE.findall(sass)
        ]
        self.path = _walked(every)
        assert self.path, "no machine code"
        back = [x for x in self.path if x.stem == "BRA" and x.target is not None and x.target < x.address]
        ends: dict[int, int] = {}
        for x in back:
            ends[x.target] = max(x.address, ends.get(x.target, 0))
        self.loops = [Loop(start, end) for start, end in sorted(ends.items())]

    def counts(self, trips: Sequence[int]) -> Counts:
        """Of a warp, with so many trips of each loop. What each loop takes in one trip is left in ``loops``."""
        assert len(trips) == len(self.loops), f"{len(self.loops)} loops, {len(trips)} numbers of trips"
        total = Counts()
        for loop, count in zip(self.loops, trips, strict=True):
            loop.trips, loop.counts = count, Counts()
        for x in self.path:
            around = [loop for loop in self.loops if loop.start <= x.address <= loop.end]
            times = 1
            for loop in around:
                times *= loop.trips
            total.add(x, times)
            for k, loop in enumerate(around):
                inner = 1
                for other in around[k + 1 :]:
                    inner *= other.trips
                loop.counts.add(x, inner)
        return total

    def duration(self) -> float:
        """Clocks of a warp that has a scheduler to itself: it issues in order and waits for what it reads. Trips as
        of the last :meth:`counts`."""
        return _Alone().run(self.path, self.loops)


def _walked(every: Sequence[Instruction]) -> list[Instruction]:
    at = {x.address: k for k, x in enumerate(every)}
    forward = [x for x in every if x.stem == "BRA" and x.predicate and x.target is not None and x.target > x.address]
    calls = [x.address for x in every if x.stem == "CALL"]
    around = [[x.address for x in forward if x.address < call < x.target] for call in calls]
    taken = {max(addresses) for addresses in around if addresses}
    path, k = [], 0
    while k < len(every):
        x = every[k]
        path.append(x)
        k += 1
        if x.stem == "EXIT" and not x.predicate:
            break
        if x.stem == "BRA" and x.target is not None and x.target > x.address:
            if not x.predicate or x.address in taken or _is_shorter_side(every, x, at[x.target]):
                k = at[x.target]
        elif x.stem == "BRA" and x.target == x.address:
            break
    return path


def _is_shorter_side(every: Sequence[Instruction], branch: Instruction, target: int) -> bool:
    """Whether what a branch skips is one of two sides, and the other one does more."""
    last = every[target - 1]
    two = last.stem == "BRA" and not last.predicate and last.target is not None and last.target > branch.target
    return two and last.target - branch.target > branch.target - branch.address


class _Alone:
    """Clock of a warp, and from when on each register may be read."""

    def __init__(self):
        self.clock = 0.0
        self.ready: dict[str, float] = {}

    def run(self, path: Sequence[Instruction], loops: Sequence[Loop]) -> float:
        k = 0
        while k < len(path):
            x = path[k]
            loop = next((o for o in loops if o.start == x.address), None)
            if loop is None:
                self.issue(x)
                k += 1
                continue
            body = [y for y in path[k:] if y.address <= loop.end]
            inside = [o for o in loops if o.start > loop.start and o.end <= loop.end]
            if loop.trips:
                self.run_once(body, inside)
            if loop.trips > 1:
                before = self.clock
                self.run_once(body, inside)
                skipped = (self.clock - before) * (loop.trips - 2)
                self.clock += skipped
                self.ready = {name: time + skipped for name, time in self.ready.items()}
            k += len(body)
        return self.clock

    def run_once(self, body: Sequence[Instruction], inside: Sequence[Loop]) -> None:
        """A body whose first instruction is no loop's start of its own."""
        self.issue(body[0])
        self.run(body[1:], inside)

    def issue(self, x: Instruction) -> None:
        names, guard = NAMES.findall(x.operands), NAMES.findall(x.predicate)
        wide = max(x.bytes // 4, 1)
        results: list[str] = []
        if names and x.stem not in NO_RESULT and not x.product:
            results = _following(names[0][0], wide if x.stem in ("LDG", "LD", "LDS", "LDSM", "LDC", "ULDC") else 1)
        read = [y for name, pair in names + guard for y in _following(name, 2 if pair else 1)]
        if x.stem in ("STG", "ST", "STS") and names:
            read += _following(names[-1][0], wide)
        self.clock = max([self.clock + 1, *(self.ready.get(name, 0.0) for name in read)])
        if x.stem == "BAR":
            self.clock += LATENCY["BAR"]
        for name in results:
            self.ready[name] = self.clock + LATENCY.get(x.stem, ARITHMETIC)


def _following(name: str, count: int) -> list[str]:
    stem, number = re.match(r"(\D+)(\d+)", name).groups()
    return [f"{stem}{int(number) + k}" for k in range(count)]
