"""What a reader hands on: the arrays of a file sorted by their part, before anything is checked or converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError, did_you_mean
from .media_settings import MediaConfig

__all__ = ["Problem", "Raw", "RefusedData", "Request", "listing", "one_line"]

SHOWN = 20  # names of a long list in a message
LONGEST_REASON = 300  # characters of what a library says
_LISTS = ("modalities", "ignore", "class_names")  # of names, kept as tuples


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a source.

    Attributes:
        file: where.
        key: which array of it, empty where the file as a whole is meant.
        row: number of the first row concerned, from 0, or None.
        message: what was found and what would be right.
        severity: ``error`` (the source is refused), ``warning``, or ``note`` (worth knowing, nothing to mend).
    """

    file: str
    key: str
    row: int | None
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        place = (
            self.file + (f": {self.key}" if self.key else "") + (f", row {self.row}" if self.row is not None else "")
        )
        return f"{place}: {self.message}"


class RefusedData(DataError):
    """A source that cannot be used, with the problem that says why."""

    def __init__(self, problem: Problem, text: str | None = None):
        super().__init__(text if text is not None else str(problem))
        self.problem = problem

    def __reduce__(self):
        return type(self), (self.problem, str(self))


@dataclass(frozen=True)
class Request:
    """What is read, and how.

    Attributes:
        source: ``digits``, ``synthetic``, or the path of a file or folder.
        format: ``auto`` (by name, then by content), or one of :data:`pgm_fast.data.readers.FORMATS`.
        task: ``auto`` (integers: classification; integers 0/1 ``[N, C]``: multilabel; floats: regression), or one of
            the four tasks.
        modalities: a subset in this order; None for all.
        ignore: keys (of a folder of files: names of folders or files) that are left out. Without it, and without
            ``modalities``, an array that is not read is an error.
        label: key of the labels.
        labels: what their values mean: ``auto``; ``classes``, every value is a class, numbered in order; ``onehot``,
            the column that holds the 1; ``sign``, two classes, above zero or not.
        group_by: column whose equal values make one sequence of vectors, padded to the longest, with a label per step.
        order_by: column that orders the steps of a sequence; the order of the file otherwise.
        nonfinite: ``error``, or ``zero``: NaN and infinities are read as 0, which training puts in their place after it
            has standardised. A row of NaN alone is one that lacks the modality, in either case.
        options: for ``synthetic``, arguments of :func:`pgm_fast.data.synthetic.draw`.
        media: how sounds and pictures become numbers: a :class:`~pgm_fast.data.media_settings.MediaConfig`, or some of
            its settings by name.
        apply: the data is for a trained model to be applied to: no split is made (rows without one are all ``test``),
            and no split needs rows.
        class_names: the classes in the model's order. Names as labels, and numbers in a source with ``class_names`` of
            its own, are coded by this list.
        num_classes: how many classes there are; a class may be without rows.
        resplit: ``none``; ``all``: rows are dealt to the splits anew, stratified, in the proportions that the splits
            have; ``validation``: those of train and validation are, and the test rows stay.
        resplit_seed: of that.
        resplit_by: column whose rows with one value then come into one split.

    Raises:
        ConfigError: a setting of ``media`` that there is not, or a value that it does not take.
    """

    source: str
    format: str = "auto"
    task: str = "auto"
    modalities: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    label: str = "label"
    labels: str = "auto"
    group_by: str | None = None
    order_by: str | None = None
    nonfinite: str = "error"
    options: Mapping | None = None
    media: MediaConfig | Mapping[str, Any] | None = None
    apply: bool = False
    class_names: Sequence[str] | None = None
    num_classes: int | None = None
    resplit: str = "none"
    resplit_seed: int = 0
    resplit_by: str | None = None

    def __post_init__(self):
        as_read = {
            "source": str(self.source),
            "options": dict(self.options or {}),
            "media": MediaConfig.of(self.media),
            **{key: tuple(names) for key in _LISTS if (names := getattr(self, key)) is not None},
        }
        for key, value in as_read.items():
            object.__setattr__(self, key, value)

    def wanted(self, found: Sequence[str], held: Sequence[str]) -> list[str]:
        """The modalities to read: all that were ``found``, or those that were asked for.

        Of the modalities of a trained model those that the source does not hold are left out: they are absent.
        """
        if self.modalities is None:
            return list(found)
        return [name for name in self.modalities if not self.apply or name in held]

    def require_ignored(self, file: str, keys: Sequence[str]) -> None:
        """Raises RefusedData unless what is to be ignored is among the keys of the source, which a model may lack."""
        for name in self.ignore:
            if name not in keys and not self.apply:
                message = f"to be ignored, but there is no such key{did_you_mean(name, keys)}; it holds {listing(keys)}"
                raise RefusedData(Problem(file, name, None, message))


@dataclass
class Raw:
    """Arrays of a source by their part. Unequal lengths and wrong values are possible: :mod:`.checks` finds them.

    Attributes:
        file: for messages.
        name: of the feature set.
        modalities: name -> ``[N, d]`` or ``[N, T, d]``; arrays of any other shape are found by the checks.
        label: ``[N, ...]`` or None. With ``step_lengths`` the second axis is time.
        split: ``[N]`` of names or codes 0/1/2, or None.
        presence: ``[N, M]`` in the order of ``modalities``, or None.
        columns: other ``[N]`` arrays by key.
        keys: every key of the source, for messages.
        default_task: what ``task=auto`` means, where the format says so.
        parts: ``(prefix, first row)`` of each part, where a source keeps its splits apart.
        files: key -> its own file, where a source has several.
        notes: what only the reader can tell to be wrong or worth knowing.
    """

    file: str
    name: str
    modalities: dict[str, np.ndarray]
    label: np.ndarray | None = None
    label_key: str = "label"
    split: np.ndarray | None = None
    ids: np.ndarray | None = None
    presence: np.ndarray | None = None
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    step_lengths: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    class_names: list[str] | None = None
    num_classes: int | None = None
    keys: list[str] = field(default_factory=list)
    default_task: str | None = None
    parts: list[tuple[str, int]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    notes: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of rows that most per-row arrays agree on."""
        sizes = [len(x) for x in self.modalities.values()]
        sizes += [len(x) for x in (self.label, self.split) if x is not None]
        return max(sizes, key=sizes.count) if sizes else 0

    def note_unread(self, key: str, what: str, cure: str, request: Request) -> None:
        """What is not read is an error; a warning where a trained model is applied, which knows what it needs."""
        leave_out = f"leave it out by data.ignore=[{','.join((*request.ignore, key))}]"
        message = f"{what} is not read" + ("" if request.apply else f": {cure}, or {leave_out}")
        self.notes.append(self.problem(key, None, message, "warning" if request.apply else "error"))

    def problem(self, key: str, row: int | None, message: str, severity: str = "error") -> Problem:
        """A problem at a row of an array, in the file's own numbering."""
        file = self.files.get(key, self.file)
        if row is not None:
            for prefix, start in reversed(self.parts):
                if row >= start:
                    return Problem(file, prefix.format(key=key), int(row - start), message, severity)
            return Problem(file, key, int(row), message, severity)
        return Problem(file, key, None, message, severity)


def listing(names: Sequence[str]) -> str:
    """Names with commas between them, the first ones where there are many."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return (f"{shown}, ... ({len(names)})" if len(names) > SHOWN else shown) or "nothing"


def one_line(error: Exception) -> str:
    """What a library says, as a part of a message."""
    return " ".join(str(error).split())[:LONGEST_REASON]
