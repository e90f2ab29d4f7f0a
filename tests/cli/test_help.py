"""Help and written configurations cannot drift from what there is."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from cli_calls import succeed

from pgm_fast.cli.reference import commented_yaml, describe
from pgm_fast.settings import choices_of
from pgm_fast.train.config import Config
from pgm_fast.train.configure import from_yaml, make_config

COMMANDS = [
    "train",
    "resume",
    "evaluate",
    "predict",
    "check-data",
    "interactions",
    "compare",
    "presets",
    "study",
    "sweep",
    "doctor",
    "bench",
]


KEYS = [
    f"{section}.{field.name}" if is_dataclass(owner) else section
    for section, owner in get_type_hints(Config).items()
    for field in (fields(owner) if is_dataclass(owner) else [None])
]


def test_help_says_what_is_read_and_written_with_examples():
    assert all(name in succeed("--help") for name in COMMANDS)
    for name in COMMANDS:
        text = succeed(name, "--help")
        assert "Reads" in text and "rites" in text and f"Examples:\n  pgm-fast {name}" in text


def test_every_key_is_documented_where_it_is_defined():
    found = [key for section in describe() for key in section.keys]
    assert [key.name for key in found] != []
    assert sorted(key.name for key in found) == sorted(KEYS)
    assert [key.name for key in found if not key.meaning] == []
    assert all(section.meaning for section in describe())


def test_the_meaning_of_a_choice_names_all_that_there_is():
    meanings = {key.name: key.meaning for section in describe() for key in section.keys}
    for section, owner in get_type_hints(Config).items():
        for name, choices in choices_of(owner).items() if is_dataclass(owner) else ():
            missing = [each for each in choices if each not in meanings[f"{section}.{name}"]]
            assert not missing, f"{section}.{name}: {missing}"


def test_train_help_lists_every_key_with_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = succeed("train", "--help")
    for section in describe():
        for key in section.keys:
            assert re.search(rf"^  {re.escape(key.name)}=", text, re.MULTILINE), key.name
    assert re.search(r"^  train.epochs=50\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    "overrides", [[], ["train.epochs=3", "data.modalities=[a,b]", "pgm.rates.a.uni=2", "data.options.n=5"]]
)
def test_show_config_prints_commented_yaml_of_the_same_configuration(overrides):
    text = succeed("train", "--show-config", *overrides)
    assert from_yaml(text) == make_config(None, overrides)
    assert text == commented_yaml(make_config(None, overrides))
    assert "# " in text
