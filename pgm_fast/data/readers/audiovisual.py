"""Folders of sound and picture files with lists of samples, as CREMA-D and AVE are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import did_you_mean
from ..media import FrameRows, MediaRows, SpectrogramRows
from ..media_files import Place
from ..media_settings import MediaConfig
from ..raw import Problem, Raw, RefusedData, Request
from .lists import find_lists, read_list

__all__ = ["MODALITIES", "OTHERS", "READ", "media_rows", "read_audiovisual"]

MODALITIES = ("audio", "video")
READ = {"audio": (".wav", ".flac", ".ogg"), "video": (".jpg", ".jpeg", ".png")}
# What holds the same and is not decoded here.
OTHERS = {"audio": (".mp3", ".m4a", ".aac", ".wma"), "video": (".mp4", ".avi", ".mkv", ".webm", ".mov")}
PLACES = {"audio": "<folder>/<id>.wav", "video": "<folder>/<id>/*.jpg or <folder>/<id>.jpg"}


@dataclass
class _Found:
    """Files of one modality.

    Attributes:
        of: id -> its files, in the order of their names.
        folders: folders of which more than one has files of an id, in order; those of the first are taken.
        torn: how many ids that concerns.
        others: files that belong to no id.
        undecoded: files of an id of a kind that is not read.
    """

    of: dict[str, list[Path]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    torn: int = 0
    others: list[Path] = field(default_factory=list)
    undecoded: list[Path] = field(default_factory=list)


def read_audiovisual(path: Path, request: Request) -> Raw:
    """A folder with a list per split (see :mod:`.lists`), and below it the files of each id.

    ``<folder>/<id>.wav`` (flac, ogg) is the sound of a sample, pictures in ``<folder>/<id>/``, or ``<folder>/<id>.jpg``
    alone, are its frames; what the folders are called does not matter. The modalities are ``audio`` and ``video``; a
    sample may lack one of them. An id that is listed more than once is a sample each time.
    """
    raw, identifiers = _listed(path, request)
    for name in request.modalities or ():
        if name not in MODALITIES:
            message = f"no such modality{did_you_mean(name, raw.keys)}; there are audio and video"
            raise RefusedData(Problem(str(path), name, None, message))
    wanted = [name for name in request.modalities or MODALITIES if name not in request.ignore]
    found = _files(path, set(identifiers), request)
    arrays: dict[str, MediaRows] = {}
    for name in wanted:
        held = found[name].of
        if held:
            arrays[name] = media_rows(name, [held.get(i, []) for i in identifiers], request.media)
        elif request.modalities is not None and not request.apply:
            message = f"no id of the lists has a file {PLACES[name]} below this folder"
            raise RefusedData(Problem(str(path), name, None, message))
        raw.notes.extend(_remarks(raw, path, name, found[name], request))
    if not arrays:
        first = identifiers[0]
        message = (
            f"none of the {len(identifiers)} ids of the lists (first: {first}) has sound or pictures below this folder"
        )
        raise RefusedData(next((p for p in raw.notes if p.severity == "error"), Problem(str(path), "", None, message)))
    raw.modalities.update(arrays)
    raw.lengths = {name: array.lengths for name, array in arrays.items() if name == "audio"}
    raw.presence = np.array([[i in found[name].of for name in arrays] for i in identifiers])
    return raw


def _listed(path: Path, request: Request) -> tuple[Raw, list[str]]:
    """What the lists say, and the id of every row as they have it."""
    lists = {}
    for split, files in find_lists(path).items():
        kept = [file for file in files if file.name not in request.ignore]
        if len(kept) > 1:
            held = ", ".join(file.name for file in kept)
            ignored = ",".join((*request.ignore, *(file.name for file in kept[1:])))
            message = (
                f"{held} are all lists of the {split} split; leave all but one out, by data.ignore=[{ignored}] say"
            )
            raise RefusedData(Problem(str(path), split, None, message))
        if kept:
            lists[split] = kept[0]
    if not lists or ("train" not in lists and not request.apply):
        message = "no list of training samples; a file like train.csv with lines id,label is needed"
        raise RefusedData(Problem(str(path), "", None, message))
    read = {split: read_list(file) for split, file in lists.items()}
    identifiers = [identifier for listed in read.values() for identifier in listed.ids]
    labels = [label for listed in read.values() for label in listed.labels]
    splits = np.repeat(list(read), [len(listed.ids) for listed in read.values()])
    starts = np.cumsum([0, *(len(listed.ids) for listed in read.values())])
    raw = Raw(file=str(path), name=path.name, modalities={}, keys=[*MODALITIES, "label"])
    raw.parts = [
        (f"{{key}} of {file.name}", int(start)) for file, start in zip(lists.values(), starts[:-1], strict=True)
    ]
    raw.label = np.array(labels)
    if all(label.lstrip("+-").isdigit() for label in labels):
        raw.label = raw.label.astype(np.int64)
    raw.default_task = "classification"
    raw.split, raw.ids = splits, np.array(_numbered(identifiers))
    for name in next(iter(read.values())).columns:
        if all(name in listed.columns for listed in read.values()):
            raw.columns[name] = np.array([value for listed in read.values() for value in listed.columns[name]])
    raw.notes.extend(_repeats(raw, identifiers))
    return raw, identifiers


def _numbered(identifiers: Sequence[str]) -> list[str]:
    """Unique names: ``<id>#2`` is the second sample of an id."""
    seen: dict[str, int] = {}
    names = []
    for identifier in identifiers:
        seen[identifier] = seen.get(identifier, 0) + 1
        names.append(identifier if seen[identifier] == 1 else f"{identifier}#{seen[identifier]}")
    return names


def _repeats(raw: Raw, identifiers: Sequence[str]) -> Iterator[Problem]:
    names, place, counts = np.unique(identifiers, return_inverse=True, return_counts=True)
    if len(names) == len(identifiers):
        return
    first = int(np.flatnonzero(counts[place] > 1)[0])
    message = f"{(counts > 1).sum()} ids are listed more than once, first '{identifiers[first]}': a sample each time"
    yield raw.problem("id", first, message, "note")
    pairs = np.unique(np.stack([place, np.unique(raw.split, return_inverse=True)[1]]), axis=1)[0]
    shared, splits = np.unique(pairs, return_counts=True)
    if (splits > 1).any():
        name = names[shared[splits > 1][0]]
        message = f"{(splits > 1).sum()} ids are in two splits, first '{name}': what was trained on is tested, too"
        yield raw.problem("id", identifiers.index(name), message, "warning")


def _remarks(raw: Raw, path: Path, name: str, found: _Found, request: Request) -> Iterator[Problem]:
    """What is not read is an error where the modality would be missing, and else is said."""
    unread = found.undecoded or found.others
    if not found.of and unread and request.modalities is None:
        shown = f"{len(unread)} files (first: {unread[0].relative_to(path)})"
        cure = f"sounds and pictures are read from {PLACES[name]}, and these are "
        cure += f"{unread[0].suffix} files: convert them" if found.undecoded else "of no id in the lists: rename them"
        raw.note_unread(name, shown, cure, request)
    elif found.of and found.others:
        shown = f"{len(found.others)} files (first: {found.others[0].relative_to(path)})"
        yield raw.problem(name, None, f"{shown} are of no id in the lists and are not read", "note")
    if found.folders:
        first, *rest = (folder.relative_to(path) for folder in found.folders)
        ignored = ",".join((*request.ignore, *(folder.name for folder in rest)))
        message = (
            f"{found.torn} ids have files in {first} and in {', '.join(map(str, rest))}; those in {first} are read"
        )
        yield raw.problem(name, None, f"{message}, say so by data.ignore=[{ignored}]", "warning")


def media_rows(name: str, files: Sequence[Sequence[Place]], config: MediaConfig) -> MediaRows:
    """Of a modality, the files of each row. Of several sounds of a row the first is read."""
    if name == "audio":
        return SpectrogramRows([row[0] if row else None for row in files], config)
    return FrameRows(files, config)


def _files(path: Path, identifiers: set[str], request: Request) -> dict[str, _Found]:
    """The files of each id, at any depth, in folders that are not to be ignored."""
    found = {name: _Found() for name in MODALITIES}
    groups: dict[str, dict[str, dict[Path, list[Path]]]] = {name: {} for name in MODALITIES}
    parts: set[str] = set()
    for file in sorted(path.rglob("*")):
        names = file.relative_to(path).parts
        parts.update(names)
        if set(names) & set(request.ignore):
            continue
        kind = file.suffix.lower()
        for name in MODALITIES:
            owner, folder = _owner(file, name, identifiers)
            if kind in READ[name] and owner is not None:
                groups[name].setdefault(owner, {}).setdefault(folder, []).append(file)
            elif kind in READ[name]:
                found[name].others.append(file)
            elif kind in OTHERS[name] and file.stem in identifiers:
                found[name].undecoded.append(file)
    request.require_ignored(str(path), [*MODALITIES, *sorted(parts)])
    for name, owners in groups.items():
        found[name].of = {owner: folders[min(folders)] for owner, folders in owners.items()}
        torn = [folders for folders in owners.values() if len(folders) > 1]
        found[name].torn = len(torn)
        found[name].folders = sorted({folder for folders in torn for folder in folders})
    return found


def _owner(file: Path, name: str, identifiers: set[str]) -> tuple[str | None, Path]:
    """The id that a file belongs to, or None, and the folder that holds it among those of other ids."""
    if name == "video" and file.parent.name in identifiers:
        return file.parent.name, file.parent.parent
    return (file.stem if file.stem in identifiers else None), file.parent
