from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import FP32, FP64

from pgm_fast.ops import certainty_weighted_logits, certainty_weighted_prediction


def _by_hand(logits, temperature, present):
    """Row by row and head by head in numpy."""
    fused, weights = np.zeros(logits[0].shape), np.zeros((len(logits[0]), len(logits)))
    for i in range(len(fused)):
        heads = [k for k in range(len(logits)) if present[i, k]]
        certainty = [(np.exp(z[i] - z[i].max()) / np.exp(z[i] - z[i].max()).sum()).max() for z in logits]
        total = sum(np.exp(certainty[k] / temperature) for k in heads)
        for k in heads:
            weights[i, k] = np.exp(certainty[k] / temperature) / total
            fused[i] += weights[i, k] * logits[k][i]
    return fused, weights


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("missing", [False, True])
def test_equals_the_formula(temperature, missing):
    rng = np.random.default_rng(0)
    logits = [3 * rng.normal(size=(9, 4)) for _ in range(3)]
    present = rng.random((9, 3)) < 0.6 if missing else np.ones((9, 3), bool)
    present[0] = not missing  # a row without any head
    tensors = [torch.as_tensor(z).requires_grad_() for z in logits]
    got = certainty_weighted_logits(tensors, temperature, torch.as_tensor(present) if missing else None)
    for a, b in zip(got, _by_hand(logits, temperature, present), strict=True):
        torch.testing.assert_close(a.detach(), torch.as_tensor(b), rtol=FP64, atol=FP64)
    gradients = torch.autograd.grad(got[0].square().sum() + got[1].sum(), tensors)
    for k, gradient in enumerate(gradients):
        assert gradient.isfinite().all() and not gradient[~torch.as_tensor(present[:, k])].any()


def test_the_certain_head_speaks_when_the_temperature_is_low_and_all_alike_when_it_is_high():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.1]])
    fused, weights = certainty_weighted_logits([sure, unsure], 0.01)
    torch.testing.assert_close(fused, sure, rtol=FP32, atol=FP32)
    assert weights[0, 0] > weights[0, 1]
    fused, weights = certainty_weighted_logits([sure, unsure], 1e9)
    torch.testing.assert_close(weights, torch.full((1, 2), 0.5), rtol=FP32, atol=FP32)


def test_extreme_logits_stay_finite():
    z = torch.tensor([[1e30, -1e30], [-1e4, 1e4]], requires_grad=True)
    fused, _ = certainty_weighted_logits([z, -z.detach()], 1e-3)
    fused.sum().backward()
    assert fused.isfinite().all() and z.grad.isfinite().all()


@pytest.mark.parametrize("missing", [False, True])
def test_predictions_are_of_the_fused_logits_and_counted_on_the_device(missing):
    logits = [torch.randn(50, 4, requires_grad=True) for _ in range(3)]
    present = torch.rand(50, 3) < 0.6 if missing else None
    fused, weights = certainty_weighted_logits(logits, 0.3, present)
    labels = torch.where(torch.arange(50) < 30, fused.argmax(1), -1)
    made = certainty_weighted_prediction(logits, 0.3, present, labels)
    assert torch.equal(made.fused, fused) and torch.equal(made.weights, weights) and not made.fused.requires_grad
    assert torch.equal(made.classes, fused.argmax(1)) and made.correct == 30 and made.correct.dtype == torch.int64
    assert certainty_weighted_prediction(logits, 0.3, present).correct == 0


def test_a_prediction_compiles_and_passes_opcheck():
    logits, labels = [torch.randn(6, 4), torch.randn(6, 4)], torch.arange(6) % 4
    compiled = torch.compile(certainty_weighted_prediction, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(logits, labels=labels), certainty_weighted_prediction(logits, labels=labels), strict=True):
        assert torch.equal(a, b)
    op = torch.ops.pgm_fast.certainty_weighted_prediction
    torch.library.opcheck(op.default, (logits, None, labels, 0.5), rtol=0, atol=0)


def test_wrong_arguments_are_named():
    z = torch.randn(3, 4)
    for arguments, error, message in (
        (([],), ValueError, "at least one tensor"),
        ((z,), ValueError, r"got one tensor of shape \[3, 4\]"),
        (([z, z[:2]],), ValueError, r"logits\[1\] must have shape \[3, 4\], got \[2, 4\]"),
        (([z, z.double()],), TypeError, r"logits\[1\] must have the dtype of logits\[0\]"),
        (([z], 1.0, torch.ones(3, 1)), TypeError, "present must be a bool tensor, got torch.float32"),
        (([z], 1.0, torch.ones(3, 2, dtype=torch.bool)), ValueError, r"present must have shape \[3, 1\]"),
    ):
        with pytest.raises(error, match=message):
            certainty_weighted_logits(*arguments)
    for labels, error, message in (
        (torch.zeros(3), TypeError, "labels must be an int64 tensor, got torch.float32"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"labels must have shape \[3\]"),
    ):
        with pytest.raises(error, match=message):
            certainty_weighted_prediction([z], labels=labels)
