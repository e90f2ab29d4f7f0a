"""A cell's name, its file and the work that fills it, in whichever process."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ..data.feature_set import SPLITS, FeatureSet
from ..env import checked_out, processor_name, versions
from ..errors import CheckpointError
from ..train import evaluate, fit
from ..train.config import SECTION_OF, Config
from ..train.features import load_features
from ..train.run.fingerprints import content_marks
from ..train.run.json_files import read_json, write_json
from ..train.scores.metrics import score
from .classical import Classical
from .conditions import rows_under
from .plan import Cell, Conditions

__all__ = ["Data", "Job", "ProbeJob", "TrainJob", "content_of", "describe_data", "reading_of"]

# What counts of the data besides the fingerprint, and what of the loop says nothing about a result.
_BESIDE_THE_DATA = ("standardize", "modality_dropout")
_NO_MATTER = ("threads", "workers", "plots", "logger")


@dataclass(frozen=True)
class Data:
    """What a cell's name and the tables need of its data: the fingerprint, the task, and the rows of each split."""

    marks: Mapping[str, Any]
    task: str
    rows: Mapping[str, int]


def describe_data(features: FeatureSet) -> Data:
    """The facts about a set on one split. Reads every value once."""
    rows = {split: int(features.row_ranges(features.rows(split))[1].sum()) for split in SPLITS}
    return Data(content_marks(features), features.task, rows)


def reading_of(config: Config) -> str:
    """A text that is the same for two configurations that read the same data."""
    used = asdict(config.data)
    reading = {key: used[key] for key in used if key not in (*_BESIDE_THE_DATA, "resident")}
    return json.dumps({**reading, "media": asdict(config.media)})


@dataclass(frozen=True)
class TrainJob:
    """The training of a cell.

    Attributes:
        cell: which.
        data: its data.
        folder: of the study.
        keep: whether the model stays in ``models/`` to be tested under conditions.
    """

    cell: Cell
    data: Data
    folder: Path
    keep: bool = False

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on, but for versions: settings, and the values of the data."""
        if self.cell.model is not None:
            settings = {"model": self.cell.model, "settings": self.cell.settings, "seed": self.cell.seed}
        else:
            settings = _settings_that_count(self.cell.config)
        return _hash({"settings": settings, "data": list(self.data.marks.items())})  # modalities have an order

    @property
    def file(self) -> Path:
        return self.folder / "cells" / f"{self.key}.json"

    @property
    def model(self) -> Path:
        """Folder of the run, there while the model may still be needed."""
        return self.folder / "models" / self.key

    def run(self) -> None:
        """Train, and write the file."""
        cell = self.cell
        found = self._fit() if cell.model is None else self._fit_classical()
        content = {
            "set": cell.group.set,
            "method": cell.group.method,
            "split": cell.group.split,
            "seed": cell.seed,
            "trial": cell.trial,
            "settings": dict(cell.settings),
            "task": self.data.task,
            "rows": dict(self.data.rows),
            **found,
            "config": asdict(cell.config),
            "data": dict(self.data.marks),
            **_surroundings(),
        }
        write_json(self.file, content)

    def train(self) -> None:
        """Train the engine's model into :attr:`model`."""
        fit(replace(self.cell.config, out=str(self.model)), overwrite=True)

    def _fit(self) -> dict[str, Any]:
        try:
            self.train()
            report = read_json(self.model / "report.json")
        finally:
            if not self.keep:
                shutil.rmtree(self.model, ignore_errors=True)
        kept = ("valid", "test", "shares", "gates", "epochs", "best_epoch", "parameters", "timing")
        return {key: report[key] for key in kept}

    def _fit_classical(self) -> dict[str, Any]:
        features = load_features(self.cell.config)
        model = self.fitted(features)
        return {split: model.scores(features, split) for split in ("valid", "test")}

    def fitted(self, features: FeatureSet) -> Classical:
        """scikit-learn's model of this cell."""
        return Classical(self.cell.model, self.cell.settings, features, self.cell.seed)

    def validation_score(self) -> float:
        """Of a cell that is there: the one number that a choice sees, larger is better."""
        content = read_json(self.file)
        return score(content["task"], content["valid"]["fused"], self.cell.config.train.monitor)

    def discard_model(self) -> None:
        shutil.rmtree(self.model, ignore_errors=True)

    def __str__(self) -> str:
        return str(self.cell)


@dataclass(frozen=True)
class ProbeJob:
    """The test of a chosen cell's model under conditions."""

    trained: TrainJob
    conditions: Conditions

    @property
    def key(self) -> str:
        return _hash({"cell": self.trained.key, "conditions": asdict(self.conditions)})

    @property
    def file(self) -> Path:
        return self.trained.folder / "cells" / f"{self.key}.json"

    def run(self) -> None:
        """Test, and write the file. A model that is not there any more is trained again, to the same."""
        cell = self.trained.cell
        features = load_features(cell.config)
        if cell.model is not None:
            model = self.trained.fitted(features)
        elif not (self.trained.model / "report.json").is_file():
            self.trained.train()
        found: dict[str, dict[str, Any]] = {}
        for kind, level, rows in rows_under(features, self.conditions, cell.seed):
            if cell.model is not None:
                scores = model.scores(rows, "test")
            else:
                scores = evaluate(self.trained.model, data=rows, split="test")
            hidden = 0.0 if rows.presence is None else float(1 - rows.presence.mean())
            found.setdefault(kind, {})[level] = {"fused": scores["fused"], "hidden": hidden}
        write_json(self.file, {"cell": self.trained.key, "conditions": found, **_surroundings()})
        self.trained.discard_model()

    def __str__(self) -> str:
        return f"{self.trained.cell}, test conditions"


Job = TrainJob | ProbeJob


def content_of(job: Job) -> dict[str, Any] | None:
    """What a finished job has written; None where it has not, or where the file is damaged."""
    try:
        return read_json(job.file)
    except CheckpointError:
        return None


def _settings_that_count(config: Config) -> dict[str, Any]:
    """What a result depends on besides the data: nothing of other methods, and nothing of where files lie."""
    others = set(SECTION_OF.values()) - {SECTION_OF[config.method]}
    settings = {key: value for key, value in vars(config).items() if key not in {*others, "out"}}
    return {
        **{key: asdict(value) if is_dataclass(value) else value for key, value in settings.items()},
        "data": {key: getattr(config.data, key) for key in _BESIDE_THE_DATA},
        "train": {key: value for key, value in asdict(config.train).items() if key not in _NO_MATTER},
    }


def _surroundings() -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "versions": versions(),
        "commit": checked_out(Path(__file__).parent),
        "date": date.today().isoformat(),
    }


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
