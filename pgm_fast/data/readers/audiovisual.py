"""Folders of sound and picture files with lists of samples, as CREMA-D and AVE are kept."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..media import FrameRows, MediaRows, SpectrogramRows
from ..raw import Problem, Raw, RefusedData, Request, nearest

__all__ = ["OPTIONS", "find_lists", "read_audiovisual"]

SOUNDS = (".wav", ".flac", ".ogg")
PICTURES = (".jpg", ".jpeg", ".png")
LISTS = (".csv", ".txt")
SPLITS = {"train": "train", "val": "valid", "dev": "valid", "test": "test"}

OPTIONS = {"sample_rate": 22050, "n_fft": 512, "hop": 353, "max_steps": 1004, "frames": 3, "image_size": 224}
"""Numbers of the transforms and their defaults: 257 frequencies, at most 16 s of sound, 3 pictures."""


def find_lists(path: Path) -> dict[str, Path]:
    """split -> its list: files ``*.csv`` or ``*.txt`` with train, val, dev or test in their name."""
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in LISTS and file.is_file():
            for part, split in SPLITS.items():
                if part in file.stem.lower():
                    found.setdefault(split, file)
                    break
    return {split: found[split] for split in ("train", "valid", "test") if split in found}


def read_audiovisual(path: Path, request: Request) -> Raw:
    """A folder with a list per split, each line ``id,label``, and below it the files of each id.

    ``<folder>/<id>.wav`` (flac, ogg) is the sound of a sample, pictures in ``<folder>/<id>/`` are its frames; what the
    folders are called does not matter. The modalities are ``audio`` and ``video``; a sample may lack one of them.
    """
    numbers = _numbers(request, path)
    lists = find_lists(path)
    if "train" not in lists:
        message = "no list of training samples; a file like train.csv with lines id,label is needed"
        raise RefusedData(Problem(str(path), "", None, message))
    ids, labels, splits, parts = [], [], [], []
    for split, file in lists.items():
        parts.append((f"{{key}} of {file.name}", len(ids)))
        for identifier, label in _lines(file):
            ids.append(identifier)
            labels.append(label)
            splits.append(split)
    raw = Raw(file=str(path), name=path.name, modalities={}, keys=["audio", "video", "label"], parts=parts)
    wanted = ("audio", "video") if request.modalities is None else request.modalities
    for name in wanted:
        if name not in ("audio", "video"):
            message = f"no such modality{nearest(name, raw.keys)}; there are audio and video"
            raise RefusedData(Problem(str(path), name, None, message))
    sounds, pictures = _files(path)
    arrays: dict[str, MediaRows] = {}
    for name in wanted:
        held = sounds if name == "audio" else pictures
        if not any(identifier in held for identifier in ids):
            where = f"<folder>/<id>{SOUNDS[0]}" if name == "audio" else f"<folder>/<id>/*{PICTURES[0]}"
            if request.modalities is not None:
                message = f"no id of the lists has a file {where} below this folder"
                raise RefusedData(Problem(str(path), name, None, message))
        elif name == "audio":
            keys = ("sample_rate", "n_fft", "hop", "max_steps")
            arrays[name] = SpectrogramRows([sounds.get(i) for i in ids], **{key: numbers[key] for key in keys})
        else:
            arrays[name] = FrameRows([pictures.get(i, []) for i in ids], numbers["frames"], numbers["image_size"])
    if not arrays:
        message = f"none of the {len(ids)} ids of the lists (first: {ids[0]}) has sound or pictures below this folder"
        raise RefusedData(Problem(str(path), "", None, message))
    raw.modalities.update(arrays)
    raw.lengths = {name: array.lengths for name, array in arrays.items() if name == "audio"}
    raw.label = np.array(labels)
    if all(label.lstrip("+-").isdigit() for label in labels):
        raw.label = raw.label.astype(np.int64)
    raw.default_task = "classification"
    raw.split, raw.ids = np.array(splits), np.array(ids)
    held = {"audio": sounds, "video": pictures}
    raw.presence = np.array([[identifier in held[name] for name in arrays] for identifier in ids])
    return raw


def _numbers(request: Request, path: Path) -> Mapping[str, int]:
    for key, value in request.options.items():
        if key not in OPTIONS:
            message = f"no option '{key}'{nearest(key, list(OPTIONS))}; there are {', '.join(OPTIONS)}"
            raise RefusedData(Problem(str(path), "options", None, message))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RefusedData(Problem(str(path), "options", None, f"{key} is {value!r}, a whole number >= 1 is needed"))
    return {**OPTIONS, **request.options}


def _lines(file: Path) -> list[tuple[str, str]]:
    """Pairs of id and label; a first line of column names is left out."""
    try:
        lines = [line for line in csv.reader(file.read_text("utf-8-sig").splitlines()) if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RefusedData(Problem(str(file), "", None, f"not readable as text: {error}")) from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if len(line) < 2 or not line[0].strip() or not line[1].strip():
            raise RefusedData(Problem(str(file), "", None, f"line {number} is {','.join(line)!r}, id,label is needed"))
        pairs.append((line[0].strip(), line[1].strip()))
    if pairs and pairs[0][1].lower() in ("label", "class", "category"):
        pairs = pairs[1:]
    if not pairs:
        raise RefusedData(Problem(str(file), "", None, "no sample; lines of id,label are needed"))
    return pairs


def _files(path: Path) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """id -> sound file, and id -> pictures in the order of their names, at any depth."""
    sounds: dict[str, Path] = {}
    pictures: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        kind = file.suffix.lower()
        if kind in SOUNDS:
            sounds.setdefault(file.stem, file)
        elif kind in PICTURES:
            pictures.setdefault(file.parent.name, []).append(file)
    return sounds, pictures
