"""Memory that an op takes without writing it must show."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fresh tensors hold NaN: torch fills ``torch.empty`` so in deterministic mode.

    On CUDA torch refuses some of what plain formulas call in that mode (cumsum, products): there it only warns.
    """
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def _poison_is_on():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(8).isnan().all()
    torch.use_deterministic_algorithms(False)
