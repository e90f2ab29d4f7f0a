"""What may be relied on: facts are plain data and true, and asking for them changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgm_fast import __version__, backends, env
from pgm_fast.backends import host

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def facts():
    return env.doctor()


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_extras_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in env.EXTRAS.items():
        names = {requirement.split(">")[0].split("[")[0].strip() for requirement in declared[extra]}
        assert set(packages.values()) == names


def test_versions_name_what_runs():
    found = env.versions()
    assert found["pgm_fast"] == __version__
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(env.EXTRAS["train"].values()) <= set(found)


def test_doctor_is_json_and_every_missing_thing_has_a_reason(facts):
    assert json.loads(json.dumps(facts)) == facts
    assert facts["facts"]
    for fact in facts["facts"]:
        assert set(fact) == {"group", "name", "usable", "detail", "fix"}
        assert fact["detail"]
        assert not (fact["usable"] and fact["fix"])


def test_doctor_agrees_with_torch_and_the_backends(facts):
    usable = {fact["name"] for fact in facts["facts"] if fact["usable"]}
    assert "cpu" in usable
    assert any(name.startswith("cuda") for name in usable) == torch.cuda.is_available()
    assert "partition" in facts["ops"]
    for op, devices in facts["ops"].items():
        assert ("cuda" in devices) == torch.cuda.is_available()
        assert devices["cpu"]["torch"] is None
        assert devices["cpu"] == backends.implementations("cpu")[op]


def test_compiled_kernels_are_usable_exactly_where_they_load(facts, monkeypatch):
    fact = next(fact for fact in facts["facts"] if fact["name"] == "compiled CPU kernels")
    assert fact["usable"] == (facts["ops"]["partition"]["cpu"]["native"] is None)
    monkeypatch.setitem(sys.modules, "pgm_fast._native", None)
    monkeypatch.delattr("pgm_fast._native", raising=False)
    fact = next(fact for fact in env.doctor()["facts"] if fact["name"] == "compiled CPU kernels")
    assert not fact["usable"] and fact["detail"] and "pip install" in fact["fix"]


def test_cuda_kernels_are_usable_exactly_where_they_load(facts, monkeypatch):
    fact = next(fact for fact in facts["facts"] if fact["name"] == "compiled CUDA kernels")
    try:
        import pgm_fast._cuda  # noqa: F401
    except ImportError:
        assert not fact["usable"] and fact["fix"]
    else:
        assert fact["usable"] and not torch.cuda.is_initialized()
    monkeypatch.setitem(sys.modules, "pgm_fast._cuda", None)
    monkeypatch.delattr("pgm_fast._cuda", raising=False)
    for nvcc, command in ((None, "nvcc"), ("/usr/bin/nvcc", "--no-build-isolation")):
        monkeypatch.setattr(env.shutil, "which", lambda name, nvcc=nvcc: nvcc if name == "nvcc" else None)
        fact = next(fact for fact in env.doctor()["facts"] if fact["name"] == "compiled CUDA kernels")
        assert not fact["usable"] and fact["detail"] and command in fact["fix"]


def test_the_host_path_is_usable_exactly_where_it_loads(facts, monkeypatch):
    fact = next(fact for fact in facts["facts"] if fact["name"] == "compiled host path")
    assert fact["usable"] == (host.load_or_none() is not None)
    monkeypatch.setattr(host.torch, "__version__", "0.0.0+none")
    fact = next(fact for fact in env.doctor()["facts"] if fact["name"] == "compiled host path")
    assert not fact["usable"] and fact["detail"] and "--no-build-isolation" in fact["fix"]


def test_a_missing_tool_or_package_is_reported_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(env.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setitem(env.EXTRAS, "train", {"no_such_module_here": "no-such-distribution"})
    facts = {fact["name"]: fact for fact in env.doctor()["facts"]}
    assert not facts["c++"]["usable"] and "conda install" in facts["c++"]["fix"]
    assert not facts["nvcc"]["usable"]
    assert facts["no-such-distribution"]["fix"] == 'python -m pip install "pgm-fast[train]"'


def test_asking_initialises_no_accelerator_and_writes_nothing(tmp_path):
    code = (
        "import torch; from pgm_fast import env; env.versions(); env.git_commit('.'); "
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_git_commit_tells_the_commit_and_whether_files_differ(tmp_path):
    assert env.git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert env.git_commit(tmp_path) is None
    file = tmp_path / "a.txt"
    file.write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag must not take the place of the hash")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert env.git_commit(tmp_path) == commit
    assert env.git_commit(file) == commit
    file.write_text("two")
    assert env.git_commit(tmp_path) == f"{commit}-dirty"


def test_git_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert env.git_commit(ROOT) is None
