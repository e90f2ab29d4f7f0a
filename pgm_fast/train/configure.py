"""From a YAML file and overrides to a checked :class:`~pgm_fast.train.config.Config`, and back to YAML.

Everything that is wrong with a configuration is said here, in one line that names the key, what was given and what is
allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import presets
from ..data.media_settings import MediaConfig
from ..errors import ConfigError, did_you_mean
from ..settings import check_settings
from .config import SECTION_OF, Config
from .sharding import require_strategy

__all__ = [
    "ENVIRONMENT",
    "TRACKERS",
    "flat",
    "from_yaml",
    "make_config",
    "read_mapping",
    "to_dict",
    "to_yaml",
    "validate",
    "without_effect",
    "written_by_a_run",
]

T = TypeVar("T")

ENVIRONMENT = "environment"  # the section of a run's config.yaml that records versions: written, never read back

TRACKERS = ("tensorboard", "wandb", "mlflow")  # what train.logger takes

SECTIONS = {name: owner for name, owner in get_type_hints(Config).items() if is_dataclass(owner)}


# What a run did that was written before the setting existed.
EARLIER = {
    "model.normalize": False,
    "model.answer": "task",
    "pgm.identity_start": False,
    "pgm.information_weight": 0.0,
    "train.no_decay": False,
}

_EXACT = 2**53  # up to here a whole number that is written as a float, 1e3, is the one that was meant

_FORMER_SWITCH = "train.tensorboard"
_FORMER_PLACE = "data.options"  # of the settings of sounds and pictures that have a section now
_MOVED = ("sample_rate", "n_fft", "hop", "max_steps", "frames", "image_size")


def make_config(file: Path | str | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """The defaults, changed by a preset, changed by a YAML file, changed by overrides.

    A preset (see :mod:`pgm_fast.presets`) is named by the file's or an override's ``preset``.

    Args:
        file: YAML with the sections of :class:`Config`, or None.
        overrides: ``["train.epochs=5", "method=joint"]``, or a mapping, nested or with dotted keys
            (``{"train.epochs": 5}``, ``{"train": {"epochs": 5}}``).

    Returns:
        A checked configuration.

    Raises:
        ConfigError: an unreadable file, malformed YAML, an override without ``=``, an unknown key, a value of the wrong
            type, outside its range or not among those allowed.
    """
    given = [] if file is None else [read_mapping(file)]
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
    given += [{key: value} for key, value in pairs]
    config = OmegaConf.structured(Config)
    for name in [values["preset"] for values in given if values.get("preset")][-1:]:
        _apply(config, presets.read(str(name), "train"))
    for values in given:
        _apply(config, values)
    return _finish(config)


def read_mapping(file: Path | str, what: str = "configuration file") -> Mapping[str, Any]:
    """The content of a YAML file, ``what`` to messages. Raises ConfigError where it cannot be read, is malformed or
    holds no mapping."""
    return _parse(_read(Path(file), what), str(file))


def from_yaml(text: str) -> Config:
    """The inverse of :func:`to_yaml`; a setting that the text lacks is as it was before it existed.

    Raises ConfigError like :func:`make_config`.
    """
    config = OmegaConf.structured(Config)
    _apply(config, EARLIER)
    _apply(config, _parse(text, "the configuration"))
    return _finish(config)


def to_dict(config: Config) -> dict[str, Any]:
    """Every value as plain containers, for checkpoints and reports."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)


def flat(config: Config) -> dict[str, Any]:
    """Every value by its dotted key: ``{"train.lr": 0.001, ...}``."""

    def leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(to_dict(config), ""))


def to_yaml(config: Config, environment: Mapping[str, Any] | None = None) -> str:
    """Every value as YAML.

    Args:
        config: what to write.
        environment: versions and the like, written as a last section ``environment`` that :func:`from_yaml` and
            :func:`make_config` pass over. Plain containers only.
    """
    text = OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)
    if environment is not None:
        text += yaml.safe_dump({ENVIRONMENT: dict(environment)}, sort_keys=False, allow_unicode=True)
    return text


def written_by_a_run(text: str) -> bool:
    """Whether this is the config.yaml of a run: settings that can be read, and the version that has written them.

    Settings alone prove nothing: ``train: {epochs: 5}`` is in many a project's configuration.
    """
    try:
        from_yaml(text)
    except ConfigError:
        return False
    environment = yaml.safe_load(text).get(ENVIRONMENT)
    versions = environment.get("versions") if isinstance(environment, dict) else None
    return isinstance(versions, dict) and "pgm_fast" in versions


def validate(config: Config) -> None:
    """Check the type of every value, and the value where there is a range or a fixed set of choices.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    try:
        OmegaConf.structured(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration holds a value of the wrong type: {_first_line(error)}") from None
    _check_values(config)


def without_effect(config: Config) -> list[str]:
    """Dotted keys of the settings that are not at their defaults and belong to another method than the one trained."""
    others = set(SECTION_OF.values()) - {SECTION_OF[config.method]}
    usual = flat(Config())
    return [key for key, value in flat(config).items() if key.split(".")[0] in others and value != usual.get(key)]


def _check_values(config: Config) -> None:
    check_settings(config, "")
    for section in SECTIONS:
        check_settings(getattr(config, section), section)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.train.device):
        raise _refused("train.device", config.train.device, "auto, cpu, cuda, cuda:0, cuda:1, ...")
    for key in ("dim", "hidden"):
        if (size := getattr(config.model, key)) % config.model.heads:
            raise _refused("model.heads", config.model.heads, f"a divisor of model.{key}={size}")
    if config.model.dim % config.pgm.chunk:
        raise _refused("pgm.chunk", config.pgm.chunk, f"a divisor of model.dim={config.model.dim}")
    for modality, share in config.pgm.share_target.items():
        if not 0 <= share <= 1:
            raise _refused(f"pgm.share_target.{modality}", share, "a number from 0 to 1")
    for section in SECTIONS:
        for modality, parts in getattr(getattr(config, section), "rates", {}).items():
            for part, rate in parts.items():
                if not (math.isfinite(rate) and rate >= 0):
                    raise _refused(f"{section}.rates.{modality}.{part}", rate, "a finite number of at least 0")
    for key in ("data.source", "data.label", "out"):
        if not _get(config, key).strip():
            raise _refused(key, _get(config, key), "a name or a path")
    names = config.data.modalities
    if names is not None and (not names or len(set(names)) != len(names)):
        raise _refused("data.modalities", list(names), "at least one name, each once, or null for all")
    names = config.train.logger
    if len(set(names)) != len(names) or not set(names) <= set(TRACKERS):
        near = next((did_you_mean(name, TRACKERS) for name in names if name not in TRACKERS), "")
        allowed = f"a list of any of {', '.join(TRACKERS)}, each once; [] for none"
        raise _refused("train.logger", list(names), allowed, near)
    require_strategy(config)


def _refused(key: str, value: Any, allowed: str, near: str = "") -> ConfigError:
    return ConfigError(f"{key}={value!r} is not allowed{near}; it takes {allowed}")


def _finish(config) -> Config:
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        raise ConfigError(f"{key} cannot be resolved: {_first_line(error)}") from None
    _check_values(result)  # types were checked as values were set
    return result


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{what} {path} cannot be read: it is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{what} {path} cannot be read as text (UTF-8): it is of another kind; give the path of a YAML file"
        ) from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}; give the path of a YAML file") from None


def _parse(text: str, name: str) -> Mapping[str, Any]:
    try:
        value = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{name} is not valid YAML{where}: {' '.join(problem.split())}") from None
    except (OmegaConfBaseException, OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} is not a usable configuration: {_first_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{name} is not a usable configuration: it is nested too deep") from None
    # A lone word parses to {word: None}.
    if not isinstance(value, dict) or (len(value) == 1 and ":" not in text):
        raise ConfigError(f"{name} holds no sections; write keys and values, such as 'train: {{epochs: 5}}'")
    return {key: item for key, item in value.items() if key != ENVIRONMENT}


class _Typed(str):
    """A value as it was typed on the command line: text where the key takes text, YAML elsewhere."""


def _split(override: str) -> tuple[str, _Typed]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form key=value; write for example train.epochs=5")
    return key.strip(), _Typed(text.strip())


def _apply(config, values: Mapping[str, Any]) -> None:
    for key, hint, given in _leaves(Config, values, ""):
        value = _value_of(key, hint, given)
        _refuse_interpolation(key, value)
        try:
            OmegaConf.update(config, key, value, merge=True)
        except (OmegaConfBaseException, TypeError, ValueError):
            if isinstance(given, _Typed) and not given:
                raise ConfigError(f"{key}= has no value; it takes {_type_name(hint)}") from None
            where, hint, value = _misfit(key, hint, value) or (key, hint, value)
            raise ConfigError(f"{where}={value!r} has the wrong type; it takes {_type_name(hint)}") from None


def _refuse_interpolation(key: str, value: Any) -> None:
    """A configuration is plain values. What OmegaConf would put in place of ``${...}`` is another's to choose where a
    file is a stranger's, an environment variable say, and would be written into the run."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_interpolation(key, str(name))
            _refuse_interpolation(f"{key}.{name}", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_interpolation(key, item)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"{key}={value!r} holds ${{...}}, which is not looked up: write the value itself")


def _misfit(key: str, hint: Any, value: Any) -> tuple[str, Any, Any] | None:
    """(dotted key, type, value) of the first place inside a mapping that does not have its type."""
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            return key, hint, value
        inner = (_misfit(f"{key}.{name}", get_args(hint)[-1], item) for name, item in value.items())
        return next(filter(None, inner), None)
    wrong = hint is float and (isinstance(value, bool) or not isinstance(value, (int, float)))
    return (key, hint, value) if wrong else None


def _leaves(owner: type, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, value) for every field of the dataclass ``owner`` that ``values`` sets."""
    hints = get_type_hints(owner)
    for key, value in values.items():
        name, *rest = str(key).split(".")
        if f"{prefix}{name}" == _FORMER_SWITCH and not rest:
            name, value = "logger", _tracker_of_switch(value)
        if name not in hints:
            raise _unknown(str(key), owner, prefix)
        for part in reversed(rest):
            value = {part: value}
        if f"{prefix}{name}" == _FORMER_PLACE:
            value = _parse_typed(_FORMER_PLACE, hints[name], value) if isinstance(value, _Typed) else value
            moved = {key: item for key, item in _items(value) if key in _MOVED}
            yield from _leaves(MediaConfig, moved, "media.")
            if moved:
                value = {key: item for key, item in _items(value) if key not in moved}
        if not is_dataclass(hints[name]):
            yield f"{prefix}{name}", hints[name], value
        elif isinstance(value, Mapping) or value is None:  # None: a section of a file with nothing in it
            yield from _leaves(hints[name], value or {}, f"{prefix}{name}.")
        else:
            keys = list(get_type_hints(hints[name]))
            example = f"(write for example {prefix}{name}.{keys[0]}=...)"
            raise _refused(f"{prefix}{name}", value, f"the keys {', '.join(keys)} below it {example}")


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _tracker_of_switch(value: Any) -> list[str]:
    """train.logger, from the switch that it was before there were other trackers."""
    given = _parse_typed(_FORMER_SWITCH, bool, _Typed(value))
    if not isinstance(given, int) or given not in (0, 1):
        raise _refused(_FORMER_SWITCH, given, "true or false, and is train.logger=[tensorboard] or train.logger=[] now")
    return ["tensorboard"] if given else []


def _value_of(key: str, hint: Any, value: Any) -> Any:
    if isinstance(value, _Typed):
        value = _parse_typed(key, hint, value)
    if isinstance(value, Mapping):
        inner = get_args(hint)[-1] if get_origin(hint) is dict else Any
        return {str(name): _value_of(f"{key}.{name}", inner, item) for name, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    if hint is int and type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    # OmegaConf 2.3 takes a whole number for a float, but not inside a mapping.
    return float(value) if hint is float and type(value) is int else value


def _parse_typed(key: str, hint: Any, text: _Typed) -> Any:
    wants_text = hint is str or (_is_union(hint) and str in get_args(hint))
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        if not wants_text:
            raise ConfigError(f"{key}={text!s} is not valid YAML; it takes {_type_name(hint)}") from None
        parsed = str(text)
    if wants_text and not isinstance(parsed, str) and text not in ("", "~", "null"):
        return str(text)
    if isinstance(parsed, str) and _is_list(hint):
        return [part.strip() for part in parsed.split(",")]
    return parsed


def _unknown(key: str, owner: type, prefix: str) -> ConfigError:
    allowed = list(get_type_hints(owner))
    name = key.split(".")[-1]
    elsewhere = [f"{section}.{name}" for section, hint in SECTIONS.items() if name in get_type_hints(hint)]
    near = f" (did you mean {' or '.join(elsewhere)}?)"
    if not elsewhere:
        near = did_you_mean(key.split(".")[0], allowed, prefix, most=2, cutoff=0.65)
    where = f"section {prefix[:-1]}" if prefix else "the top level"
    return ConfigError(f"unknown configuration key '{prefix}{key}'{near}; {where} takes {', '.join(allowed)}")


def _get(config: Config, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is list or any(get_origin(arg) is list for arg in get_args(hint))


def _type_name(hint: Any) -> str:
    """A type in words."""
    if _is_union(hint):
        return " or ".join(_type_name(arg) for arg in get_args(hint))
    if get_origin(hint) is dict:
        return f"a mapping of names to {_type_name(get_args(hint)[1])}"
    if get_origin(hint) is list:
        return "a list such as [a, b]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, "any value")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
