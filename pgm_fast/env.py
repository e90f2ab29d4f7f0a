"""What this machine has: versions, devices, compilers, backends, optional packages, as plain data.

Nothing is probed at import. :func:`versions` and :func:`git_commit` are cheap and touch no device; :func:`doctor` asks
the driver for its devices but allocates nothing on them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

__all__ = ["EXTRAS", "Fact", "checked_out", "choice", "doctor", "git_commit", "processor_name", "versions"]

# Extra of pyproject.toml -> {module: distribution}.
EXTRAS = {
    "train": {
        "numpy": "numpy",
        "omegaconf": "omegaconf",
        "typer": "typer",
        "rich": "rich",
        "torchmetrics": "torchmetrics",
        "sklearn": "scikit-learn",
        "matplotlib": "matplotlib",
        "tensorboard": "tensorboard",
        "safetensors": "safetensors",
    },
    "av": {"soundfile": "soundfile", "scipy": "scipy", "PIL": "pillow", "transformers": "transformers"},
    "tables": {"pyarrow": "pyarrow"},
    "hdf5": {"h5py": "h5py"},
    "sweep": {"optuna": "optuna"},
    "trackers": {"wandb": "wandb", "mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "test": {"pytest": "pytest", "xdist": "pytest-xdist", "hypothesis": "hypothesis", "triton": "triton"},
}
PIP = "python -m pip install"


@dataclass(frozen=True)
class Fact:
    """One thing that is usable here, or not.

    Attributes:
        group: ``device``, ``distributed``, ``compiler``, ``kernels`` or ``package``.
        name: of the thing.
        usable: whether it can be used now.
        detail: version, path or count where it is usable; the reason where it is not.
        fix: where it is not usable, the one command that changes it; None where no command does.
    """

    group: str
    name: str
    usable: bool
    detail: str
    fix: str | None = None


def versions() -> dict[str, str | None]:
    """Python, the platform, this package, torch and every optional package; None where one is not installed."""
    import torch

    from . import __version__

    names = ["triton", *EXTRAS["train"].values()]
    return {
        "pgm_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in names},
    }


def checked_out(path: str | os.PathLike = ".") -> str | None:
    """The commit checked out where ``path`` lies, from git's own files; None where there is none.

    Nothing is executed: git runs programs that a repository's configuration names, and the repository may be a
    stranger's.
    """
    folder = Path(path).resolve()
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        if git.is_file():  # a worktree's points to its folder
            git = parent / _short_text(git).removeprefix("gitdir:").strip()
        if git.is_dir():
            return _head(git)
    return None


def _head(git: Path) -> str | None:
    head = _short_text(git / "HEAD").strip()
    name = head.removeprefix("ref:").strip()
    if name != head:
        common = git / _short_text(git / "commondir").strip()
        head = _short_text(git / name).strip() or _short_text(common / name).strip() or _packed(common, name)
    return head if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", head) else None


def _packed(git: Path, name: str) -> str:
    lines = (line.split(" ") for line in _short_text(git / "packed-refs", 1 << 24).splitlines())
    return next((parts[0] for parts in lines if parts[-1] == name), "")


def _short_text(path: Path, limit: int = 4096) -> str:
    """The beginning of a plain file; nothing where there is none."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def processor_name() -> str:
    """What the CPU calls itself, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_commit(path: str | os.PathLike = ".") -> str | None:
    """The commit checked out where ``path`` lies, ``-dirty`` if tracked files differ; None where there is none.

    By running git, which runs what the repository's configuration names: for sources of one's own, see
    :func:`checked_out`.
    """
    folder = Path(path)
    folder = folder if folder.is_dir() else folder.parent
    # --no-optional-locks: do not refresh the index of someone's repository on the way.
    return _output(
        "git", "--no-optional-locks", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"
    )


def doctor() -> dict:
    """What is usable here, and for what is not, why and what changes it.

    Returns:
        ``{"versions": {...}, "facts": [Fact as a dict, ...], "ops": {op: {device: {backend: reason}}}}``, plain
        containers. The reason why a backend does not serve an op is None where it does.
    """
    facts = [*_devices(), *_distributed(), *_compilers(), _kernels(), _host_path(), _cuda_kernels(), *_packages()]
    facts += _left_out()
    return {"versions": versions(), "facts": [asdict(fact) for fact in facts], "ops": _ops()}


def choice(op: str, device: str = "cpu", dtype: str = "float32", shapes: Sequence[str] = ()) -> dict:
    """Which backend a call of an op takes here, and why; nothing is computed.

    Args:
        op: its name, such as partition, with ``_backward`` for its backward.
        device: type of the tensors' device, ``cpu`` or ``cuda``.
        dtype: of the op's tensors, such as ``bfloat16``.
        shapes: ``h=4096x1024``, one for each tensor of the op, more than one for a list of tensors; none for what
            holds whatever the shapes are. Optional tensors that are not named are left out.

    Returns:
        ``{"op", "device", "dtype", "shapes", "backend", "reasons"}``: the backend is None where the call raises;
        the reasons say of each backend why it is taken or not.

    Raises:
        PgmFastError: an op, dtype or shape that there is not, or a tensor without a shape beside others that have one.
    """
    import torch

    from . import PgmFastError, backends, ops  # noqa: F401  (importing the ops registers them)

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise PgmFastError(f"dtype must be a floating-point one such as float32 or bfloat16, got {dtype!r}")
    if device not in ("cpu", "cuda"):
        raise PgmFastError(f"device must be cpu or cuda, got {device!r}")
    backends.check_op(op)
    arguments = tuple(_arguments(op, kind, shapes)) if shapes else None
    backend, reasons = backends.explain(op, device, kind, arguments)
    about = {"op": op, "device": device, "dtype": dtype, "shapes": list(shapes)}
    return about | {"backend": backend, "reasons": reasons}


def _arguments(op: str, dtype, shapes: Sequence[str]):
    """Arguments of an op's schema: tensors without memory, and numbers that stand for any."""
    import torch

    from . import PgmFastError

    given: dict[str, list] = {}
    for shape in shapes:
        name, _, sizes = shape.partition("=")
        if not re.fullmatch(r"\d+(x\d+)*", sizes):
            raise PgmFastError(f"a shape is a tensor's name and its sizes, such as h=4096x1024, got {shape!r}")
        given.setdefault(name, []).append(torch.empty(*map(int, sizes.split("x")), dtype=dtype, device="meta"))
    declared = getattr(torch.ops.pgm_fast, op).default._schema.arguments
    tensors = [argument.name for argument in declared if "Tensor" in str(argument.type)]
    unknown = sorted(set(given) - set(tensors))
    if unknown:
        raise PgmFastError(f"{op} has no tensor {', '.join(unknown)}; its tensors are {', '.join(tensors)}")
    for argument in declared:
        kind = str(argument.type)
        if "Tensor" not in kind:
            yield {"float": 1.0, "int": 0, "bool": False}.get(kind)
        elif argument.name in given:
            yield given[argument.name] if kind.startswith("List") else given[argument.name][0]
        elif kind.startswith("Optional"):
            yield None
        else:
            raise PgmFastError(f"{op} takes {argument.name}: add --shape {argument.name}=ROWSxCOLUMNS")


def _devices() -> list[Fact]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [Fact("device", "cpu", True, f"{cores} cores, torch uses {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            detail = (
                f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
            )
            facts.append(Fact("device", f"cuda:{number}", True, detail))
    else:
        facts.append(Fact("device", "cuda", False, *_why_no_cuda()))
    return facts


def _why_no_cuda() -> tuple[str, str | None]:
    import torch

    driver = os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None
    if not driver:
        return "no NVIDIA driver on this machine, which takes an NVIDIA GPU", None
    if torch.version.cuda is None:
        command = f"{PIP} --force-reinstall torch=={torch.__version__.split('+')[0]}"
        return f"this torch ({torch.__version__}) is built without CUDA", command
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every device", "unset CUDA_VISIBLE_DEVICES"
    return (
        f"torch (CUDA {torch.version.cuda}) finds no device that it can use; nvidia-smi shows driver and devices",
        None,
    )


def _distributed() -> list[Fact]:
    import torch.distributed as dist

    if not dist.is_available():
        return [
            Fact(
                "distributed",
                "torch.distributed",
                False,
                "this torch is built without it",
                f"{PIP} --force-reinstall torch",
            )
        ]
    facts = [Fact("distributed", "gloo", dist.is_gloo_available(), "several processes on CPUs")]
    if dist.is_nccl_available():
        return [*facts, Fact("distributed", "nccl", True, "several processes on GPUs")]
    return [*facts, Fact("distributed", "nccl", False, "comes with a torch that is built for CUDA", None)]


def _compilers() -> list[Fact]:
    return [
        _tool(
            "c++",
            [os.environ.get("CXX"), "c++", "g++", "clang++"],
            r"\d+\.\d+\.\d+",
            "conda install -c conda-forge cxx-compiler",
        ),
        _tool("ninja", ["ninja"], r"[\d.]+", f"{PIP} ninja"),
        _tool("nvcc", ["nvcc"], r"V[\d.]+", "conda install -c nvidia cuda-nvcc"),
    ]


def _tool(name: str, candidates: Sequence[str | None], version: str, fix: str) -> Fact:
    path = next(filter(None, map(shutil.which, filter(None, candidates))), None)
    if path is None:
        return Fact("compiler", name, False, "not on PATH", fix)
    found = re.search(version, _output(path, "--version") or "")
    return Fact("compiler", name, True, f"{path} {found.group() if found else ''}".strip())


def _kernels() -> Fact:
    name = "compiled CPU kernels"
    try:
        from . import _native
    except ImportError as error:
        found = util.find_spec("pgm_fast._native") is not None
        reason = str(error) if found else "not built; that takes a C++ compiler while the package is installed"
        return Fact(
            "kernels", name, False, reason, f"{PIP} --force-reinstall --no-deps .  # in the folder of the sources"
        )
    return Fact("kernels", name, True, f"built for {_native.instruction_set}")


def _host_path() -> Fact:
    from . import ops  # noqa: F401  (importing the ops tells whether it was built for them)
    from .backends import host

    name = "compiled host path"
    try:
        host.load()
    except (ImportError, OSError) as error:
        found = util.find_spec(f"pgm_fast.{host.module_name()}") is not None
        reason = str(error) if found else f"not built for torch {_version('torch')}; small calls are slower without it"
        command = f"{PIP} --force-reinstall --no-deps --no-build-isolation .  # in the folder of the sources"
        return Fact("kernels", name, False, reason, command)
    return Fact("kernels", name, True, f"built for torch {_version('torch')}")


def _cuda_kernels() -> Fact:
    import torch

    name = "compiled CUDA kernels"
    # loading them touches no device
    try:
        from . import _cuda
    except (ImportError, OSError) as error:
        build = f"{PIP} --force-reinstall --no-deps --no-build-isolation .  # in the folder of the sources"
        if util.find_spec("pgm_fast._cuda") is not None:
            return Fact("kernels", name, False, str(error), build)
        if shutil.which("nvcc") is None:
            return Fact("kernels", name, False, "not built; that takes nvcc", "conda install -c nvidia cuda-nvcc")
        if torch.version.cuda is None:
            reason = f"not built; torch {torch.__version__} is built without CUDA and could not use them"
            return Fact("kernels", name, False, reason, f"PGM_FAST_CUDA=1 {build}")
        reason = "not built; that takes nvcc and a CUDA build of torch while the package is installed"
        return Fact("kernels", name, False, reason, build)
    return Fact("kernels", name, True, f"built for {_cuda.architectures}")


def _left_out() -> list[Fact]:
    """Kernels that a device of this process turned out not to be able to start."""
    from . import backends

    return [
        Fact("kernels", f"{op} of {str(dtype).removeprefix('torch.')} on {device} by {name}", False, reason)
        for (op, device, dtype, name), reason in backends.left_out().items()
    ]


def _packages() -> list[Fact]:
    facts = []
    for extra, packages in EXTRAS.items():
        facts += [_package(module, name, f'{PIP} "pgm-fast[{extra}]"') for module, name in packages.items()]
    return facts


def _package(module: str, name: str, fix: str | None) -> Fact:
    if util.find_spec(module) is None:
        return Fact("package", name, False, "not installed", fix)
    return Fact("package", name, True, _version(name) or "installed")


def _ops() -> dict[str, dict[str, dict[str, str | None]]]:
    import torch

    from . import backends, ops  # noqa: F401  (importing the ops registers them)

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    table = {device: backends.implementations(device) for device in devices}
    return {op: {device: found[op] for device, found in table.items()} for op in table["cpu"]}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
