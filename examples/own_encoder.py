"""The engine with arrays and an encoder of your own.

    python examples/own_encoder.py --out runs/own_encoder

Reads nothing, writes a run folder, takes seconds on a CPU. ``audio`` is a sequence of varying length that a small
convolution encodes; ``tags`` is a vector and takes the built-in encoder.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from pgm_fast.data import FeatureSet
from pgm_fast.train import evaluate, fit

DIM = 32  # model.dim, the width that every encoder returns


class ConvEncoder(nn.Module):
    """``[B, T, d]`` with lengths ``[B]`` -> ``[B, DIM]``: the mean of a convolution over the valid steps."""

    def __init__(self, dim_in: int):
        super().__init__()
        self.convolution = nn.Conv1d(dim_in, DIM, kernel_size=3, padding=1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        hidden = torch.relu(self.convolution(x.transpose(1, 2)))
        valid = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
        return (hidden * valid.unsqueeze(1)).sum(dim=2) / lengths.unsqueeze(1)


def make_features(rows: int = 300, seed: int = 0) -> FeatureSet:
    """Three classes: both modalities show the class, audio in its valid steps only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=rows)
    lengths = rng.integers(4, 13, size=rows)
    audio = rng.normal(size=(rows, 12, 6)).astype(np.float32)
    audio[:, :, :3] += 1.5 * np.eye(3, dtype=np.float32)[labels][:, None]
    audio[np.arange(12) >= lengths[:, None]] = 0
    tags = rng.normal(size=(rows, 10)).astype(np.float32)
    tags[:, :3] += np.eye(3, dtype=np.float32)[labels]
    return FeatureSet(
        name="two made-up modalities",
        modalities={"audio": audio, "tags": tags},
        task="classification",
        labels=labels,
        split=rng.choice(["train", "valid", "test"], p=[0.6, 0.2, 0.2], size=rows),
        lengths={"audio": lengths},
        class_names=["low", "middle", "high"],
    )


def main(out: str, epochs: int) -> float:
    features = make_features()
    encoders = {"audio": ConvEncoder(6)}
    settings = {"model.dim": DIM, "train.epochs": epochs, "train.batch_size": 32, "train.lr": 3e-3}
    report = fit(method="pgm", data=features, encoders=encoders, out=out, **settings)
    print(f"best epoch {report['best_epoch']}, test accuracy {report['test']['fused']['accuracy']:.3f}")
    # What a program made lies in no file, so it is handed in again.
    scores = evaluate(out, data=features, encoders=encoders, split="test")
    for modality, values in scores["unimodal"].items():
        shares = ", ".join(f"{name} {share:.2f}" for name, share in scores["shares"][modality].items())
        print(f"{modality} alone: {values['accuracy']:.3f}; {shares}")
    print(f"report: {out}/report.html")
    return report["test"]["fused"]["accuracy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="runs/own_encoder")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs)
