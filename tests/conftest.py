"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# the tests for a GPU do without it
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # what takes long says something of the machine alone
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")

# more than one shares rows and sums between threads in every test, which is slower for what is this small
THREADS = int(os.environ.get("PGM_FAST_TEST_THREADS", "1"))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests that share what their module makes once, a trained run say, go to one process: each would make it anew."""
    for item in items:
        fixtures = [found for found, *_ in item._fixtureinfo.name2fixturedefs.values()]
        # those of a whole session that a conftest.py makes are made in every process
        if any(f.scope == "module" or (f.scope == "session" and f.baseid == item.parent.nodeid) for f in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.parent.nodeid))


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True, scope="session")
def _language_interpreted_for_good():
    """Triton's interpreter takes the place of the language's functions anew at every launch and at every call of one
    kernel's function by another, which is a third of its time; here it does so once for each way to name them."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton import language
    from triton.runtime import interpreter

    patch, known = getattr(interpreter, "_patch_lang", None), {}
    if patch is None:  # another release, which does it another way
        return

    def once(function):
        names = frozenset(
            id(value) for value in function.__globals__.values() if value is language or value is language.core
        )
        if names not in known:
            patch(function)
            known[names] = SimpleNamespace(restore=lambda: None)
        return known[names]

    interpreter._patch_lang = once


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Loads a Python file that is in no package, by its path in the repository."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with mfeat.npz and mosi.npz; the test is skipped by name where it is not there."""
    folder = Path(os.environ.get("PGM_FAST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "mfeat.npz").exists() or not (folder / "mosi.npz").exists():
        pytest.skip(f"mfeat.npz and mosi.npz not found in {folder}; set PGM_FAST_DATA")
    return folder
