"""Labelled sets whose redundancy, uniqueness and synergy are known: claims about them get a test with an answer.

Each sample has one *interaction* and a binary label y:

- ``copy``: every modality carries y. Redundancy log 2.
- ``private``: one modality carries y, the others carry bits of their own. Uniqueness log 2 of that modality.
- ``xor``: every modality carries an independent bit and y is their parity. Synergy log 2 (of all modalities together).
- ``mixture``: the samples are of these kinds; each kind has directions of its own in every modality, so that which kind
  a sample is can be read from each modality, and the values above hold sample by sample.

A modality's vector is ``strength * bit * direction + noise * N(0, I)`` with bit in {-1, +1} and orthonormal random
directions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, did_you_mean
from .feature_set import FeatureSet
from .raw import Raw, Request
from .splitting import stratified_split

__all__ = ["KINDS", "NAMES", "Synthetic", "draw", "generate", "read_synthetic"]

KINDS = ("copy", "private", "xor", "mixture")
NAMES = ("a", "b", "c")


@dataclass
class Synthetic:
    """A drawn set with the truth about every sample.

    Attributes:
        features: the data.
        interaction: ``[N]`` of ``copy``, ``private_<modality>``, ``xor``.
        redundancy: float64 ``[N]``, nats.
        uniqueness: float64 ``[N, M]``, nats per modality.
        synergy: float64 ``[N]``, nats. All three are of the noise-free bits with every modality present.
        bits: int8 ``[N, M]`` of 0/1: the bit that each modality carries.
        bit_error: float64 ``[M]``: how often the best detector misreads a bit of one vector (noise against strength).
    """

    features: FeatureSet
    interaction: np.ndarray
    redundancy: np.ndarray
    uniqueness: np.ndarray
    synergy: np.ndarray
    bits: np.ndarray
    bit_error: np.ndarray


def draw(
    kind: str = "mixture",
    n: int = 2000,
    dim: int = 16,
    noise: float = 0.25,
    imbalance: float | Sequence[float] = 1.0,
    scales: Sequence[float] | None = None,
    modalities: int = 2,
    private: int = 0,
    proportions: Mapping[str, float] | None = None,
    sequence: bool = False,
    steps: int = 12,
    missing: float = 0.0,
    seed: int = 0,
) -> Synthetic:
    """Draw a set and keep the truth.

    Args:
        kind: ``copy``, ``private``, ``xor`` or ``mixture``.
        n: samples (60 % train, 20 % valid, 20 % test, stratified).
        dim: width of every modality; at least the number of kinds in the set.
        noise: standard deviation in every dimension.
        imbalance: signal strengths: a ratio r gives 1, 1/r, 1/r²; a sequence gives them one by one.
        scales: signal and noise of each modality together are multiplied by this; None for 1. It changes nothing that
            can be known, but what is small is learned slowly (with ``data.standardize=false``): two modalities then
            compete in joint training.
        modalities: 2 or 3; named ``a``, ``b``, ``c``.
        private: which modality holds the bit of ``kind=private``.
        proportions: of ``copy``, ``private`` and ``xor`` in a mixture (default equal); ``private`` is shared among the
            modalities.
        sequence: each modality is a sequence of up to ``steps`` steps of random length, the signal in every step,
            padding 0.
        steps: longest sequence.
        missing: each modality of a sample is absent with this probability, never all of them.
        seed: of everything.

    Raises:
        DataError: a value that is not allowed.
    """
    proportions = {"copy": 1.0, "private": 1.0, "xor": 1.0} if proportions is None else dict(proportions)
    _check(kind, n, dim, noise, modalities, private, proportions, steps, missing, seed)
    names = NAMES[:modalities]
    strength = _strengths(imbalance, modalities)
    scale = _scales(scales, modalities)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))

    kinds, chances = _kinds(kind, names, private, proportions)
    if dim < len(kinds):
        raise DataError(
            f"synthetic: dim={dim} is too small for {len(kinds)} kinds of samples; dim >= {len(kinds)} is needed"
        )
    which = rng.choice(len(kinds), size=n, p=chances)
    label = rng.integers(0, 2, n)
    bits = rng.integers(0, 2, (n, modalities))
    for number, name in enumerate(kinds):
        rows = which == number
        if name == "copy":
            bits[rows] = label[rows, None]
        elif name == "xor":
            bits[rows, -1] = (label[rows] + bits[rows, :-1].sum(axis=1)) % 2
        else:
            holder = names.index(name.removeprefix("private_"))
            bits[rows, holder] = label[rows]

    arrays, lengths = {}, {}
    for m, name in enumerate(names):
        directions = np.linalg.qr(rng.standard_normal((dim, len(kinds))))[0].T
        signal = strength[m] * (2 * bits[:, m, None] - 1) * directions[which]
        shape = (n, steps, dim) if sequence else (n, dim)
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= noise
        values += (signal[:, None] if sequence else signal).astype(np.float32)
        values *= scale[m]
        if sequence:
            lengths[name] = rng.integers(max(1, steps // 2), steps + 1, n)
            values[np.arange(steps) >= lengths[name][:, None]] = 0
        arrays[name] = values

    presence = None
    if missing > 0:
        chance = rng.random((n, modalities))
        presence = chance >= missing
        presence[np.arange(n), chance.argmax(axis=1)] = True
        for m, name in enumerate(names):
            arrays[name][~presence[:, m]] = 0

    features = FeatureSet(
        name=f"synthetic-{kind}",
        modalities=arrays,
        task="classification",
        labels=label.astype(np.int64),
        split=stratified_split(n, label, (0.6, 0.2, 0.2)),
        lengths=lengths,
        presence=presence,
        num_classes=2,
    )
    interaction = np.asarray(kinds)[which]
    nats = math.log(2)
    return Synthetic(
        features=features,
        interaction=interaction,
        redundancy=nats * (interaction == "copy"),
        uniqueness=nats * np.stack([interaction == f"private_{name}" for name in names], axis=1),
        synergy=nats * (interaction == "xor"),
        bits=bits.astype(np.int8),
        bit_error=np.array([0.5 * math.erfc(s / (noise * math.sqrt(2))) if noise > 0 else 0.0 for s in strength]),
    )


def generate(**options) -> FeatureSet:
    """The feature set of :func:`draw`, with the same arguments."""
    return draw(**options).features


def read_synthetic(request: Request) -> Raw:
    """The source ``synthetic``; ``request.options`` are arguments of :func:`draw`. Raises DataError for others."""
    allowed = list(inspect.signature(draw).parameters)
    for key in request.options:
        if key not in allowed:
            raise DataError(
                f"synthetic: unknown option '{key}'{did_you_mean(key, allowed)}; allowed are {', '.join(allowed)}"
            )
    features = generate(**request.options)
    wanted = list(features.modalities) if request.modalities is None else list(request.modalities)
    for name in wanted:
        if name not in features.modalities:
            raise DataError(f"synthetic: no modality '{name}'; there are {', '.join(features.modalities)}")
    presence = features.presence
    if presence is not None:
        presence = presence[:, [list(features.modalities).index(name) for name in wanted]]
    return Raw(
        file="synthetic",
        name=features.name,
        modalities={name: features.modalities[name] for name in wanted},
        label=features.labels,
        split=features.split,
        presence=presence,
        lengths={name: features.lengths[name] for name in wanted if name in features.lengths},
        num_classes=2,
        keys=[*wanted, "label", "split"],
    )


def _check(kind, n, dim, noise, modalities, private, proportions, steps, missing, seed) -> None:
    if kind not in KINDS:
        raise DataError(f"synthetic: unknown kind '{kind}'{did_you_mean(kind, KINDS)}; one of {', '.join(KINDS)}")
    if modalities not in (2, 3):
        raise DataError(f"synthetic: modalities={modalities}; 2 or 3 are made")
    for name, value, least in (
        ("n", n, 10),
        ("dim", dim, 1),
        ("noise", noise, 0),
        ("steps", steps, 1),
        ("seed", seed, 0),
    ):
        if not isinstance(value, (int, float)) or not value >= least:
            raise DataError(f"synthetic: {name}={value!r}; a number >= {least} is needed")
    if not 0 <= private < modalities:
        raise DataError(f"synthetic: private={private}; the number of a modality, 0 to {modalities - 1}, is needed")
    if not 0 <= missing < 1:
        raise DataError(f"synthetic: missing={missing}; a rate in [0, 1) is needed")
    unknown = set(proportions) - set(KINDS[:3])
    if unknown or any(v < 0 for v in proportions.values()) or not sum(proportions.values()) > 0:
        raise DataError(
            f"synthetic: proportions={proportions}; weights >= 0 of copy, private and xor, not all 0, are needed"
        )


def _strengths(imbalance: float | Sequence[float], modalities: int) -> list[float]:
    if isinstance(imbalance, (int, float)):
        if not imbalance > 0:
            raise DataError(f"synthetic: imbalance={imbalance}; a ratio > 0 is needed")
        return [float(imbalance) ** -m for m in range(modalities)]
    try:
        strengths = [float(value) for value in imbalance]
    except (TypeError, ValueError):
        strengths = []
    if len(strengths) != modalities or min(strengths) < 0:
        raise DataError(f"synthetic: imbalance={imbalance!r}; a ratio, or {modalities} strengths >= 0, is needed")
    return strengths


def _scales(scales: Sequence[float] | None, modalities: int) -> list[float]:
    if scales is None:
        return [1.0] * modalities
    try:
        values = [float(value) for value in scales]
    except (TypeError, ValueError):
        values = []
    if len(values) != modalities or not all(0 < value < math.inf for value in values):
        raise DataError(f"synthetic: scales={scales!r}; {modalities} finite numbers > 0 are needed, or none")
    return values


def _kinds(
    kind: str, names: Sequence[str], private: int, proportions: Mapping[str, float]
) -> tuple[list[str], np.ndarray]:
    """The kinds of samples in the set and their probabilities."""
    if kind == "private":
        return [f"private_{names[private]}"], np.ones(1)
    if kind != "mixture":
        return [kind], np.ones(1)
    weights = {"copy": proportions.get("copy", 0.0)}
    weights |= {f"private_{name}": proportions.get("private", 0.0) / len(names) for name in names}
    weights["xor"] = proportions.get("xor", 0.0)
    chosen = {name: weight for name, weight in weights.items() if weight > 0}
    total = sum(chosen.values())
    return list(chosen), np.array([weight / total for weight in chosen.values()])
