"""Training by compiled kernels is training by the formulas: the same losses, epoch by epoch."""

from __future__ import annotations

import pytest
from tolerances import LOSS_SERIES_FP32

import pgm_fast
from pgm_fast import backends
from pgm_fast.train import fit
from pgm_fast.train.run.json_files import read_jsonl

KERNELS = ("partition", "partition_dual", "partitioned_linear", "reconstruction")
SETTINGS = {"train.epochs": 3, "train.device": "cpu", "train.plots": False, "train.logger": []}


def losses(backend, gate, out):
    """All losses of every epoch, of the training and of the validation split."""
    with pgm_fast.backend(backend):
        report = fit(method="pgm", data="digits", out=str(out), **SETTINGS, **{"pgm.gate": gate})
    epochs = read_jsonl(out / "metrics.jsonl")
    assert len(epochs) == SETTINGS["train.epochs"]
    return report["backend"], [(epoch["train"], epoch["valid"]["losses"]) for epoch in epochs]


@pytest.mark.parametrize("gate", ["single", "dual"])
def test_kernels_and_formulas_train_to_the_same_losses(gate, tmp_path):
    for op, reasons in backends.implementations().items():
        if op in KERNELS and reasons["native"] is not None:
            pytest.skip(f"no compiled {op}: {reasons['native']}")
    of_formulas, expected = losses("torch", gate, tmp_path / "torch")
    # ops without a kernel are served by the formula
    of_kernels, got = losses(None, gate, tmp_path / "native")
    assert {of_formulas[op] for op in KERNELS} == {"torch"} and {of_kernels[op] for op in KERNELS} == {"native"}
    for both in zip(got, expected, strict=True):
        for ours, theirs in zip(*both, strict=True):
            assert ours == pytest.approx(theirs, rel=LOSS_SERIES_FP32, abs=0)
    assert expected[-1][0]["total"] < expected[0][0]["total"]
