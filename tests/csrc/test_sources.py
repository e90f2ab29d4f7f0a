"""What the headers of the kernels declare is what the sources define, and all of it is used."""

import os
import re
import runpy
import sys
from types import SimpleNamespace

import pytest
import setuptools

DECLARED = re.compile(r"^\w[\w:<>&* ]*?(\w+)\([^{;]*\);", re.MULTILINE)
DEFINED = re.compile(r"^\w[\w:<>&* ]*?(\w+)\([^{;]*\) ?\{", re.MULTILINE)


@pytest.mark.parametrize(
    ("header", "sources", "callers"),
    [
        ("csrc/cpu/kernels.h", "csrc/cpu/*.cpp", ["csrc/bindings.cpp", *["csrc/torch/*.cpp", "csrc/torch/*.h"]]),
        ("csrc/cuda/kernels.h", "csrc/cuda/*.cu", ["csrc/cuda/bindings.cpp"]),
    ],
)
def test_headers_and_sources_agree(repository, header, sources, callers):
    declared = set(DECLARED.findall((repository / header).read_text()))
    defined = {
        name for path in repository.glob(sources) for name in DEFINED.findall(path.read_text()) if name in declared
    }
    called = "".join(path.read_text() for pattern in callers for path in repository.glob(pattern))
    assert declared
    assert declared - defined == set()
    assert {name for name in declared if not re.search(rf"\b{name}\b", called)} == set()


def test_a_build_makes_what_changed_and_nothing_else(tmp_path, repository, monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    monkeypatch.chdir(repository)
    make = runpy.run_path("setup.py")["BuildNative"]._make
    monkeypatch.chdir(tmp_path)
    source, header, target = tmp_path / "a.cpp", tmp_path / "csrc" / "a.h", tmp_path / "a.o"
    header.parent.mkdir()
    for path in (source, header):
        path.write_text("")
        os.utime(path, (1, 1))
    command = [sys.executable, "-c", "import sys; open(sys.argv[-1], 'a').write('made ')"]

    def made(*more, force=False):
        before = len(target.read_text()) if target.exists() else 0
        make(SimpleNamespace(force=force), str(target), str(source), [*command, *more])
        return len(target.read_text()) > before

    assert made() and not made()
    assert made("-O1") and not made("-O1") and made("-O1", force=True)
    for path in (source, header):
        os.utime(path)
        assert made("-O1"), path
        os.utime(path, (1, 1))
        assert not made("-O1"), path
