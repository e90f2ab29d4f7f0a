"""Which backend an op call takes, and what is said when none can."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import pgm_fast
from pgm_fast import backends, env
from pgm_fast.backends import selection
from pgm_fast.backends.native import cuda_function
from pgm_fast.backends.triton import startable
from pgm_fast.errors import BackendError, LaunchError


@pytest.fixture
def toy(monkeypatch):
    """An op with a reference and a native kernel that serves CPU fp32 of at least 4 elements."""
    for name in ("_implementations", "_candidates", "_reasons"):
        monkeypatch.setattr(selection, name, {})
    monkeypatch.setattr(selection, "_left_out", {})
    monkeypatch.setattr(selection, "_said", set())
    monkeypatch.setattr(selection, "_explicit", None)
    backends.register("toy", "torch", lambda: lambda x: "torch")
    backends.register(
        "toy",
        "native",
        lambda: lambda x: "native",
        devices=("cpu",),
        dtypes=(torch.float32,),
        refuse=lambda x: "serves at least 4 elements" if x.numel() < 4 else None,
    )
    return lambda *shape, dtype=torch.float32: backends.run("toy", (torch.empty(shape, dtype=dtype),))


def test_automatic_choice_takes_the_kernel_and_falls_back_once_aloud(toy, caplog):
    caplog.set_level(logging.INFO, logger="pgm_fast.backends")
    assert toy(4) == "native"
    assert toy(3) == toy(2) == "torch"
    assert toy(8, dtype=torch.float64) == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "toy: backend native serves at least 4 elements; falling back"
    ]


def test_a_kernel_that_should_be_slower_is_passed_over_for_another_kernel_but_not_for_the_reference(toy):
    served = {"devices": ("cpu",), "dtypes": (torch.float32,)}
    backends.register("toy", "native", lambda: lambda x: "native", **served, outdone=lambda x: x.numel() < 100)
    assert toy(4) == toy(400) == "native"
    refuse = lambda x: "serves at most 50" if x.numel() > 50 else None  # noqa: E731
    backends.register("toy", "triton", lambda: lambda x: "triton", **served, refuse=refuse)
    assert [toy(4), toy(60), toy(400)] == ["triton", "native", "native"]
    with pgm_fast.backend("native"):
        assert toy(4) == "native"


def test_a_kernel_that_is_passed_over_is_said_with_its_reason(toy, caplog):
    caplog.set_level(logging.INFO, logger="pgm_fast.backends")
    served = {"devices": ("cpu",), "dtypes": (torch.float32,)}
    backends.register("toy", "native", lambda: lambda x: "native", **served, outdone=lambda x: True)
    backends.register("toy", "triton", lambda: lambda x: "triton", **served)
    assert toy(4) == "triton"
    assert [record.getMessage() for record in caplog.records] == [
        "toy: backend native should be slower at these shapes than the next kernel; falling back"
    ]


def test_the_choice_is_explained_as_it_is_taken(toy):
    def explained(*shape, dtype=torch.float32):
        x = torch.empty(shape, dtype=dtype)
        taken, reasons = backends.explain("toy", "cpu", dtype, (x,))
        assert taken == toy(*shape, dtype=dtype) and list(reasons) == list(backends.BACKENDS)
        return reasons

    assert explained(4)["native"] == "serves the call" and "another one serves" in explained(4)["torch"]
    assert explained(3) == {
        "native": "serves at least 4 elements",
        "triton": "has no toy kernel in this release",
        "torch": "serves the call",
    }
    assert explained(4, dtype=torch.float64)["native"] == "does not serve torch.float64"
    with pgm_fast.backend("native"):
        taken, reasons = backends.explain("toy", args=(torch.empty(3),))
        assert taken is None and reasons["native"] == "serves at least 4 elements"
        assert reasons["torch"] == "is not asked: native was chosen by name"
    with pytest.raises(BackendError, match="there is no op 'toys'; the ops are toy"):
        backends.explain("toys")


def test_a_fallback_that_happened_is_in_the_explanation(toy):
    def start(x):
        raise LaunchError("out of resource: shared memory")

    backends.register("toy", "native", lambda: start, devices=("cpu",))
    assert toy(4) == "torch"
    taken, reasons = backends.explain("toy", args=(torch.empty(4),))
    assert taken == "torch" and reasons["native"] == "cannot start its kernel: out of resource: shared memory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "partitions"}, "there is no op 'partitions'"),
        ({"op": "partition", "dtype": "int8"}, "dtype must be a floating-point one"),
        ({"op": "partition", "device": "tpu"}, "device must be cpu or cuda, got 'tpu'"),
        ({"op": "partition", "shapes": ["h=4x8"]}, "partition takes z: add --shape z="),
        ({"op": "partition", "shapes": ["h=4by8"]}, "such as h=4096x1024, got 'h=4by8'"),
        ({"op": "partition", "shapes": ["x=4x8"]}, "partition has no tensor x; its tensors are h, z"),
    ],
)
def test_a_question_that_has_no_answer_says_what_may_be_asked(arguments, message):
    with pytest.raises(pgm_fast.PgmFastError, match=message):
        env.choice(**arguments)


def test_explicit_choice_is_obeyed_or_raises_with_the_reason(toy):
    with pgm_fast.backend("torch"):
        assert toy(4) == "torch"
    assert toy(4) == "native"
    with pgm_fast.backend("native"):
        with pytest.raises(BackendError, match="native serves at least 4 elements. Backends that can: torch"):
            toy(3)
        with pytest.raises(BackendError, match="native does not serve torch.float64. Backends that can: torch"):
            toy(4, dtype=torch.float64)
    with pgm_fast.backend("triton"), pytest.raises(BackendError, match="triton has no toy kernel"):
        toy(4)


def test_a_kernel_that_fails_to_load_is_a_reason_not_a_crash(toy):
    def load():
        raise OSError("was built for AVX-512, this CPU has none")

    backends.register("toy", "native", load, devices=("cpu",))
    assert toy(4) == "torch"
    assert backends.implementations()["toy"]["native"] == "was built for AVX-512, this CPU has none"
    with pgm_fast.backend("native"), pytest.raises(BackendError, match="AVX-512"):
        toy(4)


def test_an_extension_that_was_not_built_is_no_module_that_the_user_lacks(toy):
    def load():
        import pgm_fast._of_nobody  # noqa: F401

    backends.register("toy", "native", load, devices=("cuda",))
    _, reasons = backends.explain("toy", "cuda")
    assert reasons["native"] == "is not built here; pgm-fast doctor says what that takes"


def test_a_kernel_that_the_device_cannot_start_is_left_out_from_then_on(toy, caplog):
    tried = []

    def start(x):
        tried.append(x)
        raise LaunchError("out of resource: shared memory, Required: 126976, Hardware limit: 101376")

    backends.register("toy", "native", lambda: start, devices=("cpu",))
    assert toy(4) == toy(4) == "torch" and len(tried) == 1
    assert toy(4, dtype=torch.float64) == "torch" and len(tried) == 2
    reason = "cannot start its kernel: out of resource: shared memory, Required: 126976, Hardware limit: 101376"
    assert [record.getMessage() for record in caplog.records] == [
        f"toy, {dtype}: backend native {reason}; falling back" for dtype in (torch.float32, torch.float64)
    ]
    assert backends.implementations()["toy"]["native"] == reason
    (fact, _) = [fact for fact in env.doctor()["facts"] if "by native" in fact["name"]]
    assert fact["name"] == "toy of float32 on cpu by native" and not fact["usable"] and fact["detail"] == reason
    with pgm_fast.backend("native"), pytest.raises(BackendError, match="Hardware limit: 101376. .*can: torch"):
        toy(4)


def test_what_an_op_raises_otherwise_is_no_reason_to_fall_back(toy):
    def fail(x):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    backends.register("toy", "native", lambda: fail, devices=("cpu",))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            toy(4)


def test_compiled_and_triton_kernels_say_that_they_cannot_start(monkeypatch):
    class CannotStart(RuntimeError):
        pass

    def refuse(*arguments):
        raise CannotStart("CUDA kernel of pgm_fast: cudaErrorLaunchOutOfResources")

    monkeypatch.setitem(sys.modules, "pgm_fast._cuda", SimpleNamespace(CannotStart=CannotStart, partition=refuse))
    monkeypatch.setattr(pgm_fast, "_cuda", sys.modules["pgm_fast._cuda"], raising=False)
    with pytest.raises(LaunchError, match="cudaErrorLaunchOutOfResources"):
        cuda_function("partition")(1, 2)

    errors = pytest.importorskip("triton.runtime.errors")
    for error in (errors.OutOfResources(126976, 101376, "shared memory"), RuntimeError("PassManager::run failed")):
        with pytest.raises(LaunchError):
            startable(Mock(side_effect=error))(1)
    with pytest.raises(RuntimeError, match="illegal"):
        startable(Mock(side_effect=RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")))(1)


def test_contexts_nest_and_restore_after_an_error(toy):
    with pgm_fast.backend("native"):
        with pytest.raises(ZeroDivisionError), pgm_fast.backend("torch"):
            assert toy(4) == "torch"
            1 / 0  # noqa: B018
        assert toy(4) == "native"


def test_unknown_names_are_refused_with_the_allowed_ones():
    with pytest.raises(BackendError, match="unknown backend 'cuda'; the backends are native, triton, torch"):
        pgm_fast.backend("cuda")


@pytest.mark.parametrize(("value", "expected"), [("torch", "torch"), ("nonsense", "unknown backend 'nonsense'")])
def test_environment_variable_chooses_and_a_wrong_one_does_not_break_the_import(value, expected):
    program = "import pgm_fast.ops\nfrom pgm_fast import backends\nprint(backends.chosen('partition'))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PGM_FAST_BACKEND": value, "PATH": ""}, capture_output=True, text=True
    )
    assert expected in (done.stdout if value == "torch" else done.stderr)


def test_a_triton_that_is_not_there_is_named_with_what_to_do(monkeypatch):
    import pgm_fast.ops
    import pgm_fast.optim  # noqa: F401

    for name in [name for name in sys.modules if name.startswith("pgm_fast.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    reasons = backends.implementations("cuda")
    for op in ("multi_rate_step", "multi_rate_squares", "partition"):
        assert reasons[op]["triton"] == "is not installed (Linux only): pip install triton"
