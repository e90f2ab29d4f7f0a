"""Makes ``.venv`` ready to train and test: standard library only, run by the Makefile.

A torch that the calling Python can already import is used, through a path file, if it satisfies the range in
pyproject.toml (CUDA machines come with theirs); otherwise the one pinned in constraints.txt is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST_PYTHON = (3, 10)


def main() -> None:
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"error: Python {sys.version.split()[0]} is too old, 3.10 or newer is needed: make PYTHON=/path/to/it")
    if not PYTHON.exists():
        _run([sys.executable, "-m", "venv", str(VENV)], "on Debian and Ubuntu: apt install python3-venv")
    _pip("--upgrade", "pip", "setuptools>=77", "pybind11>=2.12,<4")
    constraint = ROOT / "constraints.txt"
    found = _importable_torch()
    if found is not None:
        version, folder = found
        print(f"using the torch {version} of {folder}", flush=True)
        _site_packages().joinpath("existing_torch.pth").write_text(f"{folder}\n")
        constraint = VENV / "constraints.txt"
        constraint.write_text(f"torch=={version}\n")
    # a compiled extension must be built against the torch that it will run with: that comes first, and no isolation
    _pip("--constraint", str(constraint), _torch_requirement())
    _pip(
        "--no-build-isolation",
        "--constraint",
        str(constraint),
        "--editable",
        f"{ROOT}[train,av,tables,hdf5,sweep,integrations,docs,test]",
    )


def _importable_torch() -> tuple[str, Path] | None:
    """Version and folder of a torch in the calling Python that satisfies the range, else None."""
    try:
        import torch
    except Exception as error:
        if not isinstance(error, ImportError):
            print(f"the torch of {sys.executable} cannot be imported ({error}); installing another", flush=True)
        return None
    wanted = _torch_requirement()
    program = (
        "import sys; from pip._vendor.packaging.requirements import Requirement; "
        "print(sys.argv[2] in Requirement(sys.argv[1]).specifier)"
    )
    version = str(torch.__version__)
    answer = subprocess.run(
        [PYTHON, "-c", program, wanted, version.partition("+")[0]], capture_output=True, text=True, check=True
    )
    if answer.stdout.strip() != "True":
        print(f"torch {version} does not satisfy {wanted}; installing another", flush=True)
        return None
    return version, Path(torch.__file__).resolve().parent.parent


def _torch_requirement() -> str:
    return re.search(r'"(torch[^"]*)"', (ROOT / "pyproject.toml").read_text()).group(1)


def _site_packages() -> Path:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True).stdout.strip())


def _pip(*arguments: str) -> None:
    _run(
        [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
        "see pip's message above",
    )


def _run(command: list[str], advice: str) -> None:
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} failed; {advice}")


if __name__ == "__main__":
    main()
