from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EPS

from pgm_fast.ops import EffectiveDimensions, effective_dimensions


def _broadcast(x: np.ndarray, y: np.ndarray, classes: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every value against every centroid; numpy's argmin takes the first, lowest class among equals."""
    x, y = x[keep], y[keep]
    means = [
        x[y == c].astype(np.float64).mean(0) if (y == c).any() else np.full(x.shape[1], np.inf) for c in range(classes)
    ]
    centroids = np.stack(means).astype(x.dtype).astype(np.float64)
    right = np.abs(x.astype(np.float64)[:, None] - centroids).argmin(1) == y[:, None]
    hits = right.sum(0)
    return hits, hits * len(hits) > hits.sum()


@settings(max_examples=200)
@given(
    rows=st.integers(1, 60),
    d=st.integers(1, 9),
    classes=st.integers(1, 40),
    grid=st.sampled_from([None, 1, 2, 8]),
    weighted=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_the_broadcast_form_ties_included(rows, d, classes, grid, weighted, seed):
    """Features on a grid make equal centroids and values halfway between two."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, d)).astype(np.float32)
    x = x if grid is None else np.round(x * grid) / np.float32(grid)
    y = rng.integers(0, classes, rows)
    keep = rng.random(rows) < 0.7 if weighted else np.ones(rows, bool)
    weight = torch.as_tensor(keep).float() if weighted else None
    accuracy, mask = effective_dimensions(torch.as_tensor(x), torch.as_tensor(y), classes, weight)
    hits, want = _broadcast(x, y, classes, keep)
    total = max(keep.sum(), 1)
    torch.testing.assert_close(accuracy, torch.as_tensor(hits / total).float(), rtol=EPS[torch.float32], atol=0)
    assert mask.tolist() == want.tolist()


def test_a_value_halfway_is_the_lower_classes():
    x = torch.tensor([[0.0, 2.0], [0.0, 2.0], [2.0, 0.0], [1.0, 1.0], [3.0, -1.0]])
    y = torch.tensor([0, 0, 1, 1, 1])  # centroids 0 and 2, and 2 and 0: the fourth row is halfway in both
    accuracy, _ = effective_dimensions(x, y, 2)
    assert accuracy.tolist() == pytest.approx([0.8, 0.8], abs=EPS[torch.float32])


def test_equal_dimensions_are_none_above_their_mean_and_a_better_one_is():
    x = torch.tensor([[0.0, 0.0, 5.0], [1.0, 1.0, 5.0], [0.0, 0.0, 5.0]])
    y = torch.tensor([0, 1, 0])
    assert effective_dimensions(x[:, :2], y, 2)[1].tolist() == [False, False]
    accuracy, mask = effective_dimensions(x, y, 2)
    assert accuracy[:2].tolist() == [1, 1] and mask.tolist() == [True, True, False]


def test_rows_of_any_weight_count_by_it():
    x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 1, 1, 1])
    accuracy, _ = effective_dimensions(x, y, 2, torch.tensor([1.0, 2.0, 4.0, 3.0]))
    # centroids 0 and 7/9: the second row is nearer to the other class
    assert accuracy.tolist() == pytest.approx([0.8], abs=EPS[torch.float32])


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_give_the_numbers_of_the_whole(weighted):
    torch.manual_seed(0)
    x, y = torch.randn(2000, 40), torch.randint(9, (2000,))
    w = torch.rand(2000) if weighted else None
    measure = EffectiveDimensions(40, 9)
    parts = [slice(begin, begin + 300) for begin in range(0, 2000, 300)]
    for add in (measure.add_to_centroids, measure.add_to_hits):
        for part in parts:
            add(x[part], y[part], None if w is None else w[part])
    got, want = measure.result(), effective_dimensions(x, y, 9, w)
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=EPS[torch.float32], atol=0)


def test_no_value_is_read_on_the_host():
    """Tensors of the meta device have no values: whatever would read one raises."""
    x, y = torch.empty(500, 40, device="meta"), torch.empty(500, dtype=torch.int64, device="meta")
    measure = EffectiveDimensions(40, 9, device="meta")
    measure.add_to_centroids(x, y)
    measure.add_to_hits(x, y)
    accuracy, mask = measure.result()
    assert (accuracy.shape, accuracy.dtype, mask.dtype) == ((40,), torch.float32, torch.bool)


def test_no_rows_and_one_class():
    accuracy, mask = effective_dimensions(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 2)
    assert accuracy.tolist() == [0, 0, 0] and not mask.any()
    accuracy, mask = effective_dimensions(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), 1)
    assert accuracy.tolist() == [1, 1, 1] and not mask.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype):
    torch.manual_seed(0)
    x, y = torch.randn(300, 8).to(dtype), torch.randint(5, (300,))
    accuracy, mask = effective_dimensions(x.t().contiguous().t(), y, 5)
    assert accuracy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = x.numpy() if dtype == torch.float64 else x.float().numpy()
    hits, want = _broadcast(wide, y.numpy(), 5, np.ones(300, bool))
    assert mask.tolist() == want.tolist() and (accuracy * 300).round().tolist() == hits.tolist()


def test_passes_opcheck_and_compiles():
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    arguments = (x, y, torch.rand(12), 3)
    torch.library.opcheck(torch.ops.pgm_fast.effective_dimensions.default, arguments, rtol=0, atol=0)
    compiled = torch.compile(effective_dimensions, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x, y, 3), effective_dimensions(x, y, 3), strict=True))


def test_features_get_no_gradient():
    accuracy, _ = effective_dimensions(torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 0, 1, 1]), 2)
    assert not accuracy.requires_grad


def test_wrong_arguments_are_named():
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    for arguments, error, message in (
        ((x.long(), y, 2), TypeError, "features must be a floating-point tensor"),
        ((x[0], y, 2), ValueError, "features must have shape"),
        ((x, y.float(), 2), TypeError, "labels must be an int64 tensor, got torch.float32"),
        ((x, y[:3], 2), ValueError, r"labels must have shape \[4\]"),
        ((x, y, 0), ValueError, "num_classes must be a whole number >= 1, got 0"),
        ((x, y, 2.0), ValueError, "num_classes must be"),
        ((x, y + 2, 2), IndexError, r"^labels must be in \[0, 2\), as num_classes=2, got 2 to 2"),
        ((x, y - 1, 2), IndexError, r"^labels must be in \[0, 2\), as num_classes=2, got -1 to -1"),
        ((x, y, 2, torch.ones(3)), ValueError, r"weight must have shape \[4\]"),
    ):
        with pytest.raises(error, match=message):
            effective_dimensions(*arguments)
