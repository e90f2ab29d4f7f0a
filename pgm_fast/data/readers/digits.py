"""The embedded data set: 1797 real images of handwritten digits, 8 x 8 pixels, that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from ..raw import Raw, Request
from ..splitting import stratified_split

__all__ = ["read_digits"]


def read_digits(request: Request) -> Raw:
    """Modalities ``left`` and ``right``: the halves of each image, 32 pixels in [0, 1] each. Labels 0..9.

    The split is fixed and stratified: 60 % train, 20 % valid, 20 % test. Source: UCI Optical Recognition of Handwritten
    Digits (Alpaydin and Kaynak), test part, as distributed by scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    label = bunch.target.astype(np.int64)
    halves = {"left": images[:, :, :4].reshape(-1, 32), "right": images[:, :, 4:].reshape(-1, 32)}
    return Raw(
        file="digits",
        name="digits",
        modalities=halves,
        label=label,
        split=stratified_split(len(label), label, (0.6, 0.2, 0.2)),
        class_names=[str(digit) for digit in range(10)],
        keys=[*halves, "label", "split"],
    )
