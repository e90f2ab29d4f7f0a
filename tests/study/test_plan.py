"""A study file: what it may hold, what goes before what, and the same budget for every method."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgm_fast.errors import ConfigError
from pgm_fast.study import read_study, run_study
from pgm_fast.study.plan import draw_trials

SPACES = st.dictionaries(
    st.text("abc.", min_size=1), st.lists(st.integers(), min_size=1, max_size=4, unique=True), max_size=5
)

TEXT = """
seeds: [0, 1]
common: {train.epochs: 7, train: {lr: 0.1}}
sets:
  one: {data.source: digits, train.epochs: 5}
  two: {data: {source: digits, resplit: all}, methods: [logistic, pgm]}
methods:
  pgm: {method: pgm, train.epochs: 3}
  joint: {method: joint}
  logistic: {method: logistic, data.modalities: [left]}
search: {trials: 3, space: {train.lr: [1e-3, 3e-3], train.epochs: [1, 2]}}
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "study.yaml").write_text(text)
        return read_study(tmp_path / "study.yaml")

    return write


@given(SPACES, st.integers(1, 30), st.integers(0, 5))
def test_trials_are_of_the_grid_none_twice_and_more_begin_with_fewer(space, count, seed):
    trials = draw_trials(space, count, seed)
    size = 1
    for values in space.values():
        size *= len(values)
    assert len(trials) == min(count, size)
    assert len({tuple(trial.items()) for trial in trials}) == len(trials)
    assert all(list(trial) == list(space) and all(trial[key] in space[key] for key in space) for trial in trials)
    if count < size:
        assert draw_trials(space, min(count + 1, size - 1), seed)[:count] == trials


def test_the_settings_of_a_trial_go_before_those_of_the_set_and_a_methods_own_before_all(written):
    study = written(TEXT)
    groups = {(group.set, group.method, group.split): group for group in study.groups()}
    joint, pgm = groups["one", "joint", None], groups["one", "pgm", None]
    assert joint.seeds == (0, 1) and ("two", "joint", 0) not in groups
    assert [group.seeds for group in groups.values() if group.set == "two"] == [(0,), (0,), (1,), (1,)]
    epochs = [study.cell(joint, 0, trial).config.train.epochs for trial in range(3)]
    assert epochs == [trial["train.epochs"] for trial in study.trials(joint)]
    # pgm's own epochs are not searched, and its trials are as many as there are
    assert [study.cell(pgm, 1, trial).config.train.epochs for trial in range(2)] == [3, 3]
    assert [len(study.trials(group)) for group in (joint, pgm, groups["two", "logistic", 0])] == [3, 2, 3]
    cell = study.cell(groups["two", "logistic", 1], 1, 0)
    assert cell.model == "logistic" and cell.config.data.modalities == ["left"] and cell.config.data.resplit_seed == 1
    assert cell.config.train.seed == 1 and "C" in cell.settings
    assert study.baselines == ["joint"]


def test_with_split_numbers_each_seed_meets_each_split(written):
    study = written(TEXT + "splits: [5, 6, 7]\n")
    found = {(group.split, group.seeds) for group in study.groups() if group.set == "two"}
    assert found == {(5, (0, 1)), (6, (0, 1)), (7, (0, 1))}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "seads: [0]", "unknown 'seads' (did you mean seeds?)"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds=[0, 0] is not allowed; it takes different whole numbers"),
        ("train.epochs: 7", "train.epoch: 7", "unknown configuration key 'train.epoch' (did you mean train.epochs?)"),
        ("method: joint}", "method: join}", "set one, method joint: method='join' is not allowed"),
        ("{method: joint}", "{}", "methods.joint names no method"),
        ("{data.source: digits, train.epochs: 5}", "{}", "sets.one names no data; write one: {data.source: FILE}"),
        ("source: digits, resplit: all", "resplit: all", "sets.two names no data; write two: {data.source: FILE}"),
        ("methods: [logistic, pgm]", "methods: [logistics]", "'logistics' (did you mean logistic?)"),
        ("trials: 3", "trials: 0", "search.trials=0 is not allowed; it takes a whole number of at least 1"),
        ("train.lr: [1e-3, 3e-3]", "train.lr: 1e-3", "search.space.train.lr=0.001 must be a list"),
        ("train.lr: [1e-3, 3e-3]", "train.lr: [-1]", "train.lr=-1.0 is not allowed"),
        ("seeds: [0, 1]", "test: {missing: [1]}", "test.missing=[1] is not allowed"),
        ("seeds: [0, 1]", "baselines: [jont]", "baselines: unknown 'jont' (did you mean joint?)"),
        ("sets:", "set:", "unknown 'set' (did you mean sets?)"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(written, old, new, message):
    assert old in TEXT
    with pytest.raises(ConfigError) as refused:
        written(TEXT.replace(old, new, 1))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: {pgm: {method: pgm}}", "sets is missing; it maps names to settings, such as sets: {digits: {"),
        ("sets: {}", "sets is empty; it maps names to settings"),
        ("sets: [digits]", "sets=['digits'] must map names to settings, such as sets: {digits: {data.source: digits}}"),
        (
            "{sets: {digits: {data.source: digits}}, methods: [joint, pgm]}",
            "methods=['joint', 'pgm'] must map names to settings, such as methods: {joint: {method: joint}}",
        ),
    ],
)
def test_sets_and_methods_that_are_no_mappings_are_named_with_what_they_must_be(written, text, message):
    with pytest.raises(ConfigError) as refused:
        written(text)
    assert message in str(refused.value)


def test_what_is_no_study_file_is_named_as_what_it_is(tmp_path):
    (tmp_path / "features.npz").write_bytes(b"PK\x03\x04\xff\xfe")
    for path, kind in ((tmp_path, "it is a folder"), (tmp_path / "features.npz", "as text (UTF-8): it is of another")):
        with pytest.raises(ConfigError) as refused:
            read_study(path)
        message = str(refused.value)
        assert f"study file {path}" in message and kind in message and "give the path of a YAML file" in message
        assert "codec" not in message and "Errno" not in message


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_study_is_not_written_into_a_file(written, tmp_path, inside):
    study, file = written(TEXT), tmp_path / "study.yaml"
    with pytest.raises(ConfigError, match=rf"{file / inside} .*is a file; name a folder"):
        run_study(study, file / inside)
    assert file.read_text() == TEXT


def test_what_all_sets_share_may_name_the_data(written):
    text = TEXT.replace("data.source: digits, ", "").replace("common: {", "common: {data.source: digits, ")
    assert next(written(text).groups()).set == "one"


def test_a_study_is_the_same_however_its_settings_are_nested(written):
    nested = written(TEXT)
    dotted = written(TEXT.replace("train: {lr: 0.1}", "train.lr: 0.1"))
    group = next(iter(nested.groups()))
    assert nested.cell(group, 0, 1).config == dotted.cell(group, 0, 1).config
    assert replace(nested, common={}) == replace(dotted, common={})
