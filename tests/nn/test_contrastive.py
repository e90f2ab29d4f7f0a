"""Cross-modal InfoNCE: all pairs, missing modalities, padding rows."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64, ROW_WEIGHT_FP32
from torch.nn import functional as F

from pgm_fast.nn import contrastive, cross_modal_info_nce


def two_way(a, b, temperature):
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def features(*names, rows=6):
    return {m: torch.randn(rows, 4, dtype=torch.float64, requires_grad=True) for m in names}


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_mean_over_all_pairs_however_many_are_taken_together(at_once, monkeypatch):
    monkeypatch.setattr(contrastive, "PRODUCTS", 36 * at_once)
    x = features("a", "b", "c")
    pairs = [two_way(x[p], x[q], 0.2) for p, q in (("a", "b"), ("a", "c"), ("b", "c"))]
    torch.testing.assert_close(cross_modal_info_nce(x, 0.2), sum(pairs) / 3, rtol=FP64, atol=FP64)


def test_rows_of_weight_zero_are_as_if_they_were_not_there():
    x = features("a", "b")
    weight = torch.tensor([0.25, 0.25, 0, 0.25, 0.25, 0], dtype=torch.float64)
    kept = {m: f[weight > 0] for m, f in x.items()}
    loss = cross_modal_info_nce(x, 0.2, weight)
    torch.testing.assert_close(loss, cross_modal_info_nce(kept, 0.2), rtol=FP64, atol=FP64)
    grads = torch.autograd.grad(loss, list(x.values()))
    assert all(not g[weight == 0].any() and g[weight > 0].any() for g in grads)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_pairs_loss_is_that_of_the_rows_that_have_it_alone(weighted):
    x = features("a", "b", "c")
    here = torch.tensor([True, False, True, True, False, True])
    garbage = {**x, "b": torch.where(here.unsqueeze(-1), x["b"], torch.tensor(1e6, dtype=torch.float64))}
    weight = torch.full((6,), 1 / 6, dtype=torch.float64) if weighted else None
    loss = cross_modal_info_nce(garbage, 0.2, weight, {"b": here})
    expected = two_way(x["a"], x["c"], 0.2)
    expected = expected + two_way(x["a"][here], x["b"][here], 0.2) + two_way(x["b"][here], x["c"][here], 0.2)
    torch.testing.assert_close(loss, expected / 3, rtol=ROW_WEIGHT_FP32, atol=0, check_dtype=False)


def test_one_modality_or_no_rows_is_zero():
    assert cross_modal_info_nce(features("a"), 0.2) == 0
    empty = features("a", "b", rows=0)
    loss = cross_modal_info_nce(empty, 0.2)
    loss.backward()
    assert loss == 0


def test_alignment_is_rewarded():
    a = torch.randn(8, 4)
    assert cross_modal_info_nce({"a": a, "b": 3 * a}, 0.1) < cross_modal_info_nce({"a": a, "b": a.flip(0)}, 0.1)
