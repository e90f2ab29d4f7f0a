"""Running a trained method over a split: every row once, in order, over one rank or several."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from ..data import Batch, Loader
from ..methods.base import HeldOut, Method, Output
from .distributed import Ranks
from .scores.predictions import Predictions
from .sharding import without_gradients
from .step.losses import LossTable
from .step.scaling import autocast

__all__ = ["collect", "held_out"]

_DICTS = ("unimodal", "further", "embeddings", "shares", "gates", "features", "presence")


def collect(
    method: Method,
    loader: Loader,
    ranks: Ranks,
    *,
    precision: str = "fp32",
    features: bool = False,
) -> Predictions | None:
    """What ``method`` says about the rows of ``loader``, on rank 0; None on the other ranks.

    Args:
        method: put into evaluation mode here, and into the mode it was in at the end.
        loader: this rank's part of the split.
        ranks: their rows are joined; padding rows (index -1) are dropped and the rest sorted by index.
        precision: as ``train.precision``.
        features: whether to keep :attr:`Output.features`, the largest part by far.

    Returns:
        float32 arrays; ``losses`` are means over rows, each batch counting with its rows over all ranks.
    """
    training = method.training
    method.eval()
    parts: list[dict[str, np.ndarray]] = []
    losses = LossTable(len(loader), ranks.device)
    try:
        with without_gradients(method), autocast(ranks.device, precision):
            for number, batch in enumerate(loader.batches(0)):
                output = method(batch, report=True)
                if output.losses:
                    losses.add(number, output.losses, batch.rows)
                parts.append({key: _numpy(value) for key, value in _flat(batch, output, features)})
    finally:
        method.train(training)
    means = losses.means(ranks)
    joined = ranks.collect(_join(parts))
    if not ranks.is_main:
        return None
    rows = _join([part for part in joined if part])
    return _predictions(rows, means)


def held_out(predictions: Predictions) -> HeldOut:
    """What the heads said, for :meth:`~pgm_fast.methods.base.Method.after_validation`."""
    heads = {**predictions.further, **{f"uni/{m}": logits for m, logits in predictions.unimodal.items()}}
    return HeldOut(
        {name: torch.from_numpy(logits) for name, logits in heads.items()},
        None if predictions.labels is None else torch.from_numpy(predictions.labels),
        {m: torch.from_numpy(present) for m, present in predictions.presence.items()},
    )


def _flat(batch: Batch, output: Output, features: bool) -> list[tuple[str, Tensor]]:
    """``(field, tensor)`` or ``(field\\tname, tensor)`` for everything that has a row per row of the batch."""
    pairs: list[tuple[str, Tensor]] = [("index", batch.index)]
    if batch.labels is not None:
        pairs.append(("labels", batch.labels))
    if output.logits is not None:
        pairs.append(("logits", output.logits))
    named = {
        "unimodal": output.unimodal,
        "further": output.further,
        "embeddings": output.embeddings,
        "shares": output.shares,
        "gates": output.gates,
        "presence": batch.presence,
    }
    if features:
        named["features"] = output.features
    return pairs + [(f"{field}\t{name}", value) for field, items in named.items() for name, value in items.items()]


def _numpy(value: Tensor) -> np.ndarray:
    return (value.float() if value.is_floating_point() else value).cpu().numpy()


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not parts:
        return {}
    keys = list(dict.fromkeys(key for part in parts for key in part))
    joined = {}
    for key in keys:
        # Presence is left out of batches in which nothing is missing.
        default = (lambda part: np.ones(len(part["index"]), dtype=bool)) if key.startswith("presence\t") else None
        joined[key] = np.concatenate([part[key] if key in part or default is None else default(part) for part in parts])
    return joined


def _predictions(rows: dict[str, np.ndarray], losses: dict[str, float]) -> Predictions:
    if not rows:
        return Predictions(index=np.zeros(0, dtype=np.int64))
    real = np.flatnonzero(rows["index"] >= 0)
    order = real[np.argsort(rows["index"][real], kind="stable")]
    plain = {key: value[order] for key, value in rows.items() if "\t" not in key}
    named: dict[str, dict[str, np.ndarray]] = {field.name: {} for field in fields(Predictions) if field.name in _DICTS}
    for key, value in rows.items():
        if "\t" in key:
            field, name = key.split("\t", 1)
            named[field][name] = value[order]
    return Predictions(**plain, **named, losses=losses)
