"""Files here run under Triton's interpreter only: tests/kernels/test_interpreted.py starts them."""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory():
    """What a kernel takes without writing it must show: torch fills fresh tensors with NaN in deterministic mode."""
    torch.set_deterministic_debug_mode("error")  # as torch.use_deterministic_algorithms, which imports torch's compiler
    assert torch.empty(8).isnan().all()
