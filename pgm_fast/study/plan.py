"""What a study file asks for: sets, methods, seeds, splits and a search space, and the cells that they make.

A *cell* is one training: a method on a set, with a seed, on a split, with the settings of one trial. A *group* is what
one choice is made for: a method on a split of a set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, did_you_mean
from ..train.config import Config
from ..train.configure import read_mapping
from ..train.features import resolve_config
from .classical import SPACES

__all__ = ["Cell", "Conditions", "Group", "Search", "Study", "draw_trials", "read_study"]

BASELINES = ("joint", "ensemble", "unimodal")
LARGEST_GRID = 10**6
# Every cell has one core, and files that change no number are not written.
FIXED = {"train.threads": 1, "train.plots": False, "train.logger": []}


@dataclass(frozen=True)
class Search:
    """What is tried for every method.

    Attributes:
        trials: how many combinations, the same number for every method (fewer where its space has no more).
        space: setting -> values.
        seed: of the combinations drawn.
        seeds: with how many of a split's seeds each combination is tried. What is chosen serves all of them.
    """

    trials: int = 1
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seed: int = 0
    seeds: int = 1


@dataclass(frozen=True)
class Conditions:
    """Conditions that the chosen models are tested under, besides the test rows as they are.

    Attributes:
        missing: probabilities with which each modality of a row is hidden, never all of them.
        noise: standard deviations, in those of the training rows, of noise added to one modality at a time.
    """

    missing: Sequence[float] = ()
    noise: Sequence[float] = ()


@dataclass(frozen=True)
class Group:
    """A method on a split of a set, with the seeds that it is trained with. ``split`` is None for the set's own."""

    set: str
    method: str
    split: int | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        group: what it belongs to.
        seed: of weights, dropout and order.
        trial: number of the combination.
        settings: the combination.
        model: a row of scikit-learn's (see :mod:`.classical`), or None for a method of the engine.
        config: all settings; for scikit-learn's rows only those of the data count.
    """

    group: Group
    seed: int
    trial: int
    settings: Mapping[str, Any]
    model: str | None
    config: Config

    def __str__(self) -> str:
        split = "" if self.group.split is None else f", split {self.group.split}"
        return f"{self.group.method} on {self.group.set}{split}, seed {self.seed}, trial {self.trial}"


@dataclass(frozen=True)
class Study:
    """A study file, checked.

    Attributes:
        sets: name -> settings, as ``pgm-fast train`` takes them; ``methods`` among them names the rows that are run.
        methods: row -> settings; ``method`` is the engine's or scikit-learn's, ``space`` changes the search space.
        seeds: each trained on every split.
        splits: numbers of the random splits of a set that asks for some by ``data.resplit``; None: each seed has one of
            its own, of the same number.
        common: settings of all cells; those of a set go before them, those of a trial before both, a method's own
            before all.
        search: what is tried.
        baselines: rows; the best of them on validation is what the others are compared with.
        test: conditions of the test.
    """

    sets: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int] = (0,)
    splits: Sequence[int] | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    search: Search = Search()
    baselines: Sequence[str] = ()
    test: Conditions = Conditions()
    _configs: dict[tuple[str, str, int], Config] = field(default_factory=dict, repr=False, compare=False)

    def groups(self) -> Iterator[Group]:
        """All groups, every set and method of one split before the next split."""
        splits = {name: self._splits_of(name) for name in self.sets}
        for number in range(max(map(len, splits.values()))):
            for name, settings in self.sets.items():
                for split, seeds in splits[name][number : number + 1]:
                    yield from (Group(name, row, split, seeds) for row in settings.get("methods", self.methods))

    def trials(self, group: Group) -> list[dict[str, Any]]:
        """The combinations that are tried, the same for every set, split and seed."""
        space = self._space(group.method)
        return draw_trials(space, self.search.trials, self.search.seed)

    def cell(self, group: Group, seed: int, trial: int) -> Cell:
        """One cell of a group. Raises ConfigError where its settings are not allowed."""
        model, settings = self._model(group.method), self.trials(group)[trial]
        config = self._config(group.set, group.method, trial)
        split = config.data.resplit_seed if group.split is None else group.split
        config = replace(config, data=replace(config.data, resplit_seed=split), train=replace(config.train, seed=seed))
        fixed = {key: value for key, value in self.methods[group.method].items() if model and key in SPACES[model]}
        return Cell(group, seed, trial, {**fixed, **settings}, model, config)

    def _model(self, row: str) -> str | None:
        name = self.methods[row]["method"]
        return name if name in SPACES else None

    def _space(self, row: str) -> dict[str, Sequence[Any]]:
        own, model = self.methods[row], self._model(row)
        space = {**(SPACES[model] if model else self.search.space), **own.get("space", {})}
        set_by_the_row = _flat({key: value for key, value in own.items() if key != "space"})
        return {key: values for key, values in space.items() if key not in set_by_the_row}

    def _splits_of(self, name: str) -> list[tuple[int | None, tuple[int, ...]]]:
        """``(split, seeds)`` of a set."""
        first = self.sets[name].get("methods", list(self.methods))[0]
        seeds = tuple(self.seeds)
        if self._config(name, first, 0).data.resplit == "none":
            return [(None, seeds)]
        if self.splits is None:
            return [(seed, (seed,)) for seed in seeds]
        return [(split, seeds) for split in self.splits]

    def _config(self, name: str, row: str, trial: int) -> Config:
        """The settings of a trial but for seed and split; made once, which takes a while."""
        if (name, row, trial) in self._configs:
            return self._configs[name, row, trial]
        model = self._model(row)
        own = _flat({key: value for key, value in self.methods[row].items() if key != "space"})
        here = _flat({key: value for key, value in self.sets[name].items() if key != "methods"})
        tried = draw_trials(self._space(row), self.search.trials, self.search.seed)[trial]
        if model is not None:
            own = {key: value for key, value in own.items() if key not in SPACES[model] and key != "method"}
            tried = {}
        try:
            config = resolve_config({**_flat(self.common), **here, **tried, **own, **FIXED}, None, {})
        except ConfigError as error:
            raise ConfigError(f"set {name}, method {row}: {error}") from None
        self._configs[name, row, trial] = config
        return config


def draw_trials(space: Mapping[str, Sequence[Any]], trials: int, seed: int) -> list[dict[str, Any]]:
    """Combinations of the values, none twice: the first ``trials`` of the grid's in a seeded order, or all of them.

    More trials begin with those that fewer give. An empty space has one combination, the empty one.
    """
    size = math.prod(map(len, space.values()))
    if size <= trials:
        return [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(size)[:trials]
    sizes = [len(values) for values in space.values()]
    places = zip(*np.unravel_index(order, sizes), strict=True)
    return [{key: values[k] for (key, values), k in zip(space.items(), place, strict=True)} for place in places]


def read_study(file: str | Path) -> Study:
    """A study file, checked as far as it can be without data: every cell's settings are allowed.

    Raises:
        ConfigError: names the key, what was given and what is allowed.
    """
    content = read_mapping(file, "study file")
    _only(content, [f.name for f in fields(Study) if not f.name.startswith("_")], f"{file}")
    for key in ("sets", "methods"):
        if not isinstance(content.get(key), Mapping) or not content[key]:
            if content.get(key):
                state = f"{key}={content[key]!r} must map"
            else:
                state = f"{key} is {'empty' if key in content else 'missing'}; it maps"
            raise ConfigError(f"{file}: {state} names to settings, such as {key}: {{{_EXAMPLES[key]}}}")
    search = _section(content, "search", Search)
    study = Study(
        sets=_named(content, "sets"),
        methods=_named(content, "methods"),
        seeds=_numbers(content.get("seeds", [0]), "seeds"),
        splits=None if content.get("splits") is None else _numbers(content["splits"], "splits"),
        common=content.get("common") or {},
        search=replace(search, space=_space(search.space, "search.space")),
        baselines=content.get("baselines") or (),
        test=_section(content, "test", Conditions),
    )
    return _checked(study)


_EXAMPLES = {"sets": "digits: {data.source: digits}", "methods": "joint: {method: joint}"}


def _checked(study: Study) -> Study:
    for row, settings in study.methods.items():
        if "method" not in settings:
            raise ConfigError(f"methods.{row} names no method; write {row}: {{method: joint}}, say")
        _space(settings.get("space", {}), f"methods.{row}.space")
    lists = {f"sets.{name}.methods": of["methods"] for name, of in study.sets.items() if "methods" in of}
    for key, rows in {"baselines": study.baselines, **lists}.items():
        if not isinstance(rows, (list, tuple)) or (key != "baselines" and not rows):
            raise ConfigError(f"{key}={rows!r} must be a list of rows of methods")
        for row in rows:
            _known(row, study.methods, key)
    for name, settings in study.sets.items():
        given = {**_flat(study.common), **_flat(settings)}
        for row in settings.get("methods", study.methods):
            if "data.source" not in {**given, **_flat(study.methods[row]), **study._space(row)}:
                raise ConfigError(
                    f"sets.{name} names no data; write {name}: {{data.source: FILE}}, with digits for FILE, say"
                )
    search, test = study.search, study.test
    for key, value in {"search.trials": search.trials, "search.seeds": search.seeds}.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"{key}={value!r} is not allowed; it takes a whole number of at least 1")
    for key, values, allowed, fits in (
        ("test.missing", test.missing, "of at least 0 and below 1", lambda x: 0 <= x < 1),
        ("test.noise", test.noise, "of at least 0", lambda x: x >= 0),
    ):
        wrong = not isinstance(values, (list, tuple)) or any(type(x) not in (int, float) or not fits(x) for x in values)
        if wrong:
            raise ConfigError(f"{key}={values!r} is not allowed; it takes a list of numbers {allowed}")
    if not study.baselines:
        found = [row for row, settings in study.methods.items() if settings["method"] in BASELINES]
        study = replace(study, baselines=found)
    for group in study.groups():
        for trial in range(len(study.trials(group))):
            study._config(group.set, group.method, trial)
    return study


def _section(content: Mapping[str, Any], key: str, kind: type) -> Any:
    values = content.get(key) or {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key}={values!r} must map {', '.join(f.name for f in fields(kind))} to values")
    _only(values, [f.name for f in fields(kind)], key)
    return kind(**values)


def _named(content: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    for name, settings in content[key].items():
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{key}.{name}={settings!r} must map settings to values, such as {_EXAMPLES[key]}")
    return {str(name): dict(settings) for name, settings in content[key].items()}


def _space(space: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(space, Mapping):
        raise ConfigError(f"{where}={space!r} must map settings to lists of values, such as train.lr: [0.001, 0.003]")
    for key, values in space.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(
                f"{where}.{key}={values!r} must be a list of the values to try; one value belongs to common"
            )
    if (size := math.prod(map(len, space.values()))) > LARGEST_GRID:
        raise ConfigError(f"{where} has {size} combinations; at most {LARGEST_GRID} are drawn from, give fewer values")
    return dict(space)


def _numbers(values: Any, key: str) -> list[int]:
    whole = isinstance(values, (list, tuple)) and all(type(value) is int and value >= 0 for value in values)
    if not whole or not values or len(set(values)) < len(values):
        raise ConfigError(f"{key}={values!r} is not allowed; it takes different whole numbers, such as [0, 1, 2]")
    return list(values)


def _only(values: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in values:
        _known(key, allowed, where)


def _known(name: Any, allowed: Sequence[str] | Mapping[str, Any], where: str) -> None:
    if name not in allowed:
        raise ConfigError(f"{where}: unknown {name!r}{did_you_mean(name, allowed)}; it takes {', '.join(allowed)}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
