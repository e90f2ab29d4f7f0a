"""Every bound has a name and a derivation in tolerances.py: tests neither write one nor leave it to a default."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

# Call -> the tolerances that it fills with numbers of its own where they are left out.
DEFAULTS = {
    "allclose": {"rtol", "atol"},
    "approx": {"abs"},
    "assert_allclose": {"rtol"},
    "assert_close": {"rtol", "atol"},
    "gradcheck": {"rtol", "atol"},
    "isclose": {"rtol", "atol"},
    "opcheck": {"rtol", "atol"},
}
TOLERANCES = {"rtol", "atol", "abs", "rel"}


def called(node: ast.AST) -> str:
    """Name of the function or method that ``node`` calls; empty where it calls none."""
    return getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""


def numbers(node: ast.AST) -> list[float]:
    """Non-zero numbers written in an expression, but for those handed to a function."""
    if isinstance(node, ast.Constant):
        return [node.value] if type(node.value) in (int, float) and node.value else []
    children = [node.func] if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return [number for child in children for number in numbers(child)]


def faults(source: str) -> list[tuple[int, str]]:
    """Line and fault of every comparison whose bound is not from the table."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = called(node)
        if name in DEFAULTS:
            given = {keyword.arg for keyword in node.keywords}
            found += [(node.lineno, f"{name} without {missing}") for missing in sorted(DEFAULTS[name] - given)]
            for keyword in node.keywords:
                if keyword.arg is None:
                    found.append((node.lineno, f"{name} with tolerances out of sight"))
                elif keyword.arg in TOLERANCES and numbers(keyword.value):
                    found.append((node.lineno, f"{name} with {keyword.arg}={ast.unparse(keyword.value)}"))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            distances = [side for side in sides if any(called(part) == "abs" for part in ast.walk(side))]
            bounds = [number for side in sides if side not in distances for number in numbers(side)]
            if distances and any(isinstance(number, float) for number in bounds):
                found.append((node.lineno, f"a distance against {bounds}"))
    return found


def test_every_bound_is_from_the_table(repository: Path):
    files = sorted((repository / "tests").rglob("*.py"))
    found = [
        f"{path.relative_to(repository)}:{line}: {fault}"
        for path in files
        if path.name != "tolerances.py"
        for line, fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert len(files) > 1 and not found, "name these bounds in tests/tolerances.py:\n" + "\n".join(found)


def test_no_bound_is_what_a_machine_showed(repository: Path):
    lines = (repository / "tests" / "tolerances.py").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "measured" in line.lower()], "derive it: another processor shows another"


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("torch.testing.assert_close(a, b)", 2),
        ("torch.testing.assert_close(a, b, rtol=0)", 1),
        ("torch.testing.assert_close(a, b, rtol=0, atol=1e-5)", 1),
        ("torch.testing.assert_close(a, b, rtol=0, atol=8 * EPS)", 1),
        ("torch.testing.assert_close(a, b, **CLOSE)", 3),
        ("torch.testing.assert_close(a, b, rtol=0, atol=0)", 0),
        ("torch.testing.assert_close(a, b, rtol=FP32, atol=SPLIT_SUM[dtype])", 0),
        ("torch.testing.assert_close(a, b, rtol=0, atol=steps(256))", 0),
        ("a == pytest.approx(b)", 1),
        ("a == approx(b, rel=FP32)", 1),
        ("a == approx(b, abs=FP64)", 0),
        ("np.testing.assert_allclose(a, b)", 1),
        ("np.allclose(a, b, atol=FP32)", 1),
        ("gradcheck(f, x)", 2),
        ("abs(a - b) < 1e-3", 1),
        ("(a - b).abs().max() <= 2 * 0.1", 1),
        ("0.007 > np.abs(a - b).max()", 1),
        ("abs(a - b) < frequency(0.3, 100)", 0),
        ("abs(count - 0.7 * rows) <= 2", 0),
        ("rng.random(3) < 0.5", 0),
    ],
)
def test_a_bound_written_in_a_test_is_found(line, count):
    assert len(faults(line)) == count
