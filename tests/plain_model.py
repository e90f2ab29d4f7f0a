"""The model that the methods share, written plainly from its parameters, for numbers that no method's code takes part
in."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import METHODS, ModelConfig, build
from pgm_fast.train.step.optimizers import build_optimizer

WIDTHS = {"a": 5, "b": 3}
CLASSES = 3


def make(name, modalities=WIDTHS, model=None, **config):
    """A method in fp64, without dropout."""
    torch.manual_seed(0)
    spec = DataSpec({m: ModalitySpec(d) for m, d in modalities.items()}, "classification", CLASSES)
    model = model or ModelConfig(dim=6, hidden=7, heads=1, dropout=0.0)
    return build(name, spec, model, METHODS[name].config_class(**config)).double()


def draw(rows=9, modalities=WIDTHS, seed=0):
    """A batch in fp64 in which nothing is missing, row weights included."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        inputs={m: torch.randn(rows, d, dtype=torch.float64, generator=generator) for m, d in modalities.items()},
        weight=torch.full((rows,), 1 / rows, dtype=torch.float64),
        index=torch.arange(rows),
        labels=torch.randint(CLASSES, (rows,), generator=generator),
    )


def copies(method: nn.Module) -> dict[str, torch.Tensor]:
    """name -> a copy of the parameter that has gradients of its own."""
    return {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}


def linear(p, prefix, x):
    return x @ p[f"{prefix}.weight"].T + p[f"{prefix}.bias"]


def mlp(p, prefix, x):
    """Linear, exact GELU, linear."""
    hidden = linear(p, f"{prefix}.0", x)
    return linear(p, f"{prefix}.3", 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))


def encode(p, x, prefix="encoders"):
    """modality -> encoding of zero mean and unit variance."""
    h = {m: mlp(p, f"{prefix}.{m}.net", v) for m, v in x.items()}
    centred = {m: v - v.mean(-1, keepdim=True) for m, v in h.items()}
    return {m: v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() for m, v in centred.items()}


def alone(h, modality):
    """The concatenation with the others zero."""
    return torch.cat([v if m == modality else torch.zeros_like(v) for m, v in h.items()], -1)


def cross_entropy(logits, labels):
    return F.nll_loss(logits - logits.exp().sum(-1, keepdim=True).log(), labels)


def gradients(p, loss):
    """name -> gradient, zeros where the loss does not reach."""
    found = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(p.items(), found, strict=True)}


def descend(p, g, rate, only=None):
    """p - rate * g, of the parameters whose name begins with one of ``only``."""
    chosen = {n for n in p if only is None or n.startswith(tuple(only))}
    return {n: (x - rate * g[n] * (n in chosen)).detach().requires_grad_() for n, x in p.items()}


def steps(method, stage, batches, rate):
    """Train a stage by plain gradient descent, as the loop does."""
    method.begin_stage(stage)
    method.train()
    method.requires_grad_(True)
    trained = [p for group in method.stages(rate)[stage].groups for p in group["params"]]
    for parameter in method.parameters():
        parameter.requires_grad_(any(parameter is p for p in trained))
    optimizer = torch.optim.SGD(trained, rate)
    for number, batch in enumerate(batches):
        method.begin_epoch(stage, 0, lambda: iter([]))
        for turn in range(method.turns):
            method.begin_turn(turn)
            optimizer.zero_grad()
            method.backward(method(batch).losses["total"])
            method.after_backward(number)
            optimizer.step()


class Momentum:
    """SGD as the released recipes have it: momentum 0.9 and a weight decay in the gradient, a buffer per parameter."""

    def __init__(self, rate, decay):
        self.rate, self.decay, self.held = rate, decay, {}

    def step(self, p, g, only):
        """The parameters after a step of those whose name begins with one of ``only``."""
        for n in [n for n in p if n.startswith(tuple(only))]:
            gradient = g[n] + self.decay * p[n].detach()
            self.held[n] = 0.9 * self.held[n] + gradient if n in self.held else gradient
            p = {**p, n: (p[n].detach() - self.rate * self.held[n]).requires_grad_()}
        return p


def steps_with_momentum(method, stage, rate, decay):
    """Begin a stage; a function that trains it on batches of one epoch, as the loop does."""
    method.begin_stage(stage)
    method.requires_grad_(True)
    groups = method.stages(rate)[stage].groups
    trained = {id(p) for group in groups for p in group["params"]}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    optimizer = build_optimizer("sgd", groups, decay)

    def train(epoch, batches):
        method.eval()
        with torch.no_grad():
            method.begin_epoch(stage, epoch, lambda: iter(batches))
        method.train()
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            optimizer.zero_grad()
            method(batch).losses["total"].backward()
            optimizer.step()

    return train
