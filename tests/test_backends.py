"""Which backend an op call takes, and what is said when none can."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

import pgm_fast
from pgm_fast import backends
from pgm_fast.errors import BackendError


@pytest.fixture
def toy(monkeypatch):
    """An op with a reference and a native kernel that serves CPU fp32 of at least 4 elements."""
    for name in ("_implementations", "_candidates", "_reasons"):
        monkeypatch.setattr(backends, name, {})
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(backends, "_explicit", None)
    backends.register("toy", "torch", lambda: lambda x: "torch")
    backends.register(
        "toy",
        "native",
        lambda: lambda x: "native",
        devices=("cpu",),
        dtypes=(torch.float32,),
        refuse=lambda x: "serves at least 4 elements" if x.numel() < 4 else None,
    )
    return lambda *shape, dtype=torch.float32: (lambda x: backends.select("toy", (x,))(x))(
        torch.empty(shape, dtype=dtype)
    )


def test_automatic_choice_takes_the_kernel_and_falls_back_once_aloud(toy, caplog):
    caplog.set_level(logging.INFO, logger="pgm_fast.backends")
    assert toy(4) == "native"
    assert toy(3) == toy(2) == "torch"
    assert toy(8, dtype=torch.float64) == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "toy: backend native serves at least 4 elements; falling back"
    ]


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
