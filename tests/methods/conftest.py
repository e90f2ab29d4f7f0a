"""Small batches of every kind for the methods."""

from __future__ import annotations

import pytest
import torch

from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec

WIDTHS = {"text": 5, "audio": 3, "vision": 4}


@pytest.fixture
def make_batch():
    """``make_batch(task, rows, sequences=(), missing=(), per_step=False, modalities=3) -> (spec, batch)``, float64."""

    def make(task="classification", rows=6, *, sequences=(), missing=(), per_step=False, modalities=3, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        names = list(WIDTHS)[:modalities]
        sequences = names if per_step else [m for m in sequences if m in names]
        outputs = {"classification": 3, "multilabel": 4, "regression": 2, "retrieval": 0}[task]
        spec = DataSpec({m: ModalitySpec(WIDTHS[m], m in sequences) for m in names}, task, outputs, per_step)
        steps, n, lengths = None, rows, {}
        if per_step:
            length = torch.arange(rows) % 4 + 1
            grid = torch.arange(4) < length.unsqueeze(-1)
            steps = grid.flatten().nonzero().squeeze(-1)
            n, lengths = len(steps), {m: length for m in names}
        else:
            lengths = {m: torch.arange(rows) % 4 + 1 for m in sequences}
        labels = {
            "classification": torch.arange(n) % 3,
            "multilabel": (normal(n, 4) > 0).float(),
            "regression": normal(n, 2).float(),
            "retrieval": None,
        }[task]
        batch = Batch(
            inputs={m: normal(rows, 4, WIDTHS[m]) if m in sequences else normal(rows, WIDTHS[m]) for m in names},
            weight=torch.full((n,), 1 / max(n, 1)),
            index=torch.arange(n),
            lengths=lengths,
            labels=labels,
            steps=steps,
        )
        for k, m in enumerate(missing):
            present = torch.arange(n) % (k + 2) != 0
            batch.presence[m] = present
            batch.modality_weight[m] = present / present.sum().clamp(min=1)
            if not per_step:
                shape = (-1, *[1] * (batch.inputs[m].dim() - 1))
                batch.inputs[m] = batch.inputs[m] * present.view(shape)
        return spec, batch

    return make
