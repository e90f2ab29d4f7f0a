"""Where the truth is known: the single gate gives the paired side most if only all modalities show the signal."""

from __future__ import annotations

import statistics

import pytest
from tolerances import CLEARLY_LARGER_SHARE

from pgm_fast.train import fit

# a partitioner that keeps pace with the learners, so that few epochs show where it goes
SETTINGS = {
    "model.dim": 32,
    "model.normalize": False,
    "train.epochs": 15,
    "train.patience": 0,
    "train.lr": 2e-3,
    "pgm.rates": {"*": {"partitioner": 10.0}},
    "train.plots": False,
    "train.tensorboard": False,
}


def paired_share(kind: str, seed: int, out) -> float:
    options = {"kind": kind, "n": 1500}
    report = fit(
        method="pgm", data="synthetic", out=str(out), **{**SETTINGS, "data.options": options, "train.seed": seed}
    )
    assert report["test"]["fused"]["accuracy"] > 0.95, "the signal was not learned, so the share says nothing"
    return statistics.mean(share["paired"] for share in report["shares"].values())


@pytest.mark.parametrize("seed", [0, 1])
def test_synergy_has_a_larger_paired_share_than_what_one_modality_tells_alone(seed, tmp_path):
    xor, copy, private = (paired_share(kind, seed, tmp_path / kind) for kind in ("xor", "copy", "private"))
    assert xor > copy + CLEARLY_LARGER_SHARE
    assert xor > private + CLEARLY_LARGER_SHARE
