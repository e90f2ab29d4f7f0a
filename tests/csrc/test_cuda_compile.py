"""Every CUDA source compiled for every architecture that is served, and what the compiler made of it. Needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import pytest

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")

SOURCES = sorted(path.stem for path in Path(__file__).parents[2].glob("csrc/cuda/*.cu"))
ARCHITECTURES = ("sm_90", *(pytest.param(other, marks=pytest.mark.slow) for other in ("sm_80", "sm_100")))
DOUBLE_ARITHMETIC = r"\bD(?:ADD|MUL|FMA|SETP|MNMX)\b"
WIDE = r"\.E\.128\b"
PAIR = r"\b(?:LDG|STG)\.E\.64\b"
ACCESS = r"\b(?:LDG|LD|STG|ST)\.E"


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel: mangled name, what ptxas says it uses, and its instructions (empty without cuobjdump)."""

    name: str
    stack: int
    spills: int
    registers: int
    sass: str

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.sass))


def cuobjdump() -> str | None:
    """CUDA's own, else the one in Triton's package."""
    found = shutil.which("cuobjdump")
    spec = None if found else util.find_spec("triton")
    if spec is not None:
        found = shutil.which("cuobjdump", path=str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    return found


def compiled(repository: Path, folder: Path, source: str, architecture: str) -> list[Kernel]:
    cubin = folder / f"{source}.{architecture}.cubin"
    command = [NVCC, "-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", str(cubin)]
    done = subprocess.run(
        [*command, str(repository / "csrc" / "cuda" / f"{source}.cu")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    tool, sass = cuobjdump(), {}
    if tool is not None:
        text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
        for part in text.split("Function : ")[1:]:
            name, _, body = part.partition("\n")
            sass[name.strip()] = body
    usage = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    return [
        Kernel(name, int(stack), int(stores) + int(loads), int(registers), sass.get(name, ""))
        for name, stack, stores, loads, registers in re.findall(usage, done.stderr, re.DOTALL)
    ]


@pytest.fixture(scope="session", params=ARCHITECTURES)
def kernels(request, repository, tmp_path_factory) -> dict[str, list[Kernel]]:
    """Source -> its kernels for one architecture."""
    folder, architecture = tmp_path_factory.mktemp("cubin"), request.param
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        made = pool.map(lambda source: compiled(repository, folder, source, architecture), SOURCES)
        return dict(zip(SOURCES, made, strict=True))


@pytest.fixture(scope="session")
def disassembled(kernels) -> list[Kernel]:
    if cuobjdump() is None:
        pytest.skip("no cuobjdump, neither CUDA's nor Triton's")
    found = [kernel for of_source in kernels.values() for kernel in of_source]
    assert all(kernel.sass for kernel in found)
    return found


def test_every_source_is_compiled(repository, kernels):
    assert {path.stem for path in (repository / "csrc" / "cuda").glob("*.cu")} == set(SOURCES)
    # rows: three dtypes, narrow and wide; tiles: float and double; each forward and backward, with and without shares
    assert all(len(kernels[source]) == 32 for source in SOURCES if source.startswith("partition"))
    # twelve forms of storage, AdamW and SGD; squares of four dtypes, and their sums
    assert len(kernels["multi_rate"]) == 29


def test_everything_stays_in_registers(kernels):
    spilled = [
        (where, kernel.name)
        for where, of_source in kernels.items()
        for kernel in of_source
        if kernel.stack or kernel.spills or kernel.count(r"\b(?:LDL|STL)\b")
    ]
    assert not spilled


def test_rows_are_read_and_written_16_bytes_at_a_time(disassembled):
    rows = [kernel for kernel in disassembled if "partition_row_" in kernel.name]
    assert rows
    for kernel in rows:
        assert kernel.count(r"\bLDG" + WIDE) and kernel.count(r"\bSTG" + WIDE), kernel.name
        # a row of shares, once: of the single gate both at a time, of dual ones all four
        both = int("SingleIfE" in kernel.name and "ELb1EEE" in kernel.name)
        assert kernel.count(PAIR) == both, kernel.name
        narrow = kernel.count(ACCESS) - kernel.count(r"\b(?:LDG|STG)" + WIDE)
        if "BoundaryIfE" in kernel.name:
            # two boundaries of any of three dtypes, and backward their gradients
            assert 2 <= narrow <= 6 * (1 + ("backward" in kernel.name)), kernel.name
        else:
            assert narrow == both, kernel.name


def test_optimizer_state_is_read_and_written_16_bytes_at_a_time(disassembled):
    """AdamW on float parameters: of the parameter, its gradient and both moments; else at least of the state."""
    updates = [kernel for kernel in disassembled if "multi_rate_update" in kernel.name]
    assert updates
    for kernel in updates:
        own = re.search(r"AdamwChunkE(fff|ddd)L", kernel.name)
        loads, stores = (4, 3) if own else (2, 2) if "Adamw" in kernel.name else (1, 1)
        assert kernel.count(r"\bLDG" + WIDE) >= loads and kernel.count(r"\bSTG" + WIDE) >= stores, kernel.name


def test_norms_read_16_bytes_at_a_time(disassembled):
    squares = [kernel for kernel in disassembled if "multi_rate_chunk_squares" in kernel.name]
    assert squares and all(kernel.count(r"\bLDG" + WIDE) for kernel in squares)


def test_partitions_of_other_than_double_compute_nothing_in_double(disassembled):
    """The optimizer's kernels do, once per block: clipping's coefficient comes from sums in double."""
    for kernel in disassembled:
        if "partition_" in kernel.name:
            in_double = re.search(r"partition_tile_.*(?:Single|Dual|Boundary)IdE", kernel.name) is not None
            assert (kernel.count(DOUBLE_ARITHMETIC) > 0) == in_double, kernel.name
