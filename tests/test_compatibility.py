"""docs/compatibility.md says what the marked tests show, and every row of it is shown by one."""

from __future__ import annotations

import pytest


@pytest.fixture
def tool(script):
    return script("tools/compatibility.py")


def test_the_page_is_what_the_tests_say(tool, capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().err


def test_every_row_and_column_is_shown_by_a_test(tool, repository):
    found = tool.marks(repository / "tests")
    assert {row for row, _ in found} == set(tool.ROWS)
    assert {column for _, column in found} == set(tool.COLUMNS)


def test_a_mark_that_has_no_place_in_the_tables_is_named(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    (tmp_path / "test_one.py").write_text("@pytest.mark.works('DDP', 'modules')\ndef test_it():\n    pass\n")
    with pytest.raises(ValueError, match=r"test_one.py:1: 'DDP', 'modules' is no place in compatibility.py"):
        tool.marks(tmp_path)
