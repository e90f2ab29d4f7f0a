"""What the headers of the kernels declare is what the sources define, and all of it is used."""

import re

import pytest

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
