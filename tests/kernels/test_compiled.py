"""Every Triton kernel compiles for the GPUs served, with no GPU here, to the machine code that is meant."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed (Linux only): pip install triton")

from kernel_cases import CASES, Case, _decoder, _duc, _gaussian, _linear  # noqa: E402
from kernel_compiler import SHARED, compile_launch, record_launches  # noqa: E402

ANY_MATRIX = r"(HMMA|HGMMA|UTC\w*MMA)"
# What two products read, one of them transposed, is not copied ahead where operands are in registers.
NOT_COPIED = {("gathered_grad_kernel", False)}
MATRIX = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
DOUBLE_ARITHMETIC = r"D(?:ADD|MUL|FMA|SETP|MNMX)\b"


def _by_case(cases: list[Case]):
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.rare) for case in cases]
    )


@pytest.mark.parametrize(
    "capability",
    [90, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 89, 100))],
    ids="sm_{}".format,
)
@_by_case(CASES)
def test_compiles_to_the_instructions_meant(case: Case, capability: int):
    for launch in record_launches(case.call, capability):
        made = compile_launch(launch, capability)
        name = launch.kernel.__name__
        assert made.shared <= SHARED[capability], f"{name} asks for {made.shared} bytes of shared memory"
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
        if name in case.matrix:
            assert made.count(MATRIX[capability]), f"{name} has no matrix product"
        if name in case.gathered + case.tf32:
            assert made.count(ANY_MATRIX), f"{name} has no matrix product"
        if name in case.matrix and (name, capability >= 90) not in NOT_COPIED:
            assert made.count(r"LDGSTS\S*\.128"), f"{name} copies its operands in pieces"
        assert not made.warnings, f"{name} waits for every product: {made.warnings}"


PRODUCTS = [case for case in CASES if case.matrix or case.gathered or case.tf32]


@_by_case(PRODUCTS)
def test_products_stay_in_what_the_smallest_device_gives(case: Case):
    for launch in record_launches(case.call, 89):
        made, name = compile_launch(launch, 89), launch.kernel.__name__
        assert made.shared <= SHARED[89], f"{name} asks for {made.shared} bytes of shared memory"
        assert made.stack == 0, f"{name} spills: {made.usage}"


BATCHES = (1, 7, 16, 33, 64, 100, 128, 511, 4096, 4097)


def _linear_of(rows: int) -> None:
    _linear([(rows, 512, 1, 128, 64)], "gelu", torch.bfloat16)


def _decoder_of(rows: int) -> None:
    _decoder(rows, 512, 128, 64, False, True, torch.bfloat16)


def _duc_of(rows: int) -> None:
    _duc(rows, 512, 200 + rows % 7, False, False, torch.bfloat16)


def _split_of(rows: int) -> None:
    kernels = importlib.import_module("pgm_fast.kernels.partition")
    h = torch.empty(rows, 512, dtype=torch.bfloat16, device="meta")
    kernels.forward(h, h, 0.5)
    kernels.backward(h, h, None, h, h, 0.5)


def _gaussian_of(rows: int) -> None:
    _gaussian(rows, 512, 1, True, True, torch.bfloat16)


@pytest.mark.parametrize("call", [_linear_of, _decoder_of, _duc_of, _split_of, _gaussian_of])
def test_a_batch_of_another_size_compiles_nothing_but_other_tiles(call):
    """Ten sizes: one binary for each choice of tiles, of which there are small and large ones, and for each type of
    output, which sums over parts of the batch have of their own."""
    binaries, choices = set(), set()
    for rows in BATCHES:
        for launch in record_launches(partial(call, rows)):
            binaries.add(replace(launch, grid=()))
            meant = [position for position, parameter in enumerate(launch.kernel.params) if parameter.is_constexpr]
            constants = tuple((path, value) for path, value in launch.constants if path[0] in meant)
            pointers = tuple(kind for _, kind in launch.signature if "*" in str(kind))
            choices.add((launch.kernel.__name__, constants, pointers, launch.options))
    assert len(binaries) == len(choices)
    of_kernel = Counter(name for name, *_ in choices)
    assert max(of_kernel.values()) <= 3, of_kernel


def test_every_kernel_has_a_case(repository: Path):
    """A kernel is what is launched, and its name says so: a jitted function whose name ends in _kernel."""
    there = set()
    for path in (repository / "kernels").glob("*.py"):
        module = importlib.import_module(f"pgm_fast.kernels.{path.stem}")
        functions = [x for x in vars(module).values() if isinstance(x, triton.JITFunction)]
        there |= {x.__name__ for x in functions if x.__module__ == module.__name__ and x.__name__.endswith("_kernel")}
    assert there == {launch.kernel.__name__ for case in CASES for launch in record_launches(case.call)}
