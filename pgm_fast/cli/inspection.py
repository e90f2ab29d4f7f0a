"""``check-data``: what a source holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from ..data.feature_set import SPLITS, FeatureSet
from ..data.sources import inspect
from ..errors import ConfigError, DataError
from ..train.configure import make_config
from ..train.features import require_splits
from .terminal import say, show_table

__all__ = ["READING", "inspect_source"]

READING = ("format", "task", "modalities", "ignore", "label", "labels", "group_by", "order_by", "nonfinite", "options")
_SPLITTING = ("resplit", "resplit_seed", "resplit_by")


def inspect_source(source: str, overrides: Sequence[str]) -> bool:
    """Print what a source holds and every problem with it.

    Args:
        source: as ``data.source``.
        overrides: ``data.key=value`` and ``media.key=value``.

    Returns:
        Whether training would take it.

    Raises:
        ConfigError: an override that is wrong or of another section.
    """
    others = [text for text in overrides if not text.lstrip().startswith(("data.", "media."))]
    if others:
        raise ConfigError(
            f"{others[0]!r} is not allowed here; check-data takes the keys that say how to read: "
            f"{', '.join(f'data.{key}' for key in (*READING, *_SPLITTING))}, and those of media"
        )
    config = make_config(None, overrides)
    settings = asdict(config.data)
    reading = {**{key: settings[key] for key in (*READING, *_SPLITTING)}, "media": config.media}
    problems, features = inspect(source, **reading)
    said = [f"{problem.severity}: {problem}" for problem in problems]
    if features is not None:
        try:
            require_splits(features, config.data.task)
        except DataError as error:
            said.insert(0, f"error: {error}")
    for line in said:
        say(line)
    errors = sum(line.startswith("error: ") for line in said)
    if features is not None:
        _show_features(features)
    say(f"{source}: {errors} error{'s' * (errors > 1)}; train would refuse it" if errors else f"{source}: no errors")
    return not errors


def _show_features(features: FeatureSet) -> None:
    spec = features.spec
    counts = {split: int((features.split == split).sum()) for split in SPLITS}
    facts = [
        ("task", spec.task + (", a label per step" if spec.per_step else "")),
        (_OUTPUTS[spec.task], _outputs(features)),
        ("samples", f"{len(features)}: " + ", ".join(f"{name} {count}" for name, count in counts.items())),
    ]
    if spec.per_step:
        facts.append(("labelled steps", str(int(features.step_lengths.sum()))))
    show_table(["", features.name], [[name, value] for name, value in facts], numbers=False)
    rows = []
    for position, (name, array) in enumerate(features.modalities.items()):
        missing = 0 if features.presence is None else int((~features.presence[:, position]).sum())
        steps = "-"
        if array.ndim == 3:
            lengths = features.lengths.get(name, features.step_lengths if spec.per_step else None)
            steps = str(array.shape[1]) if lengths is None else f"{int(np.min(lengths))} to {int(np.max(lengths))}"
        rows.append(
            [
                name,
                str(array.shape[-1]),
                steps,
                str(array.dtype),
                f"{missing} of {len(features)}" if missing else "none",
            ]
        )
    say()
    show_table(["modality", "dimensions", "steps", "type", "missing"], rows)
    say()


_OUTPUTS = {"classification": "classes", "multilabel": "labels", "regression": "targets", "retrieval": "labels"}


def _outputs(features: FeatureSet) -> str:
    spec = features.spec
    if spec.task == "retrieval":
        classes = "" if features.relevance is None else "; labels say which are relevant to each other"
        return f"none, samples are matched across modalities{classes}"
    if spec.task != "classification":
        return str(spec.num_outputs)
    labels = features.labels
    if spec.per_step:
        labels = labels[np.arange(labels.shape[1]) < features.step_lengths[:, None]]
    counts = np.bincount(np.asarray(labels).reshape(-1), minlength=spec.num_outputs)
    names = features.class_names or [str(number) for number in range(spec.num_outputs)]
    shown = ", ".join(f"{name} {count}" for name, count in list(zip(names, counts, strict=True))[:12])
    return f"{spec.num_outputs} (rows of each: {shown}{', ...' if spec.num_outputs > 12 else ''})"
