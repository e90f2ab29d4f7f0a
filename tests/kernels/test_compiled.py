"""Every Triton kernel compiles for the GPUs served, with no GPU here, to the machine code that is meant."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed (Linux only): pip install triton")

from kernel_cases import CASES, Case  # noqa: E402
from kernel_compiler import compile_launch, record_launches  # noqa: E402

DOUBLE_ARITHMETIC = r"D(?:ADD|MUL|FMA|SETP|MNMX)\b"
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_capability = pytest.mark.parametrize(
    "capability",
    [90, pytest.param(80, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)],
    ids="sm_{}".format,
)


@by_capability
@by_case
def test_compiles_to_the_instructions_meant(case: Case, capability: int):
    for launch in record_launches(case.call):
        made = compile_launch(launch, capability)
        name = launch.kernel.__name__
        if not case.double:
            # fp64 is for checks: there some releases of triton need a few bytes of stack
            assert made.stack == 0 and made.count("(LDL|STL)") == 0, f"{name} spills: {made.usage}"
        if case.double_scalars:
            assert not made.count(DOUBLE_ARITHMETIC), f"{name} computes in fp64"
        elif not (case.double or case.double_norm):
            assert ".f64" not in made.ptx, f"{name} computes in fp64"
        if case.wide:
            assert "ld.global.v4.b32" in made.ptx and "st.global.v4.b32" in made.ptx, f"{name} has narrow accesses"
            assert made.count(r"LDG\.E\.128") and made.count(r"STG\.E\.128"), f"{name} has narrow accesses"
        if name in case.matrix + case.gathered:
            assert made.count({80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[capability]), f"{name} has no matrix product"
        if name in case.matrix:
            assert made.count(r"LDGSTS\S*\.128"), f"{name} copies its operands in pieces"


def test_every_kernel_has_a_case(repository: Path):
    """A kernel is what is launched, and its name says so: a jitted function whose name ends in _kernel."""
    there = set()
    for path in (repository / "kernels").glob("*.py"):
        module = importlib.import_module(f"pgm_fast.kernels.{path.stem}")
        functions = [x for x in vars(module).values() if isinstance(x, triton.JITFunction)]
        there |= {x.__name__ for x in functions if x.__module__ == module.__name__ and x.__name__.endswith("_kernel")}
    assert there == {launch.kernel.__name__ for case in CASES for launch in record_launches(case.call)}
