"""Counter-based noise: the same seed, row and column give the same number, so that noise is replayed and never stored.

Philox4x32-10 of Salmon et al., SC 2011 ("Parallel random numbers: as easy as 1, 2, 3"), here in plain PyTorch: the
definition that every kernel (``csrc/common/philox.h``, ``kernels/philox.py``) is held against. The key is the seed's
low and high half. The 16 * g + l th block of a row, with the counter (16 * g + l, row's low half, row's high half, 0),
gives by two Box-Muller pairs the normals of the columns 64 * g + l, 64 * g + 16 + l, 64 * g + 32 + l and 64 * g + 48 +
l: a vector of up to 16 lanes finds its blocks side by side.

Words are the same everywhere, bit by bit. The normals made of them are those of the exact formula up to a few roundings
of log, square root, sine and cosine, and these differ from one machine and backend to another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LANES", "draw_seed", "normal", "philox4x32"]

LANES = 16
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def draw_seed(device: torch.device, generator: torch.Generator | None = None, count: int = 1) -> Tensor:
    """int64 ``[count]`` on ``device``: the generator's next numbers; None for torch's own generator of that device.

    No value is read on the host, so that the call may be captured in a CUDA graph. Every replay draws anew, for torch
    keeps the state of its own generator, and of one given to ``CUDAGraph.register_generator_state``, on the device, and
    moves it on with each. A generator of another device costs a copy, which a graph could only repeat.

    Raises:
        ValueError: a generator of another device while a graph is being captured.
    """
    source = device if generator is None else generator.device
    if device.type == "cuda" and source.type != "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"generator is on {source}, but a graph is being captured on {device}, whose replays would all have the "
            f"same seed: hand in a generator of {device} that the graph has registered, or none"
        )
    if generator is None:  # handed in as None it is another overload, of which torch.compile makes no C++
        return torch.randint(0, 2**62, (count,), dtype=torch.int64, device=source).to(device)
    return torch.randint(0, 2**62, (count,), dtype=torch.int64, device=source, generator=generator).to(device)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter, all in int64 tensors that broadcast."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        (high_a, low_a), (high_c, low_c) = _multiply(_MULTIPLIERS[0], a), _multiply(_MULTIPLIERS[1], c)
        a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return a, b, c, d


def normal(seed: Tensor, rows: int, d: int, dtype: torch.dtype) -> Tensor:
    """Standard normals ``[rows, d]`` in ``dtype``, on the device of ``seed`` (int64 ``[1]``).

    Of every word 23 bits are used: a radius is one of 2**23 values, the largest 5.77.
    """
    groups = -(-d // (4 * LANES))
    column = torch.arange(groups * LANES, device=seed.device)
    row = torch.arange(rows, device=seed.device).unsqueeze(1)
    counter = (column.expand(rows, -1), row & _MASK, row >> 32, torch.zeros_like(row))
    words = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    pairs = [_box_muller(words[i], words[i + 1], dtype) for i in (0, 2)]
    blocks = torch.stack([value for pair in pairs for value in pair], dim=-2)  # [rows, 4, groups * 16]
    return blocks.unflatten(-1, (groups, LANES)).transpose(1, 2).reshape(rows, groups * 4 * LANES)[:, :d]


def _multiply(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a product of 32-bit words, by halves: int64 holds no 64-bit word without a sign."""
    high, low = multiplier * (x >> 16), multiplier * (x & 0xFFFF)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def _box_muller(radial: Tensor, angular: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A word each for the radius and the angle: its quarter from the two highest bits, the place in it from 23 more."""
    uniform = ((radial >> 9).to(dtype) + 0.5) * 2.0**-23
    radius = torch.sqrt(-2.0 * torch.log(uniform))
    place = ((angular >> 7) & 0x7FFFFF).to(dtype) * 2.0**-23 - 0.5
    angle = (math.pi / 2) * ((angular >> 30).to(dtype) + place)
    return radius * torch.cos(angle), radius * torch.sin(angle)
