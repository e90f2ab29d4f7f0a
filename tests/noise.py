"""The project's noise a second time, in numpy with 64-bit words: what the reference and every kernel must give."""

from __future__ import annotations

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)


def words(counter, key) -> list[np.ndarray]:
    """Philox4x32-10 of Salmon et al., SC 2011."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k = [int(x) for x in key]
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            second & _LOW,
            (first >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            first & _LOW,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def normals(seed: int, rows: int, d: int) -> np.ndarray:
    """float64 ``[rows, d]``, each entry from its own row and column."""
    row, column = np.indices((rows, d))
    block, word = column // 64 * 16 + column % 16, column % 64 // 16
    made = np.stack(words((block, row, 0 * row, 0 * row), (seed % 2**32, seed >> 32)))
    radial, angular = (np.take_along_axis(made, (word // 2 * 2 + i)[None], 0)[0] for i in (0, 1))
    radius = np.sqrt(-2 * np.log((np.floor(radial / 512) + 0.5) / 2**23))
    angle = np.pi / 2 * (np.floor(angular / 2**30) + np.floor(angular % 2**30 / 2**7) / 2**23 - 0.5)
    return np.where(word % 2 == 0, radius * np.cos(angle), radius * np.sin(angle))
