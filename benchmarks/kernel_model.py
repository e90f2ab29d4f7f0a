"""Predicts from its machine code what each kernel takes on an H100 and an H200: predicted, not measured.

    python benchmarks/kernel_model.py [--op OP] [--dry-run]

Kernels of ``kernels/`` are compiled for sm_90 by Triton, those of ``csrc/cuda`` by nvcc where it is on the PATH; both
are read as SASS (see ``machine_code.py``), multiplied by trips of their loops, warps and programs, and held against
what a multiprocessor can do in a clock. A launch takes as long as its slowest resource:

- *issue*: four instructions of a warp a clock; *half rate*: two of those on integers, comparisons and packing;
  *mufu*: half an exponential a clock; *shared*: 128 bytes a clock of loads, stores, shuffles and operands of products.
  Of each 80 % are taken to be reached.
- *tensor*: 790 TFLOP/s of bf16 products, half of that in TF32; those without wgmma half as fast.
- *bandwidth*: every tensor that the kernel is given is moved once at the speed of a large copy, also where it is read
  again; *cache*: every access to global memory, at 6.4 TB/s between the processors and the second cache.
- *latency*: a block takes as long as one of its warps alone, which issues in order and waits 800 clocks for memory;
  as many blocks run at a time as registers and shared memory allow. With products of the matrix units: a block does
  its products, its instructions and its traffic of shared memory one after the other, and only blocks overlap.

What is assumed besides: no bank conflicts, every branch is taken that does work, launches start back to back and cost
nothing, clocks stay at 1.98 GHz. A floor is what the op must move, or compute, whatever the kernels do (a step of an
optimizer: of its parameters, gradients and state). The result files say which compilers made the code.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

from kernel_works import COPY, FLOPS, HALF, TRIPS, Floor, Work, works
from machine_code import Code, Counts

from pgm_fast.env import git_commit
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "model"
CAPABILITY = 90

PROCESSORS, CLOCK = 132, 1.98e9
CACHE = 6.4e12
REACHED = 0.8
REGISTERS, WARPS, BLOCKS, SHARED = 65536, 64, 32, 227 << 10
SHARED_OF_SYSTEM = 1 << 10  # of every block
WORSE = 1.1  # a prediction that grows by more has regressed


class ModelError(RuntimeError):
    """A kernel that the model does not know, or code that is not as it expects."""


@dataclass(frozen=True)
class Launched:
    """One launch, whichever compiler made its code."""

    kernel: str
    sass: str
    programs: int
    warps: int
    registers: int
    shared: int
    trips: tuple[float, ...]
    moved: float


PASSES = ("forward", "backward", "prediction")


def rows_of_triton(op: str = "") -> Iterator[dict[str, Any]]:
    """A row for every pass of an op, or of every op."""
    for work in works():
        if op in ("", work.op):
            launches = [_compiled(work, launch, tensors) for launch, tensors in _recorded(work.call)]
            parts = [launches[: work.forward], launches[work.forward :]]
            if len(work.floors) == 3:
                parts = [launches[:1], launches[1:2], launches[2:]]
            for name, floor, part in zip(PASSES, work.floors, parts, strict=False):
                name = "step" if len(work.floors) == 1 else name
                yield _row(work.op, work.shape, name, "triton", floor, part)


def _recorded(call: Callable[[], object]) -> list[tuple[Any, list[Any]]]:
    """Launches, and of each its arguments in order, tuples opened, constants left out."""
    from unittest import mock

    import kernel_compiler

    found, plain = [], kernel_compiler._launch

    def launch(kernel, args, grid, kwargs):
        made = plain(kernel, args, grid, kwargs)
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        constants = {path for path, _ in made.constants}
        opened = []
        for position, name in enumerate(kernel.arg_names):
            value = values.get(name)
            entries = {(position, k): x for k, x in enumerate(value)} if isinstance(value, tuple) else None
            opened += [x for path, x in (entries or {(position,): value}).items() if path not in constants]
        found.append((made, opened))
        return made

    with mock.patch.object(kernel_compiler, "_launch", launch):
        kernel_compiler.record_launches(call)
    return found


def _compiled(work: Work, launch: Any, arguments: Sequence[Any]) -> Launched:
    from kernel_compiler import compile_launch

    name = launch.kernel.__name__
    made = compile_launch(launch, CAPABILITY)
    names = launch.kernel.arg_names
    constants = {names[path[0]]: value for path, value in launch.constants if len(path) == 1}
    programs = (work.programs or {}).get(name, launch.grid[0])
    trips = TRIPS[name](constants, work.sizes, programs) if name in TRIPS else ()
    code = Code(made.sass)
    if name.startswith("multi_rate_step"):
        trips = trips[: len(code.loops)]
    _check_loops(name, code, trips)
    counts = code.counts(trips)
    options = dict(launch.options)
    warps = options["num_warps"]
    every = programs * warps * (counts.loaded + counts.stored)
    moved = (work.moved or {}).get(name)
    if moved is None:
        # what is handed over and never read is no traffic, and of a tensor no more is moved than is accessed
        used = set(map(int, re.findall(r"ld\.param[^\[]*\[\w+_param_(\d+)", made.ptx)))
        given = [x for k, x in enumerate(arguments) if k in used and hasattr(x, "element_size")]
        moved = min(every, sum(x.numel() * x.element_size() for x in given))
    return Launched(name, made.sass, programs, warps, made.registers, made.shared, tuple(trips), moved)


def _row(op: str, shape: str, name: str, backend: str, floor: Floor, launches: Sequence[Launched]) -> dict[str, Any]:
    of = [_predicted(launch) for launch in launches]
    row: dict[str, Any] = {"op": op, "shape": shape, "pass": name, "backend": backend}
    for device in COPY:
        least = floor.seconds(device)
        time = sum(x[device]["us"] for x in of)
        slowest = max(of, key=lambda x: x[device]["us"])
        row[device] = {
            "floor_us": _rounded(1e6 * least),
            "us": _rounded(time),
            "times_floor": _rounded(time / (1e6 * least)),
            "limit": slowest[device]["limit"],
            "instructions_per_clock_needed": _rounded(sum(x["issue_us"] for x in of) / (1e6 * least)),
        }
    return row | {"launches": of}


def _predicted(launch: Launched) -> dict[str, Any]:
    code = Code(launch.sass)
    counts = code.counts(launch.trips)
    resident = blocks_at_a_time(launch)
    # the last round of blocks takes as long as a full one
    blocks = -(-launch.programs // PROCESSORS)
    warps = blocks * launch.warps
    clocks = {
        "issue": warps * counts.instructions / 4 / REACHED,
        "half rate": warps * counts.half / 2 / REACHED,
        "mufu": warps * counts.mufu * 2 / REACHED,
        "shared": warps * counts.shared / REACHED,
    }
    tensor = warps * counts.tensor * (2 * 2048 * PROCESSORS * CLOCK / FLOPS)
    if counts.tensor:
        clocks["tensor"] = tensor
        overlapping = min(resident, blocks)
        clocks["latency"] = (tensor + warps * counts.instructions / 4 + warps * counts.shared) / overlapping
    else:
        clocks["latency"] = -(-launch.programs // (PROCESSORS * resident)) * code.duration()
    us = {name: 1e6 * value / CLOCK for name, value in clocks.items()}
    every = launch.programs * launch.warps * (counts.loaded + counts.stored)
    us["cache"] = 1e6 * every / CACHE
    made: dict[str, Any] = {
        "kernel": launch.kernel,
        "programs": launch.programs,
        "warps": launch.warps,
        "registers": launch.registers,
        "shared_bytes": launch.shared,
        "blocks_at_a_time": resident,
        "a_warp": _as_dict(counts),
        "loops": [{"trips": loop.trips, **_as_dict(loop.counts)} for loop in code.loops],
        "moved_bytes": launch.moved,
        "issue_us": _rounded(us["issue"] * REACHED),
        "limits_us": {name: _rounded(value) for name, value in us.items()},
    }
    for device, speed in COPY.items():
        limits = us | {"bandwidth": 1e6 * launch.moved / speed}
        slowest = max(limits, key=limits.__getitem__)
        made[device] = {"us": _rounded(limits[slowest]), "limit": slowest}
    return made


def blocks_at_a_time(launch: Launched) -> int:
    """Of one multiprocessor."""
    of_warp = -(-launch.registers // 8) * 8 * 32
    return int(
        min(
            BLOCKS,
            WARPS // launch.warps,
            REGISTERS // (of_warp * launch.warps),
            (SHARED + SHARED_OF_SYSTEM) // (launch.shared + SHARED_OF_SYSTEM),
        )
    )


def _as_dict(counts: Counts) -> dict[str, float]:
    return {name: _rounded(value) for name, value in vars(counts).items()}


def _rounded(x: float) -> float:
    return float(f"{x:.4g}")


# Compiled kernels: source, its split, and what it must move of the row's bytes, forward and backward.
SOURCES = {"partition": ("Single", 4, 6), "partition_dual": ("Dual", 6, 9), "partition_boundary": ("Boundary", 3, 4)}
OF_ROW = 512  # values of a row that a warp of a block holds, kWide of each lane
THREADS = 256  # kThreads of the optimizer's


def rows_of_cuda(only: str = "") -> Iterator[dict[str, Any]]:
    """The same of ``csrc/cuda``; needs nvcc."""
    rows, d = 65536, 1024
    of_row = rows * d * HALF
    for source, (split, *tensors) in SOURCES.items():
        for share in (False, True):
            op = f"{source}, with shares" if share else source
            if only in ("", op):
                for name, count in zip(PASSES, tensors, strict=False):
                    pattern = rf"partition_row_{name}\S*{split}IfEE13__nv_bfloat16Lb1ELb{int(share)}EEE"
                    launch = _of_source(source, pattern, rows, d // OF_ROW, count * of_row, "partition_row")
                    yield _row(op, f"{rows} × {d}", name, "native", Floor(count * of_row), [launch])
    parameters, chunk = 100 << 20, 1 << 16
    chunks = parameters // chunk
    # and how many vectors of four the compiler takes in one trip
    forms = {
        "adamw-float32": ("AdamwChunkEfffL", 28, 1),
        "adamw-bfloat16": (r"AdamwChunkEf13__nv_bfloat16S4_L\S*E0EEE", 22, 1),
        "sgd-float32": ("SgdChunkEfffL", 20, 2),
    }
    for name, (pattern, count, vectors) in forms.items():
        if only in ("", f"optimizer, {name}"):
            pattern = rf"multi_rate_update\S*{pattern}"
            # chunks of a block, whole vectors, what is left of them
            trips = 1, chunk // (THREADS * 4 * vectors), 0
            launch = _of_source(
                "multi_rate", pattern, chunks, THREADS // 32, count * parameters, "multi_rate_update", trips
            )
            yield _row(
                f"optimizer, {name}",
                f"{parameters >> 20} Mi parameters",
                "step",
                "native",
                Floor(count * parameters),
                [launch],
            )


def _of_source(
    source: str, pattern: str, programs: int, warps: int, moved: float, kernel: str, trips: Sequence[float] = (1,)
) -> Launched:
    found = [part for name, part in _disassembled(source).items() if re.search(pattern, name)]
    if len(found) != 1:
        raise ModelError(f"{len(found)} kernels of {source}.cu match {pattern}")
    sass, registers, shared = found[0]
    _check_loops(kernel, Code(sass), trips)
    return Launched(kernel, sass, programs, warps, registers, shared, tuple(trips), moved)


def _check_loops(kernel: str, code: Code, trips: Sequence[float]) -> None:
    if len(trips) != len(code.loops):
        raise ModelError(f"{kernel} has {len(code.loops)} loops, the model knows {len(trips)}: mend its trips")


@cache
def _disassembled(source: str) -> dict[str, tuple[str, int, int]]:
    """Mangled name -> SASS, registers and shared memory of every kernel of one source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "made.cubin"
        path = REPOSITORY / "csrc" / "cuda" / f"{source}.cu"
        command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{CAPABILITY}", "-cubin", "-o", str(cubin), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        sass = subprocess.run([_cuobjdump(), "-sass", str(cubin)], check=True, capture_output=True, text=True).stdout
        usage = subprocess.run([_cuobjdump(), "-res-usage", str(cubin)], check=True, capture_output=True, text=True)
    numbers = {
        name: (int(registers), int(shared))
        for name, registers, shared in re.findall(r"Function (\S+):\s+REG:(\d+).*?SHARED:(\d+)", usage.stdout)
    }
    parts = (part.partition("\n") for part in sass.split("Function : ")[1:])
    return {name.strip(): (body, *numbers[name.strip()]) for name, _, body in parts}


def _cuobjdump() -> str:
    """CUDA's own, else the one in Triton's package."""
    found = shutil.which("cuobjdump")
    if found is None:
        folder = Path(util.find_spec("triton").origin).parent / "backends" / "nvidia" / "bin"
        found = str(folder / "cuobjdump")
    return found


def toolchain(backend: str) -> dict[str, str]:
    if backend == "native":
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        return {"nvcc": re.search(r"V([\d.]+)", text).group(1)}
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    text = subprocess.run([get_ptxas(CAPABILITY).path, "--version"], capture_output=True, text=True, check=True).stdout
    return {"triton": triton.__version__, "ptxas": re.search(r"V([\d.]+)", text).group(1)}


def file_of(toolchain: Mapping[str, str]) -> Path:
    """Where results of a toolchain are kept: one file for each release of Triton, one for nvcc."""
    return RESULTS / ("nvcc.json" if "nvcc" in toolchain else f"triton-{toolchain['triton']}.json")


def predicted_rows(backend: str) -> list[dict[str, Any]]:
    """Of the committed files, by the newest toolchain."""
    files, _, newest = _files()
    return (newest if backend == "triton" else next(x for x in files if "nvcc" in x["toolchain"]))["rows"]


def _files() -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """All committed files; those of older releases of Triton; that of the newest."""
    files = [read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    triton = sorted((x for x in files if "triton" in x["toolchain"]), key=lambda x: _release(x["toolchain"]["triton"]))
    return files, triton[:-1], triton[-1]


def table() -> str:
    """What the committed files predict."""
    files, older, newest = _files()
    columns = "".join(f" | H200 by triton {x['toolchain']['triton']}" for x in older)
    lines = [
        "**Predicted, not measured**: by a model of their machine code on sm_90, of what limits a multiprocessor, with "
        f"launches back to back ({'; '.join(_made_by(x) for x in files)}). A cell is the predicted time in µs, the "
        "percentage of the floor (bytes at 3.0 and 4.3 TB/s, bf16 products at 790 TFLOP/s), and what limits.",
        "",
        f"| op, bf16 | size | pass | kernels | floor on H200 | H100 | H200{columns} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(older),
    ]
    for content in (newest, *(x for x in files if "nvcc" in x["toolchain"])):
        for row in content["rows"]:
            cells = [f"{row['H200']['floor_us']:.3g}", _cell(row["H100"]), _cell(row["H200"])]
            cells += [_cell(_same(row, x)["H200"]) if content is newest else "" for x in older]
            first = f"{row['op']} | {row['shape']} | {row['pass']} | {row['backend']}"
            lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _made_by(content: Mapping[str, Any]) -> str:
    names = ", ".join(f"{name} {version}" for name, version in content["toolchain"].items())
    return f"{names}, {content['date']}"


def _same(row: Mapping[str, Any], content: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(x for x in content["rows"] if _key(x) == _key(row))


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["op"], row["shape"], row["pass"]


def _cell(of: Mapping[str, Any]) -> str:
    return f"{of['us']:.3g}, {100 / of['times_floor']:.0f} %, {of['limit']}"


def regressions(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of which a prediction is worse than before by more than is let pass, and rows that were not there."""
    found, known = [], {_key(row): row for row in before}
    for row in after:
        old = known.get(_key(row))
        for device in COPY:
            if old is None:
                found.append(f"{row['op']}, {row['shape']}, {row['pass']}: not in the result file")
                break
            if row[device]["us"] > WORSE * old[device]["us"]:
                found.append(
                    f"{row['op']}, {row['shape']}, {row['pass']}: {row[device]['us']:.4g} µs on {device}, "
                    f"limited by {row[device]['limit']}, and was {old[device]['us']:.4g}"
                )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", default="", help="one op, as the tables name it; nothing is written")
    parser.add_argument("--dry-run", action="store_true", help="print and write nothing")
    given = parser.parse_args(arguments)
    for backend, rows in (("triton", rows_of_triton), ("native", rows_of_cuda)):
        if backend == "native" and shutil.which("nvcc") is None:
            print("compiled CUDA kernels are left out: nvcc is not on the PATH", file=sys.stderr)
            continue
        content = {
            "what": "predicted from machine code, not measured",
            "toolchain": toolchain(backend),
            "commit": git_commit(REPOSITORY),
            "date": date.today().isoformat(),
            "architecture": f"sm_{CAPABILITY}",
            "rows": [],
        }
        for row in rows(given.op):
            content["rows"].append(row)
            print(_line(row), flush=True)
        if not given.op and not given.dry_run:
            _write(file_of(content["toolchain"]), content)
    return 0


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")


def _line(row: Mapping[str, Any]) -> str:
    parts = [
        f"{device} {row[device]['us']:.4g} of {row[device]['floor_us']:.4g} µs {row[device]['times_floor']:.2f}× "
        f"{row[device]['limit']} ipc {row[device]['instructions_per_clock_needed']:.2f}"
        for device in COPY
    ]
    lines = [f"{row['op']} {row['pass']} {row['backend']}: {'; '.join(parts)}"]
    for x in row["launches"]:
        a = x["a_warp"]
        lines.append(
            f"    {x['kernel']} ×{x['programs']} {x['warps']}w {x['registers']}r {x['blocks_at_a_time']}b: "
            f"{a['instructions']:.0f} instr {a['half']:.0f} half {a['mufu']:.0f} mufu {a['shuffles']:.0f} shfl "
            f"{a['narrow']:.0f} narrow; {x['limits_us']} H200 {x['H200']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
