"""What may be relied on: a configuration survives YAML unchanged, and what is wrong is refused with what is right."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgm_fast.data.feature_set import TASKS
from pgm_fast.errors import ConfigError
from pgm_fast.methods import METHODS
from pgm_fast.settings import choices_of, ranges_of
from pgm_fast.train.config import SECTION_OF, Config
from pgm_fast.train.configure import from_yaml, make_config, to_dict, to_yaml, validate, without_effect

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: text.strip() and "$" not in text
)


def refusal(file=None, overrides=()):
    """The message of the ConfigError that these raise; always one line."""
    with pytest.raises(ConfigError) as caught:
        make_config(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@settings(max_examples=10)
@given(
    source=names,
    modalities=st.none() | st.lists(names, min_size=1, unique=True),
    lr=st.floats(1e-12, 1e6),
    rates=st.dictionaries(names, st.dictionaries(names, st.floats(0, 1e6), max_size=2), max_size=2),
    epochs=st.integers(1, 2**40),
    plots=st.booleans(),
)
def test_yaml_round_trip(source, modalities, lr, rates, epochs, plots):
    base = Config()
    config = replace(
        base,
        data=replace(base.data, source=source, modalities=modalities, options={"n": 3, "kind": "xor"}),
        pgm=replace(base.pgm, rates=rates),
        train=replace(base.train, lr=lr, epochs=epochs, plots=plots),
    )
    assert from_yaml(to_yaml(config)) == config
    assert make_config(None, to_dict(config)) == config


def test_every_method_and_task_can_be_chosen():
    for method in METHODS:
        assert make_config(None, [f"method={method}"]).method == method
    for task in TASKS:
        assert make_config(None, [f"data.task={task}"]).data.task == task


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("train: {epochs: 7, lr: 3e-4}\npgm:\n")
    config = make_config(file, ["train.epochs=8"])
    assert (config.train.epochs, config.train.lr) == (8, 3e-4)
    assert config.train.batch_size == Config().train.batch_size
    assert config.pgm == Config().pgm


def test_text_mappings_and_nested_mappings_say_the_same():
    texts = [
        "train.epochs=5",
        "data.modalities=[a, b]",
        "pgm.rates.a.uni=2",
        "pgm.rates.*.head=0.5",
        "data.group_by=video",
    ]
    dotted = {
        "train.epochs": 5,
        "data.modalities": ["a", "b"],
        "pgm.rates": {"a": {"uni": 2}, "*": {"head": 0.5}},
        "data.group_by": "video",
    }
    nested = {
        "train": {"epochs": 5},
        "data": {"modalities": ("a", "b"), "group_by": "video"},
        "pgm": {"rates": {"a": {"uni": 2.0}, "*": {"head": 0.5}}},
    }
    assert make_config(None, texts) == make_config(None, dotted) == make_config(None, nested)
    assert make_config(None, ["data.modalities=a,b"]).data.modalities == ["a", "b"]


@pytest.mark.parametrize("text", ["on", "3", "*.npz", "[a: b", "C:\\x", "a=b", "{x}", "1e3", "#1", "Null"])
def test_a_key_that_takes_text_takes_it_as_typed(text):
    assert make_config(None, [f"data.source={text}"]).data.source == text


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {epochs: 1e2}")
    for config in (make_config(None, ["train.epochs=1e2"]), make_config(tmp_path / "c.yaml")):
        assert config.train.epochs == 100 and type(config.train.epochs) is int


def test_null_clears_an_optional_text():
    assert make_config(None, ["data.group_by=video", "data.group_by=null"]).data.group_by is None


def test_the_environment_of_a_run_is_written_and_passed_over(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(Config(), environment={"versions": {"torch": "2.13"}, "git_commit": None}))
    assert "torch: '2.13'" in file.read_text()
    assert make_config(file) == Config()


def test_no_two_configurations_share_a_mutable_value():
    make_config(None, ["pgm.rates.a.uni=2", "data.options.n=3"])
    assert make_config().pgm.rates == {} and make_config().data.options == {}


def test_an_unknown_key_is_named_with_its_section_neighbours_and_choices():
    message = refusal(overrides=["train.epohs=3"])
    assert (
        "'train.epohs'" in message
        and "did you mean train.epochs?" in message
        and "section train takes epochs," in message
    )
    assert "did you mean train.epochs?" in refusal(overrides=["epochs=3"])
    assert "the top level takes method," in refusal(overrides=["trian.epochs=3"])
    assert "did you mean" not in refusal(overrides=["zzz=3"])
    assert "'data.rates'" in refusal(overrides={"data": {"rates": {}}})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=x", "train.epochs='x' has the wrong type; it takes a whole number"),
        ("train.epochs=1.5", "train.epochs=1.5 has the wrong type; it takes a whole number"),
        ("train.epochs=true", "train.epochs=True has the wrong type; it takes a whole number"),
        ("train.epochs=[1", "train.epochs=[1 is not valid YAML; it takes a whole number"),
        ("train.epochs=null", "train.epochs=None has the wrong type"),
        ("train.epochs.x=1", "train.epochs={'x': 1} has the wrong type"),
        ("train.plots=perhaps", "train.plots='perhaps' has the wrong type; it takes true or false"),
        ("pgm.rates.a.uni=x", "pgm.rates.a.uni='x' has the wrong type; it takes a number"),
        ("pgm.rates.a=2", "pgm.rates.a=2 has the wrong type; it takes a mapping of names to a number"),
        ("data.source=", "data.source= has no value; it takes text"),
        ("train.epochs=", "train.epochs= has no value; it takes a whole number"),
        ("train.plots= ", "train.plots= has no value; it takes true or false"),
        ("train.epochs=1e300", "train.epochs=1e+300 has the wrong type; it takes a whole number"),
        ("train.threads=100000", "train.threads=100000 is not allowed; it takes a number of at least 0 and of at most"),
        ("train.lr=inf", "train.lr=inf is not allowed; it takes a finite number above 0"),
        ("train.lr=nan", "train.lr=nan is not allowed; it takes a finite number above 0"),
        ("pgm.rates.a.uni=.inf", "pgm.rates.a.uni=inf is not allowed; it takes a finite number of at least 0"),
        ("data=x.npz", "data='x.npz' is not allowed; it takes the keys source,"),
        ("out=${nowhere}", "holds ${...}, which is not looked up: write the value itself"),
        ("train.epochs", "override 'train.epochs' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
    ],
)
def test_a_wrong_value_is_named_with_what_the_key_takes(override, expected):
    assert expected in refusal(overrides=[override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: [", "is not valid YAML at line"),
        ("train: {epochs: 1, epochs: 2}", "found duplicate key epochs"),
        ("words", "holds no sections"),
        ("- a", "holds no sections"),
        ("3", "is not a usable configuration"),
        ("nope: 3", "unknown configuration key 'nope'"),
        ("out: ${nowhere}", "holds ${...}, which is not looked up: write the value itself"),
        ("out: '${oc.env:HOME}'", "holds ${...}, which is not looked up"),
        ("pgm: {rates: {'${oc.env:HOME}': {uni: 1.0}}}", "holds ${...}, which is not looked up"),
        ("data: {modalities: ['${oc.env:HOME}']}", "holds ${...}, which is not looked up"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, expected):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert expected in refusal(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert f"{tmp_path / 'none.yaml'} does not exist" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in refusal(tmp_path / "binary.yaml")


def declared(of):
    """Dotted key -> what stands beside the setting of it."""
    sections = {name: owner for name, owner in get_type_hints(Config).items() if is_dataclass(owner)}
    inner = {f"{section}.{name}": found for section, owner in sections.items() for name, found in of(owner).items()}
    return {**of(Config), **inner}


CHOICES, RANGES = declared(choices_of), declared(ranges_of)


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_outside_its_choices_is_refused_with_all_of_them(key):
    message = refusal(overrides=[f"{key}=nonesuch"])
    assert message.startswith(f"{key}='nonesuch' is not allowed") and message.endswith(", ".join(CHOICES[key]))
    for choice in CHOICES[key]:
        make_config(None, [f"{key}={choice}"])


@pytest.mark.parametrize("key", RANGES)
def test_a_number_outside_its_range_is_refused(key):
    assert key in refusal(overrides=[f"{key}=-1"])
    message = refusal(overrides={key: math.nan}) if get_field_type(key) is float else refusal(overrides=[f"{key}=-2"])
    assert key in message and re.search("it takes a (finite )?number", message)


def get_field_type(key):
    section, name = key.split(".")
    return get_type_hints(get_type_hints(Config)[section])[name]


def test_every_number_has_a_range():
    numbers = {
        f"{section}.{field.name}"
        for section, owner in get_type_hints(Config).items()
        if is_dataclass(owner)
        for field in fields(owner)
        if get_type_hints(owner)[field.name] in (int, float, float | None)
    }
    assert set(RANGES) == numbers


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.heads=3"], "model.heads=3 is not allowed; it takes a divisor of model.dim=64"),
        (["model.hidden=130"], "it takes a divisor of model.hidden=130"),
        (["pgm.chunk=5"], "pgm.chunk=5 is not allowed; it takes a divisor of model.dim=64"),
        (["train.device=gpu"], "it takes auto, cpu, cuda, cuda:0"),
        (["pgm.share_target.audio=1.5"], "pgm.share_target.audio=1.5"),
        (["pgm.rates.audio.uni=-1"], "pgm.rates.audio.uni=-1.0"),
        (["baseline.rates.*.head=inf"], "baseline.rates.*.head"),
        (["data.modalities=[]"], "data.modalities=[]"),
        (["data.modalities=[a,a]"], "each once"),
    ],
)
def test_combinations_that_do_not_fit_are_refused(overrides, expected):
    assert expected in refusal(overrides=overrides)


def test_settings_of_another_method_are_told_from_those_that_count():
    settings = {"pgm.temperature": 2.0, "baseline.rates": {"a": {"encoder": 0.5}}, "model.dim": 32, "train.epochs": 3}
    given = {name: without_effect(make_config(None, {**settings, "method": name})) for name in METHODS}
    for name, section in SECTION_OF.items():
        expected = [key for key in ("pgm.temperature", "baseline.rates.a.encoder") if key.split(".")[0] != section]
        assert given[name] == expected, name


def test_a_modality_with_a_dot_in_its_name_is_blamed_whole(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("pgm: {rates: {a.b: {uni: x}}}")
    assert "pgm.rates.a.b.uni='x' has the wrong type; it takes a number" in refusal(file)
    file.write_text("pgm: {rates: {a.b: {uni: 2}}}")
    assert make_config(file).pgm.rates == {"a.b": {"uni": 2.0}}


def test_validate_finds_what_python_lets_through():
    config = Config()
    config.train.epochs = "many"
    with pytest.raises(ConfigError, match="wrong type"):
        validate(config)
    config.train.epochs = 0
    with pytest.raises(ConfigError, match="train.epochs=0"):
        validate(config)


def test_settings_of_sounds_and_pictures_are_read_where_they_were_before_they_had_a_section():
    now = make_config(None, ["media.image_size=64", "media.hop=100"])
    assert make_config(None, ["data.options={image_size: 64, hop: 100}"]) == now
    assert make_config(None, ["data.options.image_size=64", "data.options.hop=100"]) == now
    assert from_yaml("data: {options: {image_size: 64, hop: 100}}").media == now.media
    both = make_config(None, {"data.options": {"kind": "xor", "frames": 2}})
    assert (both.data.options, both.media.frames) == ({"kind": "xor"}, 2)
    with pytest.raises(ConfigError, match="media.frames=0 is not allowed"):
        make_config(None, ["data.options.frames=0"])
