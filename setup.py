"""Maps ``kernels/`` to ``pgm_fast.kernels`` and builds the kernels of ``csrc/`` where there is a compiler.

The compiled kernels include no header of torch, so they are built with or without torch at hand and fit every version
of it. Where torch can be imported while building (``pip install --no-build-isolation``), the host path of
``csrc/torch`` is built too, for that version of torch: it calls the same kernels without Python's overhead. Without a
compiler or pybind11 the package is pure Python and the plain PyTorch path serves; ``pgm-fast doctor`` says what is
missing. The CUDA kernels are built where nvcc is found and the torch at hand is built for CUDA.

Environment: CXX, the compiler; PGM_FAST_ISA=avx512|avx2|scalar instead of what this machine has; PGM_FAST_NO_NATIVE=1
to build none; PGM_FAST_CUDA=1|0 to build the CUDA kernels whatever torch is at hand, or not at all; CUDA_HOME, where
nvcc is not on the PATH; TORCH_CUDA_ARCH_LIST="9.0;10.0+PTX", the devices to build for; MAX_JOBS, compilers at a time.
"""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = "pgm_fast._native"
CUDA = "pgm_fast._cuda"
CUDA_FLAGS = ["-O3", "-std=c++17", "-DNDEBUG", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
# machine code for these, and for later ones the last as PTX; what nvcc does not know is left out
CUDA_ARCHITECTURES = ["8.0", "9.0", "10.0"]
FLAGS = ["-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-DNDEBUG"]
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
    """Compiles the kernels for this machine's instruction set, once for all extensions, and what calls them for the
    baseline, which refuses to load elsewhere."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except (ImportError, OSError, StopIteration) as error:
            # whatever keeps the kernels from being built, the package is installed without them
            raise CompileError(str(error)) from error

    def _build(self, ext: Extension) -> None:
        import pybind11

        if ext.name == CUDA:
            self._build_cuda(ext)
            return
        flags = [f'-DPGM_FAST_INSTRUCTION_SET="{self._instruction_set}"', f"-I{sysconfig.get_paths()['include']}"]
        libraries = []
        if ext.name == NATIVE:
            flags += ["-std=c++17", f"-I{pybind11.get_include()}"]
        else:
            # without OpenMP at::parallel_for is a plain loop
            flags, libraries = _for_torch(ext, [*flags, *self._openmp])
            flags += self._parsed("csrc/torch/registration.h", flags)
        kernels = set(_units("cpu/*.cpp"))
        objects = self._compile({unit: flags for unit in ext.sources if unit not in kernels})
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        linked = [*objects, *self._kernels]
        _run([self._compiler, "-shared", *undefined, *self._openmp, *linked, *libraries, "-o", str(output)])

    def _build_cuda(self, ext: Extension) -> None:
        """All by nvcc, which knows where its headers and its runtime are; the runtime is linked in, so that importing
        the extension needs no CUDA library."""
        import pybind11

        nvcc = _nvcc()
        if nvcc is None:
            raise CompileError("no nvcc found (PATH or $CUDA_HOME/bin)")
        names, targets = _cuda_targets(nvcc)
        host = ["-ccbin", os.environ["CXX"]] if "CXX" in os.environ else []
        binding = [f'-DPGM_FAST_CUDA_ARCHITECTURES="{names}"', f"-I{sysconfig.get_paths()['include']}"]
        flags = {
            unit: targets if unit.endswith(".cu") else [*binding, f"-I{pybind11.get_include()}"] for unit in ext.sources
        }

        def compile_unit(unit: str) -> str:
            return self._object(unit, [nvcc, *host, *CUDA_FLAGS, *flags[unit]])

        with ThreadPoolExecutor(_jobs()) as pool:
            objects = list(pool.map(compile_unit, ext.sources))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        _run([nvcc, *host, "-shared", "-cudart", "static", *targets, *objects, "-o", str(output)])

    @cached_property
    def _compiler(self) -> str:
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None:
            raise CompileError("no C++ compiler found (c++, g++, clang++ or $CXX)")
        return compiler

    @cached_property
    def _instruction_set(self) -> str:
        chosen = os.environ.get("PGM_FAST_ISA") or _native_instruction_set(self._compiler)
        if chosen not in INSTRUCTION_SETS:
            raise CompileError(f"PGM_FAST_ISA is {chosen!r}, must be one of {', '.join(INSTRUCTION_SETS)}")
        return chosen

    @cached_property
    def _openmp(self) -> list[str]:
        return ["-fopenmp"] if _accepts(self._compiler, "-fopenmp") else []

    @cached_property
    def _kernels(self) -> list[str]:
        flags = ["-std=c++17", *INSTRUCTION_SETS[self._instruction_set][0], *self._openmp]
        return self._compile({unit: flags for unit in _units("cpu/*.cpp")})

    def _parsed(self, header: str, flags: list[str]) -> list[str]:
        """Flags by which units find ``header`` parsed: torch's headers in it take two thirds of their time."""
        copy = Path(self.build_temp) / "parsed" / Path(header).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(f'#include "{Path(header).resolve()}"\n', encoding="utf-8")
        self._make(f"{copy}.gch", header, [self._compiler, *FLAGS, *flags, "-x", "c++-header", str(copy)])
        return ["-include", str(copy)]

    def _compile(self, units: dict[str, list[str]]) -> list[str]:
        """Object files of the units, each compiled with its flags."""

        def compile_unit(unit: str) -> str:
            return self._object(unit, [self._compiler, *FLAGS, *units[unit]])

        with ThreadPoolExecutor(_jobs()) as pool:
            return list(pool.map(compile_unit, units))

    def _object(self, unit: str, command: list[str]) -> str:
        target = Path(self.build_temp) / Path(unit).with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._make(str(target), unit, [*command, "-c", unit])
        return str(target)

    def _make(self, target: str, source: str, command: list[str]) -> None:
        """Runs ``command``, unless it made ``target`` before and neither the source nor a header changed since."""
        command = [*command, "-o", target]
        made = Path(f"{target}.command")
        read = [Path(source), *Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.cuh")]
        if not self.force and made.exists() and made.read_text(encoding="utf-8") == " ".join(command):
            if all(path.stat().st_mtime < made.stat().st_mtime for path in read):
                return
        made.unlink(missing_ok=True)
        _run(command)
        made.write_text(" ".join(command), encoding="utf-8")


def _for_torch(ext: Extension, flags: list[str]) -> tuple[list[str], list[str]]:
    """Compiler flags and libraries of an extension that includes torch's headers."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    digest = runpy.run_path("pgm_fast/backends/host.py")["digest"]
    schemas = " ".join(f"{name}:{digest(schema)}" for name, schema in _schemas().items())
    flags = [
        *flags,
        "-std=c++20",  # what torch's own headers are written in
        # as system headers: their warnings are not ours
        *(argument for path in include_paths() for argument in ("-isystem", path)),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-DPGM_FAST_HOST_NAME={ext.name.rpartition('.')[2]}",
        f'-DPGM_FAST_SCHEMAS="{schemas}"',
    ]
    # found at run time by name: torch has loaded them before the extension is
    libraries = [f"-L{path}" for path in library_paths()]
    return flags, [*libraries, "-lc10", "-ltorch_cpu", "-ltorch_python"]


def _schemas() -> dict[str, str]:
    """name -> schema of the ops, read off their sources: importing them would load what is being built."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(Path("pgm_fast/ops").glob("*.py"))]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    defining = [call for call in calls if getattr(call.func, "id", None) in ("define", "define_backward")]
    schemas = [call.args[0].value for call in defining if isinstance(call.args[0], ast.Constant)]
    return {schema.partition("(")[0]: schema for schema in schemas}


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
        raise CompileError(f"{' '.join(command)}\n{last}\npgm_fast is installed without what this would have built")


def _units(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in Path("csrc").glob(pattern))


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


def _cuda_targets(nvcc: str) -> tuple[str, list[str]]:
    """What to build for, in words and as nvcc's flags."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not asked:
        listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
        asked = [name for name in CUDA_ARCHITECTURES if f"sm_{name.replace('.', '')}" in listed]
        if not asked:
            raise CompileError(
                f"{nvcc} builds for none of {', '.join(CUDA_ARCHITECTURES)}; it lists {' '.join(listed)}"
            )
        asked[-1] += "+PTX"
    flags = []
    for name in asked:
        number = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if number is None:
            raise CompileError(f"TORCH_CUDA_ARCH_LIST has {name!r}; it takes numbers such as 8.0 9.0 10.0+PTX")
        code = "".join(number.groups()[:3])
        kinds = ["sm", "compute"] if number[4] else ["sm"]
        flags += [f"-gencode=arch=compute_{code},code={kind}_{code}" for kind in kinds]
    return " ".join(asked), flags


def _wants_cuda() -> bool:
    asked = os.environ.get("PGM_FAST_CUDA")
    if asked is not None:
        return asked != "0"
    return _nvcc() is not None and _torch_facts().get("cuda") is not None


def _torch_facts() -> dict:
    """``torch/version.py`` of the torch that the build could import, without importing torch; empty where none is."""
    try:
        return runpy.run_path(str(Path(find_spec("torch").origin).with_name("version.py")))
    except (ImportError, ValueError, AttributeError, TypeError, OSError):
        return {}


def _extensions() -> list[Extension]:
    """All optional: a failed build warns and the package is installed without it."""
    if os.environ.get("PGM_FAST_NO_NATIVE") or os.name != "posix":
        return []
    extensions = [Extension(NATIVE, ["csrc/bindings.cpp", *_units("cpu/*.cpp")], optional=True)]
    version = _torch_facts().get("__version__")
    if version is not None:
        # the name that pgm_fast/backends/host.py loads
        name = "pgm_fast._host_torch_" + re.sub(r"\W", "_", version)
        extensions.append(Extension(name, [*_units("torch/*.cpp"), *_units("cpu/*.cpp")], optional=True))
    if _wants_cuda():
        extensions.append(Extension(CUDA, ["csrc/cuda/bindings.cpp", *_units("cuda/*.cu")], optional=True))
    return extensions


setup(
    packages=[
        *find_packages(include=["pgm_fast", "pgm_fast.*"]),
        *find_namespace_packages(include=["pgm_fast.presets.*"], exclude=["*.__pycache__"]),  # folders of YAML files
        "pgm_fast.kernels",
    ],
    package_dir={"pgm_fast.kernels": "kernels"},
    package_data={"": ["*.yaml"], "pgm_fast": ["py.typed"]},
    ext_modules=_extensions(),
    cmdclass={"build_ext": BuildNative},
)
