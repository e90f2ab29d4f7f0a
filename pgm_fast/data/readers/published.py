"""Files as published with other systems: MMSA and MultiBench pickles, LSMI ``.pt``, the AV-MNIST folder.

They keep their splits apart; rows are joined in the order train, valid, test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import did_you_mean
from ..archives import UNREADABLE
from ..arrays import StackedRows
from ..files import out_of_map
from ..raw import Problem, Raw, RefusedData, Request
from .generic import arrays_of, as_array, interpret
from .parts import columns_of, has_parts, parts_of, places_of
from .pickles import load_pickle
from .torch_files import load_torch

__all__ = ["is_lsmi", "read_avmnist", "read_lsmi", "read_mmsa", "read_multibench", "read_pickle"]

MODALITIES = ("text", "audio", "vision")  # in this order, others after them
SOUND = ("audio", "acoustic")  # log features, silence is -inf
# What such files hold beside features, labels and lengths: texts, their tokens, and the labels of other tasks.
COMPANIONS = re.compile("id|raw_text|text_bert|annotations|.*_lengths|labels|.*_labels(_[A-Z])?")


def read_pickle(path: Path, request: Request) -> Raw:
    """An MMSA or a MultiBench pickle, told apart by the label keys, or a dict of arrays in our own layout."""
    content = load_pickle(path)
    if isinstance(content, dict) and not has_parts(content):
        return interpret(path, arrays_of(path, content, request), request, known=list(map(str, content)))
    parts = content.values() if isinstance(content, dict) else ()
    mmsa = any(isinstance(part, dict) and {"regression_labels", "classification_labels"} & set(part) for part in parts)
    return _mmsa(path, content, request) if mmsa else _multibench(path, content, request)


def read_mmsa(path: Path, request: Request) -> Raw:
    """MMSA pickle, aligned or not: ``{train|valid|test: {text, audio, vision [N, T, d], id, regression_labels, ...}}``.

    The task is regression unless ``classification`` is asked for (``classification_labels``). Negative infinities in
    audio become 0. ``<modality>_lengths`` give the valid steps where the file has them (unaligned); else every step
    counts.
    """
    return _mmsa(path, load_pickle(path), request)


def read_multibench(path: Path, request: Request) -> Raw:
    """MultiBench / MulT pickle: ``{split: {vision, audio, text [N, T, d], labels, id}}``; -inf in audio becomes 0.

    Labels ``[N, 1, 1]`` become ``[N]``; pairs ``[N, C, 2]`` (one-hot absent/present, IEMOCAP) become ``[N, C]``
    multilabel.
    """
    return _multibench(path, load_pickle(path), request)


def _mmsa(path: Path, content, request: Request) -> Raw:
    splits = parts_of(path, content, request)
    default = "regression_labels" if request.task != "classification" else "classification_labels"
    key = default if request.label == "label" else request.label
    raw = _join(path, splits, request, label_key=key)
    raw.default_task = None if key == "classification_labels" else "regression"
    if key == "classification_labels" and raw.label is not None:
        raw.label = _whole(raw.label)
    return raw


def _multibench(path: Path, content, request: Request) -> Raw:
    key = "labels" if request.label == "label" else request.label
    raw = _join(path, parts_of(path, content, request), request, label_key=key)
    label = raw.label
    if label is not None and label.ndim == 3 and label.shape[2] == 2 and np.isin(label, (0, 1)).all():
        label = np.ascontiguousarray(label[:, :, 1]).astype(np.int64)
    while label is not None and label.ndim > 1 and label.shape[-1] == 1:
        label = label[..., 0]
    raw.label = label
    return raw


def _join(path: Path, splits: Mapping[str, dict], request: Request, label_key: str) -> Raw:
    keys = sorted({str(key) for part in splits.values() for key in part})
    raw = Raw(file=str(path), name=path.stem, modalities={}, label_key=label_key, keys=keys)
    kept = [key for key in keys if key not in request.ignore]
    needed = request.task != "retrieval" and not request.apply
    labelled = needed or all(label_key in part for part in splits.values())
    labels = columns_of(path, splits, label_key) if labelled else None
    others = [key for key in kept if key != label_key and not COMPANIONS.fullmatch(key)]
    found = sorted((key for key in others if _is_modality(splits, key)), key=lambda key: (_rank(key), key))
    wanted = request.wanted(found, kept)
    if not wanted:
        message = f"no modality among the keys {', '.join(keys)}: no floats [N, d] or [N, T, d]"
        raise RefusedData(Problem(str(path), "", None, message))
    sizes = [len(x) for x in (labels if labels is not None else columns_of(path, splits, wanted[0]))]
    raw.parts = places_of(list(splits), sizes)
    for key in wanted:
        raw.modalities[key] = _float_rows(columns_of(path, splits, key), clean=key in SOUND)
        for part in splits.values():
            part.pop(key)  # a pickled data set is large: one copy at a time
        if all(f"{key}_lengths" in part for part in splits.values()):
            raw.lengths[key] = np.concatenate(columns_of(path, splits, f"{key}_lengths")).ravel()
    raw.label = None if labels is None else np.concatenate(labels)
    raw.split = np.repeat(list(splits), sizes)
    raw.ids = _ids(raw, splits, sizes)
    _read_columns(raw, splits, sizes, [key for key in others if key not in wanted], request)
    return raw


def _is_modality(splits: Mapping[str, dict], key: str) -> bool:
    arrays = [part.get(key) for part in splits.values()]
    return all(isinstance(x, np.ndarray) and x.ndim in (2, 3) and x.dtype.kind == "f" for x in arrays)


def _rank(key: str) -> int:
    return MODALITIES.index(key) if key in MODALITIES else len(MODALITIES)


def _read_columns(
    raw: Raw, splits: Mapping[str, dict], sizes: Sequence[int], keys: Sequence[str], request: Request
) -> None:
    """What has one number or text per row is a column; anything else is not read."""
    for key in keys:
        parts = [np.asarray(part.get(key)) for part in splits.values()]
        parts = [x.reshape(-1) if x.size == size else x for x, size in zip(parts, sizes, strict=True)]
        shapes = [x.shape for x in parts]
        if shapes == [(size,) for size in sizes]:
            raw.columns[key] = np.concatenate([x.astype(str) if x.dtype.kind in "OUS" else x for x in parts])
        elif request.modalities is None or request.apply:
            cure = f"store it as floats [N, d] or [N, T, d] in all of {', '.join(splits)}"
            raw.note_unread(key, f"an entry of shape {', '.join(map(str, shapes))}", cure, request)


def _float_rows(parts: Sequence[np.ndarray], clean: bool) -> np.ndarray:
    """The parts as one float32 array; with ``clean``, negative infinities (silence in log features) become 0."""
    joined = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.float32)
    start = 0
    for part in parts:
        joined[start : start + len(part)] = part
        start += len(part)
    if clean:
        joined[np.isneginf(joined)] = 0
    return joined


def _ids(raw: Raw, splits: Mapping[str, dict], sizes: Sequence[int]) -> np.ndarray | None:
    """Names of the rows where the file has them and they are unique; several columns are joined with ``/``."""
    if not all("id" in part and len(part["id"]) == size for part, size in zip(splits.values(), sizes, strict=True)):
        return None
    names = []
    for part in splits.values():
        for row in part["id"]:
            pieces = np.ravel(np.asarray(row))
            names.append("/".join(p.decode("latin1") if isinstance(p, bytes) else str(p) for p in pieces.tolist()))
    if len(set(names)) < len(names):
        raw.notes.append(
            raw.problem("id", None, "the file's ids are not unique and are not used; rows are numbered", "warning")
        )
        return None
    return np.asarray(names)


def _whole(label: np.ndarray) -> np.ndarray:
    label = label.reshape(len(label), -1)[:, 0]
    return label.astype(np.int64) if label.dtype.kind == "f" and (label == np.rint(label)).all() else label


def is_lsmi(path: Path) -> bool:
    """Whether a torch file has the keys of one. Raises RefusedData where it cannot be read."""
    return any(str(key).startswith("train_modal_") for key in load_torch(path))


def read_lsmi(path: Path, request: Request) -> Raw:
    """LSMI ``.pt``: ``{train|val}_{modal_1_features, modal_2_features, targets}``.

    The file has two parts. ``val`` becomes the test split, because published numbers are on it; validation is taken
    from train.
    """
    content = load_torch(path)
    modalities = [
        k.removeprefix("train_").removesuffix("_features")
        for k in content
        if k.startswith("train_modal_") and k.endswith("_features")
    ]
    wanted = modalities if request.modalities is None else list(request.modalities)
    raw = Raw(file=str(path), name=path.stem, modalities={}, label_key="targets", keys=list(map(str, content)))

    def column(name: str) -> list[np.ndarray]:
        for part in ("train", "val"):
            if f"{part}_{name}" not in content:
                hint = f"{did_you_mean(f'{part}_{name}', raw.keys)}; the file holds {', '.join(raw.keys)}"
                raise RefusedData(Problem(str(path), f"{part}_{name}", None, f"no such key{hint}"))
        return [as_array(content[f"{part}_{name}"]) for part in ("train", "val")]

    targets = column("targets")
    for key in wanted:
        parts = column(f"{key}_features")
        if parts[0].shape[1:] != parts[1].shape[1:]:
            message = f"shapes {parts[0].shape} in train and {parts[1].shape} in val differ beyond the first axis"
            raise RefusedData(Problem(str(path), f"{key}_features", None, message))
        raw.modalities[key] = np.concatenate(parts)
    raw.label = np.concatenate(targets)
    raw.split = np.repeat(["train", "test"], [len(part) for part in targets])
    raw.parts = [("train_{key}", 0), ("val_{key}", len(targets[0]))]
    return raw


def read_avmnist(path: Path, request: Request) -> Raw:
    """AV-MNIST folder: ``image/{train,test}_data.npy``, ``audio/{train,test}_data.npy``, ``{train,test}_labels.npy``.

    The arrays stay in their files; each image and each spectrogram is read as one vector. Validation is taken from
    train.
    """
    modalities = ("image", "audio") if request.modalities is None else request.modalities
    raw = Raw(file=str(path), name=path.name, modalities={}, label_key="labels", keys=["image", "audio", "labels"])

    def load(file: Path, mode: str | None) -> np.ndarray:
        try:
            return np.load(file, mmap_mode=mode, allow_pickle=False)
        except UNREADABLE as error:
            message = (
                f"not readable ({type(error).__name__}: {error}); an AV-MNIST folder has image/, audio/ and labels"
            )
            raise RefusedData(Problem(str(file), "", None, message)) from None

    labels = [load(path / f"{part}_labels.npy", None).ravel() for part in ("train", "test")]
    for key in modalities:
        if key not in ("image", "audio"):
            raise RefusedData(
                Problem(
                    str(path), key, None, f"no such modality{did_you_mean(key, raw.keys)}; there are image and audio"
                )
            )
        parts = [load(path / key / f"{part}_data.npy", "r") for part in ("train", "test")]
        if parts[0].shape[1:] != parts[1].shape[1:]:
            message = f"shapes {parts[0].shape} in train and {parts[1].shape} in test differ beyond the first axis"
            raise RefusedData(Problem(str(path / key), "", None, message))
        raw.modalities[key] = StackedRows([out_of_map(part) for part in parts], (int(np.prod(parts[0].shape[1:])),))
        raw.files[key] = str(path / key)
    raw.label = np.concatenate(labels)
    if raw.label.dtype.kind == "f" and (raw.label == np.rint(raw.label)).all():
        raw.label = raw.label.astype(np.int64)
    raw.split = np.repeat(["train", "test"], [len(part) for part in labels])
    raw.parts = [("train_{key}", 0), ("test_{key}", len(labels[0]))]
    return raw
