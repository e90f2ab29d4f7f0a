"""The configuration's keys, defaults and meanings as text, read from the sources of the configuration classes."""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import shutil
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from ..settings import choices_of
from ..train.config import Config
from ..train.configure import to_yaml

__all__ = ["Key", "Section", "commented_yaml", "describe", "reference_text"]


@dataclass(frozen=True)
class Key:
    """One configuration key: its dotted name, its default and what it means."""

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of one configuration class. The top level has the name ``""``."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


def describe() -> list[Section]:
    """Every section and key of :class:`~pgm_fast.train.config.Config`, in order."""
    inner = {name: owner for name, owner in get_type_hints(Config).items() if is_dataclass(owner)}
    return [_section("", Config, skip=inner), *(_section(name, owner) for name, owner in inner.items())]


def reference_text(width: int | None = None) -> str:
    """A listing of every key for a terminal of ``width`` columns; None asks the terminal."""
    width = min(width or shutil.get_terminal_size().columns, 120)
    lines = []
    for section in describe():
        lines += ["", *textwrap.wrap(f"{section.name}: {section.meaning}" if section.name else section.meaning, width)]
        for key in section.keys:
            head = f"  {key.name}={_default(key.default)}"
            column = 36
            first = head.ljust(column) if len(head) < column else f"{head}\n{' ' * column}"
            meaning = textwrap.wrap(key.meaning, max(width - column, 24)) or [""]
            lines.append((first + f"\n{' ' * column}".join(meaning)).rstrip())
    return "\n".join(lines).lstrip("\n")


def commented_yaml(config: Config) -> str:
    """:func:`~pgm_fast.train.configure.to_yaml` with each key's meaning beside it."""
    meanings = {key.name: key.meaning for section in describe() for key in section.keys}
    headings = {section.name: section.meaning for section in describe()}
    lines, prefix = [], ""
    for line in to_yaml(config).splitlines():
        top, nested = re.match(r"(\w+):", line), re.match(r"  (\w+):", line)
        if top:
            prefix = f"{top[1]}."
        name = top[1] if top else prefix + nested[1] if nested else None
        meaning = meanings.get(name) or headings.get(name)
        lines.append(f"{line}  # {meaning}" if meaning else line)
    return "\n".join(lines) + "\n"


def _section(name: str, owner: type, skip: Mapping[str, type] = ()) -> Section:
    meanings = _meanings(owner)
    summary = " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())
    prefix = f"{name}." if name else ""
    for key, choices in choices_of(owner).items():
        meaning, listed = meanings.get(key, ""), ", ".join(choices)
        if not all(re.search(rf"\b{re.escape(each)}\b", meaning) for each in choices):
            meanings[key] = f"{meaning}: {listed}" if meaning else listed
    keys = (Key(prefix + f.name, _value(f), meanings.get(f.name, "")) for f in fields(owner) if f.name not in skip)
    return Section(name, _as_yaml_user(summary), tuple(keys))


def _meanings(owner: type) -> dict[str, str]:
    """Field -> the comment behind it or the comment lines above it, or its entry in the docstring's ``Attributes``."""
    source = textwrap.dedent(inspect.getsource(owner))
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            whole_line = token.line.strip() == token.string
            (alone if whole_line else behind)[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            above = [alone[line] for line in range(first, node.lineno)]
            found[node.target.id] = " ".join([*above, *filter(None, [behind.get(node.end_lineno)])])
    found = {name: text for name, text in found.items() if text}
    _, _, attributes = (inspect.getdoc(owner) or "").partition("Attributes:\n")
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, flags=re.MULTILINE):
        found.setdefault(name, " ".join(text.split()))
    return {name: _as_yaml_user(text) for name, text in found.items()}


def _as_yaml_user(text: str) -> str:
    """The text for someone who writes YAML: no reStructuredText roles and literals, no Python constants."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    return re.sub(
        r"\b(None|True|False)\b", lambda match: {"None": "null"}.get(match[0], match[0].lower()), text
    ).rstrip(".")


def _value(field) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
