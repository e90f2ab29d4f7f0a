"""The compiled host path: the same numbers, choices and refusals as without it."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools
import torch
from op_cases import forward_and_gradients
from tolerances import FP64

import pgm_fast
from pgm_fast import backends, ops
from pgm_fast.backends import host
from pgm_fast.ops import registration

pytestmark = pytest.mark.skipif(
    host.load_or_none() is None or backends.implementations()["partition"]["native"] is not None,
    reason="the host path or the kernels are not built here",
)

WITHOUT = f"""
import sys
sys.modules["pgm_fast.{host.module_name()}"] = None
"""
PROGRAM = """
import torch, pgm_fast
from pgm_fast import backends, ops
sys.path.insert(0, {tests!r})
from op_cases import CASES, PARTITIONS, forward_and_gradients
found = {{}}
for case in CASES:
    if case.name in PARTITIONS:
        for dtype in (torch.float32, torch.bfloat16):
            with pgm_fast.backend(case.backend):
                for again in range(2):
                    found[case.id, dtype, again] = sum(forward_and_gradients(case.run, case.tensors(9, 37, dtype)), [])
torch.save((found, backends.implementations()["partitioned_linear"]["native"]), {to!r})
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_partitions_are_bitwise_the_same_without_it(tmp_path, repository):
    results = []
    for name, prelude in (("with", "import sys\n"), ("without", WITHOUT)):
        to = str(tmp_path / name)
        done = run(prelude + PROGRAM.format(tests=str(repository / "tests"), to=to))
        assert done.returncode == 0, done.stderr
        results.append(torch.load(to))
    (having, no_reason), (lacking, reason) = results
    assert no_reason is None and "needs the compiled host path" in reason
    assert having.keys() == lacking.keys() and having
    for key in having:
        assert all(torch.equal(a, b) for a, b in zip(having[key], lacking[key], strict=True)), key


@pytest.mark.parametrize(
    "chosen",
    [
        "plain_formula or output_alone or unused_share",
        pytest.param("opcheck or second_derivative", marks=pytest.mark.slow),
    ],
)
def test_every_op_works_without_it(repository, chosen):
    """The contract of all ops, on the backends that are left."""
    tests = [str(repository / "tests" / "ops" / f"test_{name}.py") for name in ("op_contract", "partition_share")]
    program = (
        WITHOUT + f"import pytest\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', {chosen!r}, *{tests}]))"
    )
    done = run(program)
    assert done.returncode == 0, done.stdout[-3000:]


def test_one_that_was_built_for_other_schemas_is_left_out_and_everything_works(repository, tmp_path):
    """As after an update of the sources without a build: the kernels would take other arguments than they are given."""
    shutil.copytree(repository / "pgm_fast", tmp_path / "pgm_fast", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "pgm_fast" / "ops" / "partitioned_linear.py"
    changed = source.read_text().replace(
        "w_paired, str? activation, float temperature)", "w_paired, str? activation, float temperature, int more=0)"
    )
    assert changed != source.read_text()
    source.write_text(changed.replace("activation, temperature):", "activation, temperature, more=0):"))
    program = """
import torch, pgm_fast
from pgm_fast import backends, ops
assert pgm_fast.__file__.startswith({tree!r}), pgm_fast.__file__
x = [torch.randn(4, 8, requires_grad=True), torch.randn(4, 8), torch.randn(3, 8), None, torch.randn(2, 8), None]
sum(part.sum() for part in ops.partitioned_linear(*x)).backward()
sum(part.sum() for part in ops.partition(x[0], x[1])).backward()
print(backends.implementations()["partitioned_linear"]["native"])
"""
    # the tree of the working directory, wherever these tests take the package from
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, "-c", program.format(tree=str(tmp_path))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    reason = "needs the compiled host path, which was built for another partitioned_linear_backward; install again"
    assert done.stdout.strip() == reason
    assert done.stderr.strip() == f"{host.module_name()} is ignored: {reason}"


def test_the_build_reads_the_schemas_that_the_ops_define(repository, monkeypatch):
    """Or no extension would ever be used."""
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    monkeypatch.chdir(repository)
    assert runpy.run_path("setup.py")["_schemas"]() == registration.schemas


def test_a_choice_holds_from_the_next_call_on():
    """The host path remembers what Python has decided; a new choice must reach it at once."""
    tensors = [torch.randn(40, 64) for _ in range(2)]
    by = {}
    for name in ("torch", "native"):
        with pgm_fast.backend(name):
            by[name] = ops.partition(*tensors)[1]
    assert not torch.equal(by["torch"], by["native"]), "the two cannot be told apart by their rounding"
    for choice in (None, "torch", "native", None, "torch"):
        with pgm_fast.backend(choice):
            for _ in range(2):
                assert torch.equal(ops.partition(*tensors)[1], by[choice or "native"])


def test_a_call_that_the_kernels_refuse_is_refused_after_others_were_served():
    single = [torch.randn(2, 8), torch.randn(2, 8)]
    with pgm_fast.backend("native"):
        ops.partition(*single)
        ops.partition(*single)
        with pytest.raises(pgm_fast.PgmFastError, match="does not mix"):
            ops.partition(single[0], single[1].double())
    uni, paired = ops.partition(single[0], single[1].double())
    assert uni.dtype == paired.dtype == torch.float32


def test_operands_that_do_not_fit_raise_instead_of_reading_past_their_end():
    """The functions of pgm_fast.ops check with better words; the bare ops must at least not crash."""
    bare = torch.ops.pgm_fast
    h, z = torch.randn(4, 8), torch.randn(4, 8)
    ops.partition(h, z)
    for wrong in ((h, z[:2]), (h, z[:, :3]), (h[:, :0], z)):
        with pytest.raises(RuntimeError, match="pgm_fast's kernels take"):
            bare.partition(*wrong, 1.0)
    backends.select("partition_backward", (h, h, None, h, z, 1.0))
    for wrong in ((h[:2], h, None), (h, h, h[:2, :2]), (h, h, h)):
        with pytest.raises(RuntimeError, match="pgm_fast's kernels take"):
            bare.partition_backward(*wrong, h, z, 1.0)


def test_parameters_that_do_not_fit_raise_in_the_fused_mlp():
    bare = torch.ops.pgm_fast
    x, square, vector = torch.randn(4, 8), torch.randn(8, 8), torch.randn(8)
    ops.mlp(x, square, vector, square, vector)
    with pytest.raises(RuntimeError, match="pgm_fast's kernels take"):
        bare.mlp(x, square, vector[:3], square, vector, None)
    with pytest.raises(RuntimeError, match="pgm_fast's kernels take"):
        bare.mlp(x, square, vector, square, vector, x[:, :2])


def test_rows_are_shared_out_among_threads():
    """Compiled without OpenMP, everything here would run on one."""
    assert host.load().parallel == torch.backends.openmp.is_available()


def test_only_what_is_used_gets_a_gradient():
    """One output unused, one input that needs none: the rest is as in the reference."""
    shapes = [(5, 12), (5, 12), (3, 12), (3,), (4, 12), (4,)]
    results = []
    for backend in ("native", "torch"):
        torch.manual_seed(0)
        tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        leaves = [x.requires_grad_() for x in tensors[:1] + tensors[2:]]
        with pgm_fast.backend(backend):
            u, _ = ops.partitioned_linear(leaves[0], tensors[1].requires_grad_(False), *leaves[1:], "gelu")
            results.append(torch.autograd.grad(u.square().sum(), leaves, allow_unused=True))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


def test_gradients_are_the_same_from_another_thread():
    """Backward may run on a thread that never saw the forward pass."""
    import threading

    tensors = [torch.randn(6, 16) for _ in range(3)]
    want = forward_and_gradients(ops.partition_dual, tensors)
    got = []
    thread = threading.Thread(target=lambda: got.extend(forward_and_gradients(ops.partition_dual, tensors)))
    thread.start()
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(sum(want, []), sum(got, []), strict=True))
