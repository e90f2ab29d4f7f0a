"""Files as published with other systems: MMSA and MultiBench pickles, LSMI ``.pt``, the AV-MNIST folder.

They keep their splits apart; rows are joined in the order train, valid, test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..arrays import StackedRows
from ..feature_set import SPLITS
from ..files import out_of_map
from ..raw import Problem, Raw, RefusedData, Request, nearest
from .generic import as_array, load_torch
from .pickles import load_pickle

__all__ = ["read_avmnist", "read_lsmi", "read_mmsa", "read_multibench", "read_pickle"]

MODALITIES = ("text", "audio", "vision")


def read_pickle(path: Path, request: Request) -> Raw:
    """An MMSA or a MultiBench pickle, told apart by the label keys."""
    content = load_pickle(path)
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
    splits = _splits(path, content)
    default = "regression_labels" if request.task != "classification" else "classification_labels"
    key = default if request.label == "label" else request.label
    raw = _join(path, splits, request, label_key=key)
    raw.default_task = None if key == "classification_labels" else "regression"
    if key == "classification_labels":
        raw.label = _whole(raw.label)
    return raw


def _multibench(path: Path, content, request: Request) -> Raw:
    raw = _join(
        path, _splits(path, content), request, label_key="labels" if request.label == "label" else request.label
    )
    label = raw.label
    if label is not None and label.ndim == 3 and label.shape[2] == 2 and np.isin(label, (0, 1)).all():
        label = np.ascontiguousarray(label[:, :, 1]).astype(np.int64)
    while label is not None and label.ndim > 1 and label.shape[-1] == 1:
        label = label[..., 0]
    raw.label = label
    return raw


def _splits(path: Path, content) -> dict[str, Mapping]:
    """The three parts by our names; every array's key checked to exist later."""
    names = {"val": "valid", "dev": "valid"}
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise RefusedData(
            Problem(str(path), "", None, "a dict of splits {train, valid, test}, each a dict of arrays, is expected")
        )
    found = {names.get(name, name): part for name, part in content.items()}
    if "train" not in found or "test" not in found:
        message = f"splits {sorted(map(str, content))} found; 'train' and 'test' are needed ('valid' beside them)"
        raise RefusedData(Problem(str(path), "", None, message))
    return {name: found[name] for name in SPLITS if name in found}


def _join(path: Path, splits: Mapping[str, dict], request: Request, label_key: str) -> Raw:
    keys = sorted({str(key) for part in splits.values() for key in part})
    present = [m for m in MODALITIES if any(m in part for part in splits.values())]
    wanted = present if request.modalities is None else list(request.modalities)
    raw = Raw(file=str(path), name=path.stem, modalities={}, label_key=label_key, keys=keys)

    def column(key: str, convert: Callable = as_array) -> list[np.ndarray]:
        arrays = []
        for name, part in splits.items():
            if key not in part:
                hint = f"{nearest(key, [str(k) for k in part])}; it holds {', '.join(map(str, part))}"
                raise RefusedData(Problem(str(path), f"{name}/{key}", None, f"no such key{hint}"))
            try:
                arrays.append(convert(part[key]))
            except (ValueError, TypeError) as error:
                raise RefusedData(
                    Problem(str(path), f"{name}/{key}", None, f"not an array of numbers ({error})")
                ) from None
        shapes = [array.shape for array in arrays]
        if any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise RefusedData(
                Problem(str(path), key, None, f"shapes {shapes} differ between the splits beyond the first axis")
            )
        return arrays

    labels = column(label_key) if request.task != "retrieval" or all(label_key in p for p in splits.values()) else None
    if not wanted:
        raise RefusedData(
            Problem(str(path), "", None, f"none of {', '.join(MODALITIES)} among the keys {', '.join(keys)}")
        )
    sizes = [len(x) for x in (labels if labels is not None else column(wanted[0]))]
    for key in wanted:
        raw.modalities[key] = _float_rows(column(key), clean=key == "audio")
        for part in splits.values():
            part.pop(key)  # a pickled data set is large: one copy at a time
        if all(f"{key}_lengths" in part for part in splits.values()):
            raw.lengths[key] = np.concatenate(column(f"{key}_lengths")).ravel()
    raw.label = None if labels is None else np.concatenate(labels)
    raw.split = np.repeat(list(splits), sizes)
    raw.parts = [
        (f"{name}/{{key}}", int(start)) for name, start in zip(splits, np.cumsum([0, *sizes[:-1]]), strict=True)
    ]
    raw.ids = _ids(raw, splits, sizes)
    return raw


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
                hint = f"{nearest(f'{part}_{name}', raw.keys)}; the file holds {', '.join(raw.keys)}"
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
        except (OSError, ValueError, EOFError) as error:
            message = (
                f"not readable ({type(error).__name__}: {error}); an AV-MNIST folder has image/, audio/ and labels"
            )
            raise RefusedData(Problem(str(file), "", None, message)) from None

    labels = [load(path / f"{part}_labels.npy", None).ravel() for part in ("train", "test")]
    for key in modalities:
        if key not in ("image", "audio"):
            raise RefusedData(
                Problem(str(path), key, None, f"no such modality{nearest(key, raw.keys)}; there are image and audio")
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
