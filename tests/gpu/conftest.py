"""These tests run kernels on a CUDA device; elsewhere each is skipped by name."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fresh tensors hold NaN: torch fills ``torch.empty`` so in deterministic mode. What the plain formulas use that
    has no deterministic form only warns."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
