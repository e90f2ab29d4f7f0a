"""Models that attach puts PgM into, and what they are given."""

from __future__ import annotations

import dataclasses
from collections import namedtuple

import torch
from module_cases import awaken
from torch import nn

from pgm_fast.nn import attach, collect_losses

PLACES = {"text": "encoders.text", "audio": "encoders.audio"}
Pair = namedtuple("Pair", "length states")


@dataclasses.dataclass
class Output:
    states: torch.Tensor
    steps: int


class Encoder(nn.Module):
    """``[B, T, i]`` -> ``[B, T, d]``, or their means ``[B, d]``, in whatever ``wrap`` makes of it."""

    def __init__(self, width_in, width, sequence, wrap):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width_in, width), nn.Tanh())
        self.sequence, self.wrap = sequence, wrap

    def forward(self, x):
        h = self.layers(x)
        return self.wrap(h if self.sequence else h.mean(1))


def alone(h):
    return h


class Cast:
    """To a dtype, and then to values that no other holds."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, h):
        return h.to(self.dtype) * 1.01


def read(output):
    """The representation, wherever an encoder put it."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, dict):
        return output["states"]
    return output.states if hasattr(output, "states") else output[-1]


class Late(nn.Module):
    """Both encoders, then their means side by side."""

    def __init__(self, sequence=False, wrap=alone, widths=(16, 12)):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {"text": Encoder(6, widths[0], sequence, wrap), "audio": Encoder(5, widths[1], sequence, wrap)}
        )
        self.head = nn.Linear(sum(widths), 3)

    def forward(self, text, audio, text_mask=None, has_audio=None):
        found = [read(self.encoders["text"](text)), read(self.encoders["audio"](audio))]
        return self.head(torch.cat([h if h.dim() == 2 else self.mean(h, text_mask) for h in found], -1))

    @staticmethod
    def mean(h, mask):
        if mask is None or mask.shape != h.shape[:2]:
            return h.mean(1)
        return h.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True)


class Crossed(Late):
    """The second encoder's output attends to the first's."""

    def __init__(self, **options):
        super().__init__(True, widths=(12, 12), **options)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, text, audio):
        text, audio = read(self.encoders["text"](text)), read(self.encoders["audio"](audio))
        return self.head(self.attention(audio, text, text)[0].mean(1))


class Chained(Late):
    """The first encoder's output is read before the second runs, and by it."""

    def forward(self, text, audio):
        text = read(self.encoders["text"](text))
        return self.head(torch.cat([text, read(self.encoders["audio"](audio + text[:, None, :5]))], -1))


def inputs(dtype=torch.float32, rows=7):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, t, d, generator=generator).to(dtype) for t, d in ((4, 6), (3, 5)))


LABELS = torch.arange(7) % 3


def made(kind=Late, dtype=torch.float64, awake=True, options=None, **attached):
    torch.manual_seed(0)
    model = attach(kind(**(options or {})).to(dtype), PLACES, **attached)
    if awake:
        awaken(model.pgm)
    return model


def total(model, *args, target=LABELS):
    logits = model(*args)
    return logits.square().mean() + sum(collect_losses(model, target).values())


def gradients(model, *args, run=None):
    loss = total(model if run is None else run, *args)
    loss.backward()
    full = [p.grad if not hasattr(p.grad, "full_tensor") else p.grad.full_tensor() for p in model.parameters()]
    model.zero_grad()
    return [loss.detach(), *full]


WRAPS = {
    "tensor": (alone, None),
    "tuple": (lambda h: (h[..., 0], h), None),
    "list of two": (lambda h: [h.cos(), h], 1),
    "named tuple": (lambda h: Pair(3, h), None),
    "dictionary": (lambda h: {"states": h, "other": h.sin()}, "states"),
    "dataclass": (lambda h: Output(h, 3), "states"),
}
