"""README and docs: links lead somewhere, commands exist, code compiles, and the site builds without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
from typer.main import get_command

from pgm_fast.cli.app import app
from pgm_fast.methods import METHODS
from pgm_fast.train.configure import make_config

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def pages(repository):
    return {
        path: path.read_text(encoding="utf-8") for path in [repository / "README.md", *repository.glob("docs/*.md")]
    }


def test_links_lead_to_files(pages):
    broken = [
        f"{path.name}: {link}"
        for path, text in pages.items()
        for link in LINK.findall(text)
        if not link.startswith(("http://", "https://")) and not (path.parent / link).exists()
    ]
    assert not broken


def test_every_page_is_on_the_site(pages, repository):
    navigation = (repository / "mkdocs.yml").read_text(encoding="utf-8")
    assert [path.name for path in pages if path.parent.name == "docs" and path.name not in navigation] == []


def _commands(pages) -> list[tuple[str, list[str]]]:
    found = []
    for path, text in pages.items():
        for _, block in BLOCK.findall(text):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["pgm-fast"]:
                    found.append((f"{path.name}: {line}", words[1:]))
    assert len(found) > 10
    return found


def test_commands_have_the_options_that_are_shown(pages):
    known = get_command(app).commands
    for where, (name, *words) in _commands(pages):
        assert name in known, where
        options = {
            option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert not [word for word in words if word.startswith("--") and word.partition("=")[0] not in options], where


def test_settings_that_are_shown_exist(pages):
    for where, (name, *words) in _commands(pages):
        overrides = [word for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)]
        method = words[words.index("--method") + 1] if "--method" in words else "pgm"
        if name == "train" and overrides:
            assert make_config(None, ["data.source=x", "out=y", f"method={method}", *overrides]), where


def test_make_targets_that_are_shown_exist(pages, repository):
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {word for text in pages.values() for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    assert shown and shown <= targets


def test_python_that_is_shown_compiles_and_imports_what_exists(pages):
    for path, text in pages.items():
        for language, block in BLOCK.findall(text):
            if language != "python":
                continue
            compile(block, str(path), "exec")
            for line in re.findall(r"^from pgm_fast\S* import .*$", block, re.MULTILINE):
                _imported(line)


@cache
def _imported(line: str) -> None:
    exec(line, {})


def test_readme_is_short(pages, repository):
    assert len(pages[repository / "README.md"].splitlines()) <= 150


def test_the_site_builds_without_a_warning(repository, tmp_path):
    pytest.importorskip("mkdocs", reason='needs pip install ".[docs]"')
    pytest.importorskip("material", reason='needs pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "findings" / "index.html").exists()


def test_every_method_is_in_readme_and_on_the_page_of_methods(pages, repository):
    for path in (repository / "README.md", repository / "docs" / "baselines.md"):
        rows = [line.split("|")[1] for line in pages[path].splitlines() if line.startswith("| `")]
        assert set(METHODS) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
