"""Which dimensions of a representation tell the classes apart, one dimension at a time.

    mu_yk = mean of x_ik over the rows of class y
    accuracy_k = mean_i 1[argmin_y |x_ik - mu_yk| = y_i], the lowest class among equally near ones
    mask_k = accuracy_k > mean of accuracy

Source: DI-MML, Fan et al., ACM MM 2024, arXiv 2407.19514. The released code compares every value with every centroid.
Here each class's *cell*, the interval of values that are nearest to its centroid, is found once per dimension from the
sorted centroids, and a row is right where its value lies in the cell of its own class: two comparisons instead of C.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .checks import check_features, check_labels, check_tensor
from .dtypes import accumulation_dtype
from .registration import define

__all__ = ["EffectiveDimensions", "effective_dimensions"]

# Values looked at together, on the CPU and on other devices: some MiB of temporaries per million, and enough for a
# kernel each.
_BLOCK_ELEMENTS, _BLOCK_ELEMENTS_ELSE = 1 << 20, 1 << 22


class EffectiveDimensions:
    """The measurement in two passes over batches: centroids first, then hits.

    Memory is a few ``[C, d]`` tables whatever the number of rows. Sums are kept in float64, centroids are rounded to
    the accumulation dtype, and which centroid is nearest is decided exactly for dtypes up to float32 (in float64 up to
    the rounding of the point halfway between two centroids). A value halfway belongs to the lower class. A class
    without rows is never the nearest.

    Example:
        >>> measure = EffectiveDimensions(width, num_classes)
        >>> for features, labels in batches:
        ...     measure.add_to_centroids(features, labels)
        >>> for features, labels in batches:
        ...     measure.add_to_hits(features, labels)
        >>> accuracy, mask = measure.result()

    Args:
        width: d.
        num_classes: C.
        dtype: of the features; they are taken to float32 (float64 for float64).
        device: of everything.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        self.dtype = accumulation_dtype(dtype)
        self._sums = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self._hits = torch.zeros(width, dtype=torch.float64, device=device)
        self._cells: tuple[Tensor, Tensor] | None = None

    def add_to_centroids(self, features: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """First pass: ``[n, d]``, int64 ``[n]`` and None or the rows' weights ``[n]``."""
        for x, y, w in _blocks(features, labels, weight):
            _add_by_class(self._counts, y, w)
            _add_by_class(self._sums, y, x.double() if weight is None else x.double() * w.unsqueeze(1))

    def add_to_hits(self, features: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Second pass, the same rows."""
        if self._cells is None:
            # 0 / 0: a class without rows has no centroid, and one at infinity is never the nearest
            centroids = torch.nan_to_num(self._sums / self._counts.unsqueeze(1), nan=torch.inf)
            self._cells = _cells(centroids.to(self.dtype))
        low, high = self._cells
        for x, y, w in _blocks(features, labels, weight):
            x = x.to(self.dtype)
            right = (x >= low.index_select(0, y)) & (x <= high.index_select(0, y))
            self._hits += right.sum(0) if weight is None else w @ right.double()

    def result(self) -> tuple[Tensor, Tensor]:
        """``(accuracy[d], mask[d])`` in the accumulation dtype and bool; zeros where there were no rows."""
        accuracy = self._hits / self._counts.sum().clamp(min=torch.finfo(torch.float64).tiny)
        # by hits: equal accuracies are then exactly equal to their mean
        return accuracy.to(self.dtype), self._hits * len(self._hits) > self._hits.sum()


def effective_dimensions(
    features: Tensor, labels: Tensor, num_classes: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How well each single dimension tells the classes apart, and which ones do better than their mean.

    Args:
        features: ``[N, d]``, floating point, finite. Not differentiated.
        labels: int64 ``[N]`` in ``[0, num_classes)``.
        num_classes: C >= 1.
        weight: ``[N]``, weight of each row in centroids and accuracy; None for 1. Rows of weight 0 are as if removed.

    Returns:
        ``(accuracy[d], mask[d])``: float32 (float64 for float64) and bool. Ties and rounding as in
        :class:`EffectiveDimensions`, which does the same over batches.

    Raises:
        TypeError: wrong dtypes.
        ValueError: shapes that do not fit, tensors on different devices, fewer than one class.
        IndexError: a label outside of its range, on the CPU; elsewhere as ``torch.Tensor.index_put_`` has it.
    """
    check_tensor("features", features, shape=(None, None))
    check_features("features", features)
    check_labels(labels, features)
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a whole number >= 1, got {num_classes!r}")
    if weight is not None:
        check_tensor("weight", weight, shape=tuple(labels.shape), like=features)
        weight = weight.detach()
    return _effective_dimensions(features.detach(), labels, weight, num_classes)


def _blocks(features: Tensor, labels: Tensor, weight: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows a few at a time, with float64 weights."""
    elements = _BLOCK_ELEMENTS if features.device.type == "cpu" else _BLOCK_ELEMENTS_ELSE
    size = max(1, elements // features.shape[1])
    for begin in range(0, features.shape[0], size):
        y = labels[begin : begin + size]
        w = torch.ones_like(y, dtype=torch.float64) if weight is None else weight[begin : begin + size].double()
        yield features[begin : begin + size], y, w


def _add_by_class(sums: Tensor, labels: Tensor, values: Tensor) -> None:
    """``sums[labels[i]] += values[i]``, in the same order every time."""
    if sums.device.type == "cpu":
        try:
            sums.index_add_(0, labels, values)
        except IndexError:
            raise IndexError(
                f"labels must be in [0, {sums.shape[0]}), as num_classes={sums.shape[0]}, got {labels.min().item()} to "
                f"{labels.max().item()}"
            ) from None
    else:
        # there index_add_ adds in whatever order threads arrive, while accumulation by index_put_ sorts first
        sums.index_put_((labels,), values, accumulate=True)


def _cells(centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each class's cell, ``[C, d]`` each; an empty cell ends before it begins."""
    count = centroids.shape[0]
    value, owner = centroids.sort(dim=0, stable=True)
    # of equal centroids the lowest class, which is the first of its run, has the cell and the others have none
    first = torch.ones_like(value, dtype=torch.bool)
    first[1:] = value[1:] != value[:-1]
    place = torch.arange(count, device=value.device).unsqueeze(1).expand_as(value)
    start = place.where(first, 0).cummax(0).values
    following = place.where(first, count).flip(0).cummin(0).values.flip(0)
    left = start[:-1]  # the run before each place but the first
    right = following[1:]  # the run after each place but the last
    low, high = torch.full_like(value, -torch.inf), torch.full_like(value, torch.inf)
    halfway, ours = _halfway(value[1:], value.gather(0, left)), owner[1:] < owner.gather(0, left)
    low[1:] = _at_least(halfway, ours, value.dtype)
    last = right == count
    right = right.clamp(max=count - 1)
    halfway, ours = _halfway(value[:-1], value.gather(0, right)), owner[:-1] < owner.gather(0, right)
    high[:-1] = torch.where(last, high[:-1], -_at_least(-halfway, ours, value.dtype))
    low = torch.where(first, low, torch.inf)
    high = torch.where(first, high, -torch.inf)
    return torch.empty_like(low).scatter_(0, owner, low), torch.empty_like(high).scatter_(0, owner, high)


def _halfway(a: Tensor, b: Tensor) -> Tensor:
    """Exact for float32: the sum of two has no more digits than float64 holds, unless one is 2^29 times the other."""
    return (a.double() + b.double()) / 2


def _at_least(bound: Tensor, inclusive: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of ``dtype`` that is >= bound where ``inclusive``, else > bound."""
    rounded = bound.to(dtype)
    enough = (rounded.double() > bound) | (inclusive & (rounded.double() == bound))
    return torch.where(enough, rounded, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)))


def _reference(features: Tensor, labels: Tensor, weight: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    measure = EffectiveDimensions(features.shape[1], num_classes, features.dtype, features.device)
    measure.add_to_centroids(features, labels, weight)
    measure.add_to_hits(features, labels, weight)
    return measure.result()


_effective_dimensions = define(
    "effective_dimensions(Tensor features, Tensor labels, Tensor? weight, SymInt num_classes) -> (Tensor, Tensor)",
    _reference,
    lambda features, labels, weight, num_classes: (
        features.new_empty(features.shape[1], dtype=accumulation_dtype(features.dtype)),
        features.new_empty(features.shape[1], dtype=torch.bool),
    ),
)
