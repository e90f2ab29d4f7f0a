"""The same with the Triton that GPU machines have: torch there brings a release of its own, with its own assembler.

Each test is a pytest of its own over test_compiled.py, with that release in front of the one installed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed (Linux only): pip install triton")

from kernel_compiler import SHARED  # noqa: E402

# A partition, products on matrix units, gathered ones and the optimizer, of each what spilled or nearly did with this
# release and no other.
FEW = ("partition-share-20000x1", "decoder-narrow", "duc-tf32-large", "linear-narrow", "adamw-float32")
RUNS = {"few": f"sm_90 and ({' or '.join(FEW)})", "others": "not sm_"} | {
    f"sm_{capability}": f"sm_{capability}" for capability in SHARED
}
PROGRAM = """
import sys, pytest, triton
assert triton.__version__ == sys.argv[1], f"triton {triton.__version__} of {triton.__file__}"
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "selected", [pytest.param(run, id=name, marks=[pytest.mark.slow] * (name != "few")) for name, run in RUNS.items()]
)
def test_compiles_with_the_triton_of_gpu_machines(selected: str, repository: Path, script):
    pinned = script("tools/pinned_triton.py")
    if triton.__version__ == pinned.VERSION:
        pytest.skip(f"triton {pinned.VERSION} is the one installed: test_compiled.py has compiled with it")
    try:
        path = pinned.folder()
    except pinned.Unavailable as error:
        pytest.skip(str(error))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    options = ["-p", "no:cacheprovider", "-q", str(Path(__file__).with_name("test_compiled.py")), "-k", selected]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, pinned.VERSION, *options],
        env=environment | {"PYTHONPATH": str(path)},
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout
