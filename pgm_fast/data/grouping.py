"""Rows that belong together become sequences: one sample per value of a column, a label per step."""

from __future__ import annotations

import numpy as np

from .arrays import GroupedRows, is_lazy

__all__ = ["group_array", "group_members", "disagreement"]


def group_members(groups: np.ndarray, order: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of each group, in order of the groups' first rows.

    Args:
        groups: ``[N]``, rows with one value form one sequence.
        order: ``[N]`` sortable, or None for the order of the file. Ties keep the order of the file.

    Returns:
        names ``[G]``, members int64 ``[G, T]`` (row numbers, -1 for padding), lengths int64 ``[G]``.
    """
    names, first, code = np.unique(groups, return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    rank = np.empty(len(names), np.int64)
    rank[by_first] = np.arange(len(names))
    code = rank[code]
    position = np.arange(len(groups)) if order is None else np.argsort(np.argsort(order, kind="stable"), kind="stable")
    sorted_rows = np.lexsort((position, code))
    lengths = np.bincount(code, minlength=len(names))
    members = np.full((len(names), lengths.max(initial=0)), -1, np.int64)
    members[np.arange(members.shape[1]) < lengths[:, None]] = sorted_rows
    return names[by_first], members, lengths.astype(np.int64)


def group_array(array, members: np.ndarray):
    """Rows ``[N, ...]`` as ``[G, T, ...]``, padding 0; stays in its file where it lives in one."""
    grouped = GroupedRows(array, members)
    return grouped if is_lazy(array) else np.asarray(grouped)


def disagreement(groups: np.ndarray, values: np.ndarray) -> tuple[int, str] | None:
    """``(row, message)`` of the first group whose rows disagree in ``values``, or None."""
    _, first, code = np.unique(groups, return_index=True, return_inverse=True)
    differs = values != values[first[code]]
    if differs.ndim > 1:
        differs = differs.any(axis=1)
    if not differs.any():
        return None
    row = int(np.flatnonzero(differs)[0])
    return row, f"group {groups[row]} holds {values[first[code[row]]]} in row {first[code[row]]} and {values[row]} here"
