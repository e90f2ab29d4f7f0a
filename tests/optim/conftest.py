"""Every way in which a step is computed here, and memory that shows when it is read before it is written."""

from __future__ import annotations

import os

import pytest
import torch
from op_cases import interpret_triton

import pgm_fast
from pgm_fast import backends
from pgm_fast.backends import host
from pgm_fast.optim import kernels, watch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WAYS = ("triton",) if INTERPRETED else ("torch", "native", "native, watched in Python")
if INTERPRETED:
    interpret_triton()


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fresh tensors hold NaN: torch fills ``torch.empty`` so in deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The backend that computes, with the compiled watch or the one in Python."""
    name = request.param.partition(",")[0]
    reason = backends.implementations()[kernels.STEP][name]
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    if "Python" in request.param:
        monkeypatch.setattr(watch.host, "load_or_none", lambda: None)
    elif name == "native" and host.load_or_none() is None:
        pytest.skip("the host path is not built for this torch")
    with pgm_fast.backend(name):
        yield request.param
