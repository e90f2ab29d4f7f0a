"""Pictures cut and scaled to squares by Pillow, as torchvision does with Pillow's pictures.

torchvision itself is not used: its wheels on PyPI do not load beside builds of torch for the CPU alone.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["IMAGENET", "middle", "places_of", "random_part", "squashed"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and deviations of ImageNet's colours (red, green, blue), of values from 0 to 1."""

# of torchvision's RandomResizedCrop, after Szegedy et al., CVPR 2015
AREA = (0.08, 1.0)  # of the picture's
RATIO = (3 / 4, 4 / 3)  # width to height, uniform in the logarithm
ATTEMPTS = 10


def middle(picture, size: int):
    """The shorter side scaled to ``size`` (bicubic), the middle cut out."""
    from PIL.Image import Resampling

    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height), Resampling.BICUBIC).crop((left, top, left + size, top + size))


def squashed(picture, size: int):
    """All of it at ``size`` times ``size`` (bilinear), whatever its sides were."""
    from PIL.Image import Resampling

    return picture.resize((size, size), Resampling.BILINEAR)


def random_part(picture, size: int, rng: np.random.Generator):
    """A part of random place, area and ratio, scaled (bilinear), and mirrored with probability a half.

    Ten attempts, each with an area uniform in 8 to 100 % of the picture's and a ratio of width to height from 3/4 to
    4/3, uniform in its logarithm; the first that lies in the picture is taken. If none does, the largest middle part
    with a ratio in these bounds.
    """
    from PIL.Image import Transpose

    left, top, width, height = _part(*picture.size, rng)
    part = squashed(picture.crop((left, top, left + width, top + height)), size)
    return part.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _part(across: int, down: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height."""
    for _ in range(ATTEMPTS):
        area = across * down * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= across and 0 < height <= down:
            return int(rng.integers(across - width + 1)), int(rng.integers(down - height + 1)), width, height
    width, height = min(across, round(down * RATIO[1])), min(down, round(across / RATIO[0]))
    return (across - width) // 2, (down - height) // 2, width, height


def places_of(count: int, frames: int, choice: str, seed: int, rng: np.random.Generator | None) -> np.ndarray:
    """Which ``frames`` of ``count`` pictures are taken, int64 ascending; of fewer some are taken more than once.

    Args:
        choice: see :class:`~pgm_fast.data.media_settings.MediaConfig`.
        seed: of ``seeded``.
        rng: of ``random``, None in evaluation.
    """
    if choice == "seeded" and count >= frames:
        return np.sort(np.random.RandomState(seed).choice(count, size=frames, replace=False))
    if choice == "random" and count >= frames and rng is not None:
        return np.sort(rng.choice(count, size=frames, replace=False))
    if choice == "random" or frames == 1:
        return (np.arange(frames) + 0.5) * count // frames
    return np.rint(np.linspace(0, count - 1, frames))
