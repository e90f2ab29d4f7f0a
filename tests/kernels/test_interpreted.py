"""Triton kernels on CPU tensors, under Triton's interpreter.

The interpreter must be on before triton is imported and replaces the compiler for the whole process: these tests run in
a pytest of their own. To run one file by hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/test_x.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (Linux only): pip install triton")

HERE = Path(__file__).parent
OWN = sorted((HERE / "interpreted").glob("test_*.py"))
PRODUCT_FILES = ("test_duc_loss.py", "test_partitioned_linear.py", "test_reconstruction.py")
RUNS = {
    "products": [*(str(path) for path in OWN if path.name in PRODUCT_FILES), "-m", "not slow"],
    "others": [*(str(path) for path in OWN if path.name not in PRODUCT_FILES), "-m", "not slow"],
    "rest": [*map(str, OWN), "-m", "slow"],
}
# Left out: finite differences, which call a kernel a hundred times (gradients are held against the plain formula's in
# fp64 as it is), rows of 5000, which the interpreter scans in one chain of fp32 additions as no GPU does, and errors of
# rows of 96 with shares, where such a chain is at the bound against torch's scan on the CPU, which adds in fp64.
CONTRACT = "triton and not finite_differences and not 5000 and not (96-torch.float32 and with_share)"
# Products have no fp64 kernel, and the interpreter multiplies the bit patterns of bf16.
PRODUCTS = "linear or reconstruction or duc_loss"
# One activation stands for all here, and rows of 8192 take the interpreter a minute; interpreted/ has both in its way.
NOT_FOR_PRODUCTS = "fp64 or bfloat16 or autocast or None or relu or silu or wide_rows"
# What takes most of the time and says least: the interpreter's errors are numpy's; how an op is registered and what it
# refuses or compiles to is the same whatever computes it, and the other backends pass through it; a second temperature
# and expanded inputs are one more number and one more stride for the same kernels.
SAYS_LESS = (
    "error_is_at_most or opcheck or graph_break or second_derivative or wrong_temperature or wrong_tensors or 3.14 or "
    "(strides and expanded)"
)
OF_OPS = f"(({CONTRACT}) and not ({PRODUCTS}) or ({CONTRACT}) and ({PRODUCTS}) and not ({NOT_FOR_PRODUCTS}))"
RUNS["contract"] = [str(HERE.parent / "ops" / "test_op_contract.py"), "-k", f"{OF_OPS} and not ({SAYS_LESS})"]
RUNS["contract, the rest"] = [str(HERE.parent / "ops" / "test_op_contract.py"), "-k", f"{OF_OPS} and ({SAYS_LESS})"]
# What of the optimizers' tests rests on their kernels. Left out: long runs, and the rounding of float32 to bfloat16,
# where the interpreter drops bits.
OPTIMIZERS = {
    "test_multi_rate.py": "groups_layouts or kth_step or skipped_step or beyond_two",
    "test_multi_rate_precision.py": "not (move_as_float32 and (lambda or dtype0)) and not (wrote and float32)",
    "test_multi_rate_state.py": "begun_with_one or tables_are_made or changed_rate",
    "test_multi_rate_graphs.py": "test",
}
RUNS["optimizers"] = [
    *(str(HERE.parent / "optim" / file) for file in OPTIMIZERS),
    "-k",
    " or ".join(f"{file} and ({selection})" for file, selection in OPTIMIZERS.items()),
]
SLOW = {"contract, the rest", "rest"}


@pytest.mark.parametrize(
    "selected", [pytest.param(run, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, run in RUNS.items()]
)
def test_passes_under_the_interpreter(selected: list[str], repository: Path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PGM_FAST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *selected],
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
