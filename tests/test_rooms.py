"""Which room of the package may import which: those before it in the list, so that no import runs back up."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pgm_fast

ROOT = Path(pgm_fast.__file__).parent
ROOMS = """
errors settings presets
backends ops
nn optim data methods
env
train interactions study sweep
cli
""".split()
ROOMS_OF_TRAIN = """
config distributed sharding configure signals
run limits
scores step
evaluation report
features assembly loop
finish jobs trained
""".split()


def imported(path: Path, nodes: Iterable[ast.AST]) -> set[Path]:
    """Files of the package that the imports among a file's nodes name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            start = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            # a name of a package is a file in it, or else something that its __init__.py has
            found |= {file_of(start / alias.name) or file_of(start) for alias in node.names}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found |= {file_of(ROOT.parent.joinpath(*name.split("."))) for name in names if name.startswith("pgm_fast.")}
    return found - {None, path}


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a node but for bodies of functions and what type checkers alone read."""
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if not for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from run_at_import(child)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def file_of(place: Path) -> Path | None:
    return next((x for x in (place.with_name(place.name + ".py"), place / "__init__.py") if x.is_file()), None)


def room_of(path: Path, house: Path) -> str | None:
    return path.relative_to(house).with_suffix("").parts[0] if path.is_relative_to(house) else None


FILES = sorted(ROOT.rglob("*.py"))
HOUSES = {ROOT: ROOMS, ROOT / "train": ROOMS_OF_TRAIN}


@pytest.mark.parametrize("house", HOUSES, ids=lambda house: house.name)
def test_every_room_is_in_the_list(house):
    found = {room_of(path, house) for path in FILES} - {None, "__init__", "__main__"}
    assert found == set(HOUSES[house])


@pytest.mark.parametrize(
    ("house", "room"),
    [pytest.param(house, room, id=f"{house.name}-{room}") for house in HOUSES for room in HOUSES[house]],
)
def test_a_room_imports_from_rooms_below_it_alone(house, room):
    above = HOUSES[house][HOUSES[house].index(room) + 1 :]
    wrong = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path in FILES
        if room_of(path, house) == room
        for other in imported(path, ast.walk(parsed(path)))
        if room_of(other, house) in above
    ]
    assert not wrong


def test_no_two_files_need_each_other_to_be_imported():
    inner = [path for path in FILES if path.name != "__init__.py"]  # a package is there once its files are
    graph = {path: imported(path, run_at_import(parsed(path))) & set(inner) for path in inner}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path.relative_to(ROOT)) for path in error.args[1]))
