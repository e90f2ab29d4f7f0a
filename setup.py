"""Maps ``kernels/`` to ``pgm_fast.kernels`` and builds the CPU kernels of ``csrc/`` where there is a compiler.

The compiled part includes no header of torch, so it is built with or without torch at hand and fits every version of
it. Without a compiler or pybind11 the package is pure Python and the plain PyTorch path serves; ``pgm-fast doctor``
says what is missing.

Environment: CXX, the compiler; PGM_FAST_ISA=avx512|avx2|scalar instead of what this machine has; PGM_FAST_NO_NATIVE=1
to build none.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = ["convert", "gated_mixture", "gaussian_sample_kl", "partition", "partition_dual"]
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-DNDEBUG"]
# the flag of the instruction set, and the macros that say that the building machine has it
INSTRUCTION_SETS = {
    "avx512": (
        ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
        ["__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__", "__F16C__"],
    ),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["__AVX2__", "__FMA__", "__F16C__"]),
    "scalar": ([], []),
}


class BuildNative(build_ext):
    """Compiles the kernels for this machine's instruction set and the bindings for the baseline, which refuses to load
    elsewhere."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except (ImportError, OSError, StopIteration) as error:
            # whatever keeps the kernels from being built, the package is installed without them
            raise CompileError(str(error)) from error

    def _build(self, ext: Extension) -> None:
        import pybind11

        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None:
            raise CompileError("no C++ compiler found (c++, g++, clang++ or $CXX)")
        chosen = os.environ.get("PGM_FAST_ISA") or _native_instruction_set(compiler)
        if chosen not in INSTRUCTION_SETS:
            raise CompileError(f"PGM_FAST_ISA is {chosen!r}, must be one of {', '.join(INSTRUCTION_SETS)}")
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        openmp = ["-fopenmp"] if _accepts(compiler, "-fopenmp") else []
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        baseline = [*includes, f'-DPGM_FAST_INSTRUCTION_SET="{chosen}"']
        units = {"bindings.cpp": baseline}
        units |= {f"cpu/{name}.cpp": [*INSTRUCTION_SETS[chosen][0], *openmp] for name in KERNELS}

        def compile_unit(unit: str) -> str:
            target = str(objects / (Path(unit).stem + ".o"))
            _run([compiler, *FLAGS, *units[unit], "-c", str(Path("csrc") / unit), "-o", target])
            return target

        with ThreadPoolExecutor(_jobs()) as pool:
            linked = list(pool.map(compile_unit, units))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        _run([compiler, "-shared", *undefined, *openmp, *linked, "-o", str(output)])


def _native_instruction_set(compiler: str) -> str:
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return next(name for name, (_, needed) in INSTRUCTION_SETS.items() if all(macro in macros for macro in needed))


def _accepts(compiler: str, flag: str) -> bool:
    command = [compiler, flag, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def _jobs() -> int:
    """MAX_JOBS, else one per core but not more than memory holds (about 1 GiB each)."""
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**31
    return max(1, min(os.cpu_count() or 1, memory // 2**30))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        raise CompileError(f"{' '.join(command)}\n{last}\npgm_fast is installed without its compiled CPU kernels")


def _extensions() -> list[Extension]:
    if os.environ.get("PGM_FAST_NO_NATIVE") or os.name != "posix":
        return []
    sources = ["csrc/bindings.cpp", *(f"csrc/cpu/{name}.cpp" for name in KERNELS)]
    # optional: a failed build warns and the package is installed without it
    return [Extension("pgm_fast._native", sources, optional=True)]


setup(
    packages=[*find_packages(include=["pgm_fast", "pgm_fast.*"]), "pgm_fast.kernels"],
    package_dir={"pgm_fast.kernels": "kernels"},
    ext_modules=_extensions(),
    cmdclass={"build_ext": BuildNative},
)
