"""What may be relied on at import: torch is enough, no device is touched, the command line says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from pgm_fast.env import EXTRAS

CORE = [
    "pgm_fast",
    "pgm_fast.ops",
    "pgm_fast.nn",
    "pgm_fast.optim",
    "pgm_fast.backends",
    "pgm_fast.errors",
    "pgm_fast.env",
]
OPTIONAL = ["triton", *EXTRAS["train"]]

HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def python(code, *, hidden=()):
    """Run code in a new interpreter in which the ``hidden`` packages are not installed."""
    code = HIDE.format(hidden=set(hidden)) + textwrap.dedent(code)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PGM_FAST"))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_importing_the_core_brings_in_torch_alone():
    """Beyond what torch itself imports, nothing of triton, numpy or the training packages is there."""
    done = python(f"""
        import importlib, torch
        before = set(sys.modules)
        for name in {CORE}:
            importlib.import_module(name)
        new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        assert "pgm_fast" in new
        assert not new & {set(OPTIONAL)}, new & {set(OPTIONAL)}
        assert not torch.cuda.is_initialized()
    """)
    assert done.returncode == 0, done.stderr


def test_the_core_works_where_nothing_else_is_installed():
    done = python(
        f"""
        import importlib, torch
        for name in {CORE}:
            importlib.import_module(name)
        from pgm_fast.ops import partition
        uni, paired = partition(torch.ones(2, 4), torch.zeros(2, 4))
        assert torch.equal(uni + paired, torch.ones(2, 4))
        """,
        hidden=OPTIONAL,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["typer", "rich", "omegaconf", "numpy"])
def test_the_command_line_names_the_package_that_it_lacks(package):
    done = python(
        """
        sys.argv = ["pgm-fast", "train", "--show-config"]
        from pgm_fast.cli import main
        main()
        """,
        hidden=[package],
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == [f'error: {package} is not installed, and pgm-fast needs it: pip install "pgm-fast[train]"']
    assert "Traceback" not in done.stderr


def test_importing_the_training_package_costs_nothing_until_it_is_used():
    done = python(
        """
        import pgm_fast.train
        assert "fit" in dir(pgm_fast.train)
        """,
        hidden=OPTIONAL,
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_module_of_ours_is_no_missing_package():
    """A fault inside the package keeps its traceback instead of sending people to pip."""
    done = python(
        """
        sys.modules["pgm_fast.cli.app"] = None
        from pgm_fast.cli import main
        main()
        """
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "pip install" not in done.stderr
