"""These tests run kernels on a CUDA device; elsewhere each is skipped by name.

``PGM_FAST_SHARE=2/12`` runs those that fall to process 2 of 12, as benchmarks/gpu_suite.sh does.
"""

from __future__ import annotations

import os

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    own, count = map(int, os.environ.get("PGM_FAST_SHARE", "0/1").split("/"))
    here = [item for item in items if "/gpu/" in item.path.as_posix()]
    others = {item for i, item in enumerate(here) if i % count != own}
    config.hook.pytest_deselected(items=[item for item in items if item in others])
    items[:] = [item for item in items if item not in others]
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


@pytest.fixture
def harness(monkeypatch, repository):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    return pytest.importorskip("harness")
