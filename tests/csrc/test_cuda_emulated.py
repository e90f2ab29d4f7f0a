"""The CUDA kernels run thread by thread on the CPU: indexing, scans, barriers and tables give the reference's numbers.

What this cannot show is what the GPU's own arithmetic, memory and scheduling do; tests/gpu shows that.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import BOUNDARIES, PARTITIONS, boundary_call, forward_and_gradients
from optimizer_cases import OPTIMIZERS, STORAGE, stepped
from tolerances import EPS, FP32, NATIVE_TIMES_EPS, OPTIMIZER_MOVE, SCAN_FP32, steps

import pgm_fast
from pgm_fast.backends import native
from pgm_fast.optim import kernels as optimizer_kernels

COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++")), None)
pytestmark = pytest.mark.skipif(
    COMPILER is None or importlib.util.find_spec("pybind11") is None, reason="needs g++ and pybind11"
)

EMULATOR = Path(__file__).resolve().parent / "emulator"
KERNEL = r"(\w+(?:<[^<>;]*>)?)<<<([^;]*?)>>>\(([^;]*?)\);"
DYNAMIC = "extern __shared__ __align__(16) unsigned char memory[];"
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def in_cpp(source: str) -> str:
    """CUDA's own syntax as calls of the emulator."""
    source = source.replace(DYNAMIC, "unsigned char* memory = emulated::dynamic.data();")
    return re.sub(KERNEL, r"emulated::launch(\2, [&] { \1(\3); });", source)


@pytest.fixture(scope="session")
def emulated(repository, tmp_path_factory):
    """``pgm_fast._cuda``, compiled against the emulator."""
    import pybind11

    folder = tmp_path_factory.mktemp("emulated")
    shutil.copytree(repository / "csrc", folder / "csrc")
    units = []
    for path in (folder / "csrc" / "cuda").iterdir():
        path.write_text(in_cpp(path.read_text(encoding="utf-8")), encoding="utf-8")
        assert "<<<" not in path.read_text(encoding="utf-8")
        if path.suffix in (".cu", ".cpp"):
            units.append(path)
    includes = [EMULATOR, pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = ["-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", '-DPGM_FAST_CUDA_ARCHITECTURES="emulated"', "-w"]

    def compile_unit(path: Path) -> str:
        target = path.with_suffix(f"{path.suffix}.o")
        command = [COMPILER, *flags, *(f"-I{x}" for x in includes), "-x", "c++", "-c", str(path), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(target)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(compile_unit, units))
    library = folder / "_cuda.so"
    subprocess.run([COMPILER, "-shared", *objects, "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_emulated(emulated, op, tensors, numbers, directions):
    """Outputs and gradients, with outputs poisoned before. ``numbers`` are the op's arguments after its tensors."""

    def matrix(x):
        return (0, 0, 0) if x is None else (x.data_ptr(), native.NATIVE_DTYPES[x.dtype], x.shape[-1])

    def call(name, inputs, outputs):
        made = [torch.full_like(x, float("nan")) for x in outputs]
        getattr(emulated, name)(len(tensors[0]), *map(matrix, inputs), *numbers, *map(matrix, made), 0, 0)
        return made

    plain = op.removesuffix("_with_share")
    gradients = [*directions, None] if op == plain else directions
    return [*call(op, tensors, directions), *call(f"{plain}_backward", [*gradients, *tensors], tensors)]


def compare(emulated, op, run, tensors, *numbers):
    generator = torch.Generator().manual_seed(1)
    with pgm_fast.backend("torch"):
        results, gradients = forward_and_gradients(run, tensors)
    want = results + gradients
    directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in results]
    for a, b in zip(run_emulated(emulated, op, tensors, numbers, directions), want, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (a.dtype != torch.float64)) * scale
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    op=st.sampled_from(sorted(PARTITIONS)),
    rows=st.integers(0, 9),
    gates=st.one_of(st.integers(1, 70), st.sampled_from([128, 256, 264, 300, 520])),
    chunk=st.sampled_from([1, 1, 1, 2, 5]),
    dtype=dtypes,
    z_dtype=dtypes,
    mixed=st.booleans(),
    offset=st.sampled_from([0, 0, 1]),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference_on_every_shape_and_dtype(
    emulated, op, rows, gates, chunk, dtype, z_dtype, mixed, offset, spread, seed
):
    if not mixed or (dtype == torch.float64) != (z_dtype == torch.float64):
        z_dtype = dtype
    generator = torch.Generator().manual_seed(seed)
    d = gates * chunk
    h = torch.randn(rows * d + offset, generator=generator).to(dtype)[offset:].view(rows, d)
    logits = [(spread * torch.randn(rows, gates, generator=generator)).to(z_dtype) for _ in range(PARTITIONS[op][1])]
    compare(emulated, op, partial(PARTITIONS[op][0], temperature=0.7), [h, *logits], 0.7)


@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    op=st.sampled_from(sorted(BOUNDARIES)),
    rows=st.integers(0, 9),
    d=st.one_of(st.integers(1, 70), st.sampled_from([128, 256, 264, 300, 520])),
    dtype=dtypes,
    b_dtype=dtypes,
    width=st.sampled_from([0.03, 0.12, 1.0, 1e3]),
    floor=st.sampled_from([0.0, 0.3]),
    detached=st.booleans(),
    seed=st.integers(0, 99),
)
def test_boundaries_equal_the_reference_on_every_shape_and_dtype(
    emulated, op, rows, d, dtype, b_dtype, width, floor, detached, seed
):
    if (dtype == torch.float64) != (b_dtype == torch.float64):
        b_dtype = dtype
    compare_boundary(emulated, op, rows, d, dtype, b_dtype, width, floor, detached, seed)


def compare_boundary(emulated, op, rows, d, dtype, b_dtype, width, floor, detached, seed):
    run, tensors = boundary_call(op, rows, d, dtype, b_dtype, width, floor, detached, seed)
    compare(emulated, op, run, tensors, width, floor, detached)


@pytest.mark.parametrize("op", [*PARTITIONS, *BOUNDARIES])
@pytest.mark.parametrize("d", [1024, 2600, 8192, 8200], ids="d={}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wide_rows_of_a_whole_block(emulated, op, d, dtype):
    """Several warps to a row, one of them not full; the widest that registers hold; and past that."""
    if op in BOUNDARIES:
        compare_boundary(emulated, op, 2, d, dtype, dtype, 0.12, 0.3, False, 0)
    else:
        run, count = PARTITIONS[op]
        compare(emulated, op, run, [torch.randn(2, d).to(dtype) for _ in range(count + 1)], 1.0)


@pytest.mark.parametrize("d", [40, 520, 1023])
def test_nan_reaches_the_outputs(emulated, d):
    h, z = torch.randn(2, d), torch.randn(2, d)
    z[1, d - 1] = float("nan")
    uni, paired, share, *_ = run_emulated(emulated, "partition_with_share", [h, z], [1.0], [h, h, torch.ones(2, 2)])
    assert uni[0].isfinite().all() and paired[0].isfinite().all() and share[0].isfinite().all()
    assert uni[1, :-1].isnan().all() and paired[1].isnan().all() and share[1].isnan().all()


@pytest.mark.parametrize("d", [40, 41, 520, 1023])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_boundary_that_is_not_finite_reaches_the_outputs_of_its_row(emulated, value, d):
    h, b = torch.randn(2, d), torch.tensor([[0.5], [value]])
    directions = [h, h, torch.ones(2, 4)]
    op = "partition_boundary_with_share"
    uni, paired, share, *gradients = run_emulated(emulated, op, [h, b, b], [0.12, 0.0, False], directions)
    assert all(x[0].isfinite().all() for x in (uni, paired, share, *gradients))
    assert uni[1, :-1].isnan().all() and all(x[1].isnan().all() for x in (paired, share, *gradients))


@pytest.mark.parametrize("d", [48, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1e-200, 1e-30, 1e-4, 1e30, 1e200])
def test_boundaries_out_of_sight_and_edges_of_any_sharpness_give_shares(emulated, width, dtype, d):
    """All or nothing beyond the row, a step at a sharp edge, a slope along the whole row at none; and gradients."""
    places = torch.tensor([-3e38, -1e18, -2.0, 0.3, 0.5, 3.0, 1e18, 3e38], dtype=dtype).unsqueeze(1)
    h, op = torch.ones(len(places), d, dtype=dtype), "partition_boundary_with_share"
    tensors, directions = [h, places, places.flip(0)], [h, h, torch.randn(len(h), 4, dtype=dtype)]
    *_, share, grad_h, by_uni, by_paired = run_emulated(emulated, op, tensors, [width, 0.0, False], directions)
    for gate, b in ((share[:, 0], places), (share[:, 1], places.flip(0))):
        want = torch.full_like(share[:, 0], 0.5) if width > 1 else b.clamp(0, 1).squeeze(1)
        torch.testing.assert_close(gate + share[:, 2], want, rtol=0, atol=steps(d) + SCAN_FP32)
    assert all(x.isfinite().all() for x in (grad_h, by_uni, by_paired))


@pytest.fixture
def by_emulator(emulated, monkeypatch):
    """Optimizers step by the emulated kernels."""

    def run(op, launch):
        if op == optimizer_kernels.STEP:
            emulated.multi_rate_step(launch.address, launch.finished.data_ptr(), 0, 0)
            assert launch.finished.item() == 0
        else:
            emulated.multi_rate_squares(launch.address, launch.partials.data_ptr(), launch.sums.data_ptr(), 0, 0)

    monkeypatch.setattr(optimizer_kernels, "run", run)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "master"), STORAGE, ids=str)
def test_a_step_is_that_of_the_reference(by_emulator, monkeypatch, name, dtype, master):
    got, _ = stepped(None, name, dtype, master)
    monkeypatch.undo()
    want, _ = stepped("torch", name, dtype, master)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=max(FP32, EPS[dtype]), atol=OPTIMIZER_MOVE[dtype])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(by_emulator, value):
    def spoil(step, gradient):
        if step == 1 and gradient.shape == (257,):
            gradient[0] = value

    got, optimizer = stepped(None, "adamw", torch.float32, None, skip_nonfinite=True, on_gradient=spoil)
    assert all(p.isfinite().all() for p in got) and optimizer.skipped_steps.item() == 1
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0, 3.0}
