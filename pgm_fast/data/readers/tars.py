"""Archives of sound and picture files, as the ``webdataset`` library writes them: ``<key>.<extension>`` in ``.tar``
files. Files of one key, up to the first point of the name, are a sample.

- ``.wav`` (flac, ogg) is its sound, ``.jpg`` (jpeg, png) its pictures, in the order of their names;
- ``.cls`` is its label, a number or a name; or ``.json``, an object with a key ``label`` or another that is asked for,
  whose keys with a number or text in every sample are columns besides.

Archives with train, val (dev) or test in their name, or in that of a folder around them, are these splits. Nothing is
unpacked: rows are decoded from where they lie, so that an archive must not be compressed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import did_you_mean
from ..archives import UNREADABLE, require_free
from ..media_files import Member, open_place
from ..raw import Problem, Raw, RefusedData, Request, listing, one_line
from .audiovisual import MODALITIES, OTHERS, READ, media_rows
from .parts import NAMES

__all__ = ["has_tars", "read_tars"]

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 1 << 16  # bytes of a long name or of other remarks on a file
LONGEST_LABEL = 1 << 20  # bytes of a .cls or .json file
MANY = 1 << 16  # files between two looks at what is free
HELD = 1 << 11  # bytes that a file takes in the lists here
LABELS = (".cls", ".json")


@dataclass
class _Sample:
    """The files of a key, by what follows the first point of their names."""

    key: str
    files: dict[str, Member] = field(default_factory=dict)


def has_tars(path: Path) -> bool:
    """Whether it is an archive, or a folder of some and of no arrays."""
    return path.is_file() or (not any(path.glob("*.npy")) and bool(_tars(path)))


def _tars(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")])


def read_tars(path: Path, request: Request) -> Raw:
    """An archive, or a folder of some, see above."""
    archives = _archives(path, request)
    samples: list[_Sample] = []
    starts, splits = [], []
    for archive, split in archives:
        starts.append(len(samples))
        samples += _samples(archive)
        splits += [split] * (len(samples) - starts[-1])
    extensions = list(dict.fromkeys(extension for sample in samples for extension in sample.files))
    names = [archive.name for archive in (_tars(path) if path.is_dir() else ())]
    request.require_ignored(str(path), [*MODALITIES, *extensions, *names])
    if not samples:
        raise RefusedData(Problem(str(path), "", None, "holds no file <key>.<extension>"))

    raw = Raw(file=str(path), name=path.stem, modalities={}, keys=[*MODALITIES, "label"])
    raw.parts = [(f"{{key}} of {archive.name}", start) for (archive, _), start in zip(archives, starts, strict=True)]
    raw.split = None if splits[0] is None else np.array(splits)
    raw.ids = np.array(_ids(samples, archives, starts))
    for name in request.modalities or ():
        if name not in MODALITIES:
            message = f"no such modality{did_you_mean(name, raw.keys)}; there are audio and video"
            raise RefusedData(Problem(str(path), name, None, message))
    held: dict[str, list[list[Member]]] = {}
    for name in (name for name in request.modalities or MODALITIES if name not in request.ignore):
        files = [_of_kind(sample, READ[name], request.ignore) for sample in samples]
        if any(files):
            held[name] = files
    if not held:
        found = listing(extensions)
        raise RefusedData(Problem(str(path), "", None, f"no sound and no pictures among files with endings {found}"))
    for row, files in enumerate(held.get("audio", ())):
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise RefusedData(raw.problem("audio", row, f"{names} are all its sound; {_leave_out(files, request)}"))
    raw.modalities = {name: media_rows(name, files, request.media) for name, files in held.items()}
    raw.lengths = {name: array.lengths for name, array in raw.modalities.items() if name == "audio"}
    raw.presence = np.array([[bool(files[row]) for files in held.values()] for row in range(len(samples))])
    _read_labels(raw, samples, request)
    _note_others(raw, samples, extensions, request)
    return raw


def _archives(path: Path, request: Request) -> list[tuple[Path, str | None]]:
    """Every archive and its split: train, valid and test in this order, or None for all."""
    if not path.is_dir():
        return [(path, None)]
    found = [(file, _split_of(file.relative_to(path))) for file in _tars(path)]
    found = [(file, split) for file, split in found if file.name not in request.ignore]
    if not found:
        raise RefusedData(Problem(str(path), "", None, "every .tar in it is to be ignored"))
    unnamed = [file for file, split in found if split is None]
    if unnamed and len(unnamed) < len(found):
        shown = unnamed[0].relative_to(path)
        message = f"no split in its name, {shown}, as others have: call it train-{unnamed[0].name}, or leave it out by "
        ignored = ",".join((*request.ignore, unnamed[0].name))
        raise RefusedData(Problem(str(path), "", None, f"{message}data.ignore=[{ignored}]"))
    order = ["train", "valid", "test", None]
    return sorted(found, key=lambda pair: order.index(pair[1]))


def _split_of(file: Path) -> str | None:
    """Of the name, else of the folder next to it that has one."""
    for part in (file.stem, *reversed(file.parts[:-1])):
        for word in re.split("[^a-z]+", part.lower()):
            if word in NAMES:
                return NAMES[word]
    return None


def _samples(archive: Path) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    try:
        for member in _members(archive):
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            stem, _, extension = name.partition(".")
            if not stem or not extension or stem.startswith("__"):
                continue  # as webdataset does: files about the archive, and of systems
            key = f"{folder}/{stem}" if folder else stem
            sample = samples.setdefault(key, _Sample(key))
            if sample.files.setdefault(extension.lower(), member) is not member:
                raise ValueError(f"{member.name} is in it twice")
    except (tarfile.TarError, *UNREADABLE) as error:
        message = f"not readable: {one_line(error)}; write it again, uncompressed"
        raise RefusedData(Problem(str(archive), "", None, message)) from None
    return list(samples.values())


def _members(archive: Path) -> Iterator[Member]:
    """The files of an archive. Heads are read one by one: ``tarfile`` takes one that is damaged for the end."""
    size, position, notes = archive.stat().st_size, 0, {}
    with open(archive, "rb") as file:
        for count in itertools.count(1):
            if count % MANY == 0:
                require_free(HELD * MANY)
            file.seek(position)
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                raise ValueError(f"it ends at byte {size} without a mark; truncated?")
            if not any(block):
                break
            head = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
            position += BLOCK
            regular = head.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            length = int(notes["size"]) if regular and "size" in notes else head.size
            if not 0 <= length <= size - position:
                raise ValueError(f"{head.name[:80]} has {length} bytes, of which {size - position} are there")
            if head.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                if length > LONGEST_HEADER:
                    raise ValueError(f"{length} bytes of remarks on a file")
                remarks = file.read(length)
                if head.type == tarfile.GNUTYPE_LONGNAME:
                    notes["path"] = remarks.rstrip(b"\0").decode("utf-8", "backslashreplace")
                elif head.type != tarfile.XGLTYPE:
                    notes |= _records(remarks)
            elif regular and not any(key.startswith("GNU.sparse") for key in notes):
                yield Member(archive, notes.get("path", head.name), position, length)
                notes = {}
            elif head.isdir():
                notes = {}
            else:
                raise ValueError(f"{head.name[:80]} is a link or of another kind, and files are read")
            position += -(-length // BLOCK) * BLOCK
        while rest := file.read(1 << 20):
            if any(rest):
                raise ValueError("it goes on behind its end; two archives in one?")


def _records(remarks: bytes) -> dict[str, str]:
    """Lines ``<length> <key>=<value>`` of a POSIX (pax) header, the length that of the line."""
    found = {}
    while remarks:
        digits, _, _ = remarks[:20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 2 < int(digits) <= len(remarks):
            raise ValueError("remarks on a file that are none")
        line, remarks = remarks[len(digits) + 1 : int(digits) - 1], remarks[int(digits) :]
        key, _, value = line.partition(b"=")
        found[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
    return found


def _ids(samples: Sequence[_Sample], archives: Sequence[tuple[Path, str | None]], starts: Sequence[int]) -> list[str]:
    """Keys; with the archive before them where archives begin to count anew."""
    keys = [sample.key for sample in samples]
    if len(set(keys)) == len(keys):
        return keys
    stops = [*starts[1:], len(keys)]
    return [
        f"{archive}/{key}"
        for (archive, _), start, stop in zip(archives, starts, stops, strict=True)
        for key in keys[start:stop]
    ]


def _of_kind(sample: _Sample, endings: Sequence[str], ignore: Sequence[str]) -> list[Member]:
    found = [name for name in sample.files if f".{name.rpartition('.')[2]}" in endings and name not in ignore]
    return [sample.files[name] for name in sorted(found)]


def _leave_out(files: Sequence[Member], request: Request) -> str:
    extension = max((file.name.rpartition("/")[2].partition(".")[2].lower() for file in files), key=len)
    return f"leave one out by data.ignore=[{','.join((*request.ignore, extension))}]"


def _read_labels(raw: Raw, samples: Sequence[_Sample], request: Request) -> None:
    """``raw.label``, and columns. Raises RefusedData for a sample without a label, or labels of different kinds."""
    labels, columns = [], []
    for row, sample in enumerate(samples):
        try:
            label, others = _label_of(sample, request)
        except UNREADABLE as error:
            raise RefusedData(raw.problem("label", row, f"{sample.key}: {one_line(error)}")) from None
        labels.append(label)
        columns.append(others)
    missing = [row for row, label in enumerate(labels) if label is None]
    if missing and len(missing) == len(labels) and (request.apply or request.task == "retrieval"):
        return
    if missing:
        message = f"{samples[missing[0]].key} has no label: <key>.cls, or <key>.json with a key '{request.label}'"
        raise RefusedData(raw.problem("label", missing[0], f"{message}, is needed"))
    kinds = {type(label) for label in labels}
    if str in kinds and len(kinds) > 1:
        raise RefusedData(raw.problem("label", None, "some labels are numbers, some are text; write all as one kind"))
    raw.label = np.array(labels)
    if raw.label.dtype.kind == "U":
        with contextlib.suppress(ValueError, OverflowError):
            raw.label = raw.label.astype(np.int64)
    raw.columns = {request.label: raw.label}
    for name in columns[0]:
        values = [others.get(name) for others in columns]
        if len({type(value) for value in values}) == 1 and (column := np.array(values)).dtype.kind in "iufU":
            raw.columns[name] = column


def _label_of(sample: _Sample, request: Request) -> tuple[str | int | float | None, Mapping]:
    """The label, None where there is none, and the scalars beside it."""
    files = {name: file for name, file in sample.files.items() if name not in request.ignore}
    others: dict = {}
    label = None
    if "json" in files:
        content = json.loads(_read_text(files["json"]))
        if not isinstance(content, dict):
            content = {request.label: content}
        others = {key: value for key, value in content.items() if type(value) in (str, int, float)}
        label = others.pop(request.label, None)
        if label is None and content.get(request.label) is not None:
            raise ValueError(f"'{request.label}' in its .json is a number or text, not {content[request.label]!r:.60}")
    if "cls" in files and request.label in ("label", "cls"):
        label = _read_text(files["cls"]).strip()
        if not label:
            raise ValueError("its .cls is empty")
    return label, others


def _read_text(file: Member) -> str:
    if file.size > LONGEST_LABEL:
        raise ValueError(f"{file.name} has {file.size} bytes, of at most {LONGEST_LABEL}")
    with open_place(file) as stream:
        return stream.read().decode("utf-8-sig")


def _note_others(raw: Raw, samples: Sequence[_Sample], extensions: Sequence[str], request: Request) -> None:
    """Endings that are not read, one problem each."""
    read = {ending for endings in READ.values() for ending in endings}
    undecoded = {ending for endings in OTHERS.values() for ending in endings}
    for extension in extensions:
        ending = f".{extension.rpartition('.')[2]}"
        if extension in request.ignore or ending in read or f".{extension}" in LABELS:
            continue
        files = [sample.files[extension] for sample in samples if extension in sample.files]
        cure = "convert them" if ending in undecoded else "sounds, pictures, .cls and .json are"
        raw.note_unread(extension, f"{len(files)} files (first: {files[0].name})", cure, request)
