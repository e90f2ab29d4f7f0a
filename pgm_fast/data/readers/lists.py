"""Lists of samples, a text file per split: lines ``id,label``, or as AVE has them, whose start and end are columns that
change nothing: a sample is the whole of its files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..raw import Problem, RefusedData

__all__ = ["Listed", "find_lists", "read_list"]

SUFFIXES = (".csv", ".txt")
SPLITS = {"train": "train", "val": "valid", "dev": "valid", "test": "test"}
LABELS = ("label", "class", "category")
IDENTIFIERS = ("id", "videoid", "video_id", "video", "file", "filename", "name")
AVE = ("category", "id", "quality", "start", "end")  # columns of its lists, parted by &


@dataclass
class Listed:
    """The samples of a list: parallel sequences of text, and the columns that its first line names besides."""

    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)


def find_lists(path: Path) -> dict[str, list[Path]]:
    """split -> its lists: files ``*.csv`` or ``*.txt`` with train, val, dev or test in their name."""
    found: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            for part, split in SPLITS.items():
                if part in file.stem.lower():
                    found.setdefault(split, []).append(file)
                    break
    return {split: found[split] for split in ("train", "valid", "test") if split in found}


def read_list(file: Path) -> Listed:
    """Lines ``id,label``, of more columns where the first line names them, or ``category&id&quality&start&end``."""
    try:
        text = file.read_text("utf-8-sig").splitlines()
        ave = bool(text) and text[0].count("&") == len(AVE) - 1
        lines = [line for line in csv.reader(text, delimiter="&" if ave else ",") if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RefusedData(Problem(str(file), "", None, f"not readable as text: {error}")) from None
    rows = [[cell.strip() for cell in line] for line in lines]
    first = [cell.lower() for cell in rows[0]] if rows else []
    named = any(cell in LABELS for cell in first[1:] if len(first) > 1) or (first[:1] and first[0] in LABELS)
    names = list(AVE) if ave else first if named and len(first) > 1 else ["id", "label"]
    start = 1 if named else 0
    if len(rows) == start:
        raise RefusedData(Problem(str(file), "", None, "no sample; lines of id,label are needed"))
    listed = Listed()
    label, identifier = _place(file, names, LABELS), _place(file, names, IDENTIFIERS)
    others = [k for k in range(len(names)) if k not in (label, identifier)]
    listed.columns = {names[k]: [] for k in others}
    for number, (row, line) in enumerate(zip(rows[start:], lines[start:], strict=True), start + 1):
        if len(row) != len(names) or not row[label] or not row[identifier]:
            raise RefusedData(Problem(str(file), "", None, _wrong_line(number, line, names)))
        listed.ids.append(row[identifier])
        listed.labels.append(row[label])
        for k in others:
            listed.columns[names[k]].append(row[k])
    return listed


def _place(file: Path, names: Sequence[str], meant: Sequence[str]) -> int:
    """Which column is meant: the first that is called so, and of two the other one."""
    found = [k for k, name in enumerate(names) if name in meant]
    if found:
        return found[0]
    if len(names) == 2 and meant is IDENTIFIERS:
        return 1 if names[0] in LABELS else 0
    message = f"no column among {','.join(names)} is called {' or '.join(meant[:3])}; name one so in the first line"
    raise RefusedData(Problem(str(file), "", None, message))


def _wrong_line(number: int, line: Sequence[str], names: Sequence[str]) -> str:
    text = f"line {number} is {','.join(line)!r}, {','.join(names)} is needed"
    if len(line) > 2 and len(names) == 2:
        text += f"; of {len(line)} columns the first line must say which is which, such as id,start,label"
    return text
