"""Runs the numeric tests as processors other than this one would: run by ``make test-portable``.

    .venv/bin/python tools/test_portable.py [NAME ...]    the variants of these names, all by default

Each variant holds torch, its libraries or the compiled kernels to another instruction set, order of sums or number of
threads. Kernels for another instruction set are built into ``build/portable``; those in use stay as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/ops", "tests/nn", "tests/optim", "tests/test_host.py", "tests/csrc/test_cuda_emulated.py"]
# Triton's interpreter computes in numpy, so only what it is compared with changes
INTERPRETED = "tests/kernels/test_interpreted.py"


@dataclass(frozen=True)
class Variant:
    environment: dict[str, str] = field(default_factory=dict)
    kernels: str | None = None  # instruction set of our own; None for those that are in use
    interpreted: bool = False  # also the Triton kernels, interpreted


VARIANTS = {
    "aten-default": Variant({"ATEN_CPU_CAPABILITY": "default"}),
    "aten-avx2": Variant({"ATEN_CPU_CAPABILITY": "avx2"}),
    "onednn-sse41": Variant({"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "onednn-avx2": Variant({"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "mkl-sse42": Variant({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
    "mkl-avx2": Variant({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    # what MKL takes on processors that it does not know
    "mkl-compatible": Variant({"MKL_CBWR": "COMPATIBLE"}),
    "mkl-cbwr-avx2": Variant({"MKL_CBWR": "AVX2"}),
    "two-threads": Variant({"PGM_FAST_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"}),
    "kernels-scalar": Variant(kernels="scalar"),
    "kernels-avx2": Variant(kernels="avx2"),
    "kernels-avx512": Variant(kernels="avx512"),
    "oldest": Variant(
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        "scalar",
        interpreted=True,
    ),
    "avx2-of-another-maker": Variant(
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"},
        "avx2",
        interpreted=True,
    ),
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        sys.exit(f"error: no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    outcomes = {name: _outcome(name, VARIANTS[name]) for name in names or VARIANTS}
    print("\n" + "\n".join(f"{name:22} {outcome}" for name, outcome in outcomes.items()))
    if any(outcome == "failed" for outcome in outcomes.values()):
        sys.exit("error: some variants failed; run one again with: .venv/bin/python tools/test_portable.py NAME")


def _outcome(name: str, variant: Variant) -> str:
    print(f"\n{name}: {variant.environment}, kernels {variant.kernels or 'in use'}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variant.environment}
    if variant.kernels is not None:
        folder = _built(variant.kernels)
        # before the working tree, which Python puts first for `python -m` and `python -c` unless told not to
        environment |= {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
        if _loaded(environment, folder) != variant.kernels:
            return f"skipped: this processor does not run {variant.kernels}"
    # threads that wait for a core spin on it
    processes = max(1, min(8, (os.cpu_count() or 1) // int(environment["OMP_NUM_THREADS"])))
    pytest = [str(Path(sys.executable).with_name("pytest")), "-n", str(processes), "--dist", "loadgroup"]
    tests = [*TESTS, INTERPRETED] if variant.interpreted else TESTS
    return "failed" if subprocess.run([*pytest, *tests], cwd=ROOT, env=environment).returncode else "passed"


def _built(instruction_set: str) -> Path:
    """Folder of a copy of the package with its kernels compiled for ``instruction_set``."""
    base = ROOT / "build" / "portable" / instruction_set
    environment = {**os.environ, "PGM_FAST_ISA": instruction_set, "PGM_FAST_CUDA": "0"}
    folders = ["--build-base", str(base), "--build-lib", str(base / "lib")]
    command = [sys.executable, "setup.py", "--quiet", "build", *folders]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return base / "lib"


def _loaded(environment: dict[str, str], folder: Path) -> str:
    """The instruction set of the kernels that tests would use; empty where they cannot be loaded."""
    program = "import pgm_fast; from pgm_fast import _native; print(pgm_fast.__file__, _native.instruction_set)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    file, _, instruction_set = done.stdout.strip().rpartition(" ")
    return instruction_set if Path(file).is_relative_to(folder) else ""


if __name__ == "__main__":
    main(sys.argv[1:])
