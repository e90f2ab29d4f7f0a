"""Where the truth is known, the shares say it: what only modalities together tell is paired-only, what each tells is
shared, what one tells is uni-only, and what a modality does not tell is unused."""

from __future__ import annotations

import statistics

import pytest
from tolerances import SHARE_OF_THE_TRUTH

from pgm_fast.train import fit

SETTINGS = {
    "model.dim": 32,
    "train.epochs": 25,
    "train.patience": 0,
    "train.lr": 2e-3,
    "train.plots": False,
    "train.logger": [],
}
# kind -> modality -> the mass that holds everything it knows
TRUTH = {
    "xor": {"a": "paired_only", "b": "paired_only"},
    "copy": {"a": "shared", "b": "shared"},
    "private": {"a": "uni_only", "b": "unused"},
}


@pytest.mark.parametrize("seeds", [(0,), pytest.param((1, 2), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("kind", TRUTH)
def test_shares_say_what_the_modalities_tell(kind, seeds, tmp_path):
    found = []
    for seed in seeds:
        settings = {**SETTINGS, "train.seed": seed, "data.options": {"kind": kind, "n": 1500, "seed": seed}}
        report = fit(method="pgm", data="synthetic", out=str(tmp_path / str(seed)), **settings)
        assert report["test"]["fused"]["accuracy"] > 0.95, "the signal was not learned, so the shares say nothing"
        found.append({m: report["shares"][m][mass] for m, mass in TRUTH[kind].items()})
    for m in TRUTH[kind]:
        assert statistics.mean(shares[m] for shares in found) >= SHARE_OF_THE_TRUTH, (m, found)
