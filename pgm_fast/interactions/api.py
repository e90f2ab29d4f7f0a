"""Estimates on features and on trained runs: the functions behind ``pgm-fast interactions``."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from itertools import combinations
from os import PathLike
from typing import Any

import numpy as np
import torch

from ..data import check_features, load
from ..data.feature_set import FeatureSet
from ..errors import ConfigError
from ..train import predict
from ..train.distributed import current_ranks
from ..train.features import features_of_run
from ..train.run.checkpoints import load_run
from ..train.run.folder import RunFolder
from ..train.scores.predictions import Predictions
from ..train.scores.shares import PARTITIONS
from .association import associate
from .folds import plan, wanted_rows
from .measure import entropy, information, label_surprise
from .progress import Progress
from .result import Interactions, joint_name, pair_of
from .settings import Settings
from .vectors import Rows, principal_components, rows_of, standardised

__all__ = ["estimate", "estimate_run"]

log = logging.getLogger(__name__)

# A uniform prior counts this much of class imbalance, in nats, as information before it is worth a warning.
UNEVEN = 0.05
MEASURED_ON = ("learned", "inputs")


def estimate(
    data: FeatureSet | str | PathLike,
    *,
    split: str | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    progress: bool = False,
    **reading: Any,
) -> Interactions:
    """Redundancy, uniqueness and synergy of every row about its label, for every two modalities.

    LSMI (Yang et al., ICML 2025, arXiv 2506.17248): a classifier per modality and per pair gives
    ``i = log C + log p(y|x)``, a density per modality ``H = -log p(x)``. Then
    ``r = min(H_1, H_2) - min(H_1 - i_1, H_2 - i_2)``, ``u_m = i_m - r``, ``s = i_12 - r - u_1 - u_2``. A constant of
    the data set moves ``r, s`` up and ``u_m`` down, or the other way, until no mean is negative where that can be had.
    Published for two modalities; more are taken pair by pair, which is our extension, as are cross-fitting, the
    classifiers' temperatures and the intervals.

    No row is measured by a model that was fitted or stopped on it. Test rows: models are fitted on the training rows
    and stopped by the validation rows. Training and validation rows: models are fitted on the other folds. The scaling
    of the inputs, which knows no label, is that of all training rows, so that densities of different folds can be
    compared.

    What the means say is known to be right where one of the four quantities is 0 in all rows. In a set that mixes
    samples of every kind the published rule counts part of what is unique as redundant and synergistic, and which of
    two equally dense modalities is rarer in a sample is chance; ``rule="information"`` is right there as well.

    Example:
        >>> found = estimate("features.npz", split="test", progress=True)
        >>> found.pairs["audio+text"].means.synergy
        >>> found.write("interactions")

    Args:
        data: a feature set, or a source as :func:`pgm_fast.data.load` takes it. Sequences are averaged over their valid
            steps; absent modalities leave NaN in their rows.
        split: ``train``, ``valid`` or ``test``; None for every row.
        settings: None for the defaults.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: show how far it is.
        reading: further arguments of :func:`pgm_fast.data.load`.

    Returns:
        Values in nats. The same on one machine for the same seed and number of threads.

    Raises:
        DataError: the data is not usable, has no integer class labels, one modality only, or too few rows.
        ConfigError: a setting out of range.
    """
    if isinstance(data, FeatureSet):
        if reading:
            raise ConfigError(
                f"{', '.join(reading)} say how a source is read, and a feature set is given; leave them out"
            )
        check_features(data)
        features = data
    else:
        features = load(data, **reading)
    return _estimate(rows_of(features), split, settings or Settings(), device, progress)


def estimate_run(
    run: str | PathLike,
    *,
    measured_on: str = "learned",
    split: str | None = "test",
    data: FeatureSet | str | None = None,
    checkpoint: str = "best",
    settings: Settings | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Interactions:
    """:func:`estimate` for a trained run, with the correlation of the model's shares and what was measured.

    Args:
        run: folder of the run.
        measured_on: ``learned``: what the model made of each modality (its uni-modal and paired features side by side).
            ``inputs``: the data that it was trained on, standardised.
        split: as for :func:`estimate`. A model's features of rows that it was trained on say more about their labels
            than those of other rows do, and no cross-fitting here mends that: hence ``test``.
        data, checkpoint: as for :func:`pgm_fast.train.predict`.
        settings, device, progress: as for :func:`estimate`.

    Raises:
        As :func:`estimate` and :func:`pgm_fast.train.predict`; ConfigError where the method has no features.
    """
    if measured_on not in MEASURED_ON:
        raise ConfigError(f"measured_on is {measured_on!r}, must be one of {', '.join(MEASURED_ON)}")
    folder = RunFolder(run)
    folder.require()
    features = features_of_run(load_run(folder.best), data, labels=True)
    predictions = predict(run, data=features, checkpoint=checkpoint)
    if measured_on == "learned" and split != "test":
        log.warning("%s: the model was trained on some of these rows; its features tell their labels too well", run)
    rows = rows_of(features, _learned(predictions, run) if measured_on == "learned" else None)
    found = _estimate(rows, split, settings or Settings(), device, progress)
    shares = {name: values[found.index] for name, values in _shares(predictions).items()}
    return replace(found, run=str(run), association=associate(shares, found.pairs))


def _estimate(rows: Rows, split: str | None, settings: Settings, device: str, progress: bool) -> Interactions:
    start = time.perf_counter()
    where = current_ranks(device).device
    wanted = wanted_rows(rows, split)
    surprise = label_surprise(rows.labels, np.flatnonzero(rows.split == "train"), rows.classes, settings.prior)
    _warn_if_uneven(rows, settings)
    inputs = standardised(rows, where, settings.standardize)
    labels = torch.from_numpy(rows.labels).to(where)
    views = [(m,) for m in rows.modalities] + list(combinations(rows.modalities, 2))
    densities = rows.modalities if settings.rule == "entropy" else []
    generator = torch.Generator().manual_seed(settings.seed)
    found: dict[str, np.ndarray] = {}
    negative_log_density: dict[str, np.ndarray] = {}
    projected = {m: settings.density_dim for m in densities if inputs[m].shape[1] > settings.density_dim}
    for m, count in projected.items():
        log.info("%s: density of the first %d of %d principal components", m, count, inputs[m].shape[1])
    # dropout draws from the global generators, whose state is the caller's
    forked = torch.random.fork_rng(devices=[where] if where.type == "cuda" else [])
    with forked, Progress(progress, len(views) + len(densities)) as bar:
        torch.manual_seed(settings.seed)
        for view in views:
            members = plan(rows, wanted, _usable(rows, view), settings.folds)
            name = joint_name(*view) if len(view) == 2 else view[0]
            tick = bar.part(f"label from {name}")
            found[name] = information([inputs[m] for m in view], labels, surprise, members, settings, generator, tick)
        for m in densities:
            members = plan(rows, wanted, _usable(rows, (m,)), settings.folds)
            training = np.flatnonzero((rows.split == "train") & _usable(rows, (m,)))
            x = principal_components(inputs[m], training, settings.density_dim)
            negative_log_density[m] = entropy(x, members, settings, generator, bar.part(f"density of {m}"))
    found = {name: values[wanted] for name, values in found.items()}
    negative_log_density = {name: values[wanted] for name, values in negative_log_density.items()}
    pairs = {
        joint_name(*pair): pair_of(pair, found, negative_log_density, settings) for pair in views if len(pair) == 2
    }
    return Interactions(
        data=rows.name,
        split=split,
        settings=settings,
        index=rows.index[wanted],
        ids=rows.ids[wanted],
        splits=rows.split[wanted],
        labels=rows.labels[wanted],
        classes=rows.classes,
        information=found,
        entropy=negative_log_density,
        pairs=pairs,
        members=len(members),
        projected=projected,
        seconds=time.perf_counter() - start,
    )


def _usable(rows: Rows, view: tuple[str, ...]) -> np.ndarray:
    return rows.present[:, [rows.modalities.index(m) for m in view]].all(axis=1)


def _warn_if_uneven(rows: Rows, settings: Settings) -> None:
    training = np.flatnonzero(rows.split == "train")
    share = np.bincount(rows.labels[training], minlength=rows.classes) / max(len(training), 1)
    missing = math.log(rows.classes) + float((share * np.log(np.where(share > 0, share, 1))).sum())
    if settings.prior == "uniform" and missing > UNEVEN:
        log.warning(
            "%s: the classes are uneven, which prior=uniform counts as %.2f nats of information in every modality; "
            "prior=empirical does not",
            rows.name,
            missing,
        )


def _learned(predictions: Predictions, run: str | PathLike) -> dict[str, np.ndarray]:
    """Modality -> its features of all kinds side by side, float32 ``[n, d]``."""
    kinds: dict[str, list[np.ndarray]] = {}
    for name, values in predictions.features.items():
        modality, _, _ = name.partition("/")
        kinds.setdefault(modality, []).append(values)
    if len(kinds) < 2:
        raise ConfigError(f"the method of {run} gives no features of two modalities; measure its inputs (--on inputs)")
    return {modality: np.concatenate(values, axis=1) for modality, values in kinds.items()}


def _shares(predictions: Predictions) -> dict[str, np.ndarray]:
    """``<modality>.<partition>`` and ``gate.<component>`` -> float ``[n]``, NaN where the modality is absent."""
    columns = {}
    for modality, values in predictions.shares.items():
        present = predictions.presence.get(modality, np.ones(len(values), bool))
        for name, share in zip(PARTITIONS[values.shape[1]], values.T, strict=True):
            columns[f"{modality}.{name}"] = np.where(present, share, np.nan)
    # methods that weigh components, rather than split representations, report the weights of each row
    return columns | {f"gate.{name}": weight for name, weight in predictions.gates.items()}
