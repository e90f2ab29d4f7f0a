"""The modules as functions of tensors whose first dimension is the batch, for properties that all of them have."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pgm_fast.nn import (
    MLP,
    GRUEncoder,
    InteractionGate,
    MLPEncoder,
    ModalPartitioner,
    PairedInteraction,
    PartitionedLinear,
    PgMBlock,
    TransformerEncoder,
    UniPairedDecoder,
    VariationalLayer,
)
from pgm_fast.nn.contrastive import cross_modal_info_nce
from pgm_fast.nn.distillation import cross_modal_duc

D = 6
NAMES = ("text", "sound", "picture")


class Call(nn.Module):
    """``f`` of a module, or of nothing, as a module of tensors."""

    def __init__(self, f, module=None):
        super().__init__()
        self.f, self.module = f, module

    def forward(self, *tensors):
        return self.f(*tensors) if self.module is None else self.f(self.module, *tensors)


@torch.no_grad()
def awaken(module):
    """The module, with parameters that start as zeros moved away from them as training does."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    return module


def _call_block(block, *tensors):
    """All of the block's outputs for representations, presence of the last modality and row weights, as given."""
    representations = dict(zip(NAMES, tensors, strict=False))
    presence = {NAMES[2]: tensors[3] > 0} if len(tensors) > 3 else None
    weight = tensors[4].exp() if len(tensors) > 4 else None
    made, losses = block(representations, presence, weight)
    return tuple(made.values()) + tuple(losses.values())


def _block(**kwargs):
    return Call(_call_block, PgMBlock(dict.fromkeys(NAMES, D), **kwargs))


def _lists(module, *tensors):
    return module(list(tensors))


def _duc(*tensors):
    dims = {(a, b): torch.arange(2) for a in NAMES for b in NAMES if a != b}
    return cross_modal_duc(dict(zip(NAMES, tensors, strict=True)), dims, 1.0)


def _info_nce(*tensors):
    return cross_modal_info_nce(dict(zip(NAMES, tensors, strict=True)), 0.1)


VECTORS, SEQUENCES = (D,), (5, D)
CASES = {
    "MLP": (lambda: MLP(D, 5, 4), [VECTORS]),
    "MLPEncoder": (lambda: MLPEncoder(D, 4), [VECTORS]),
    "MLPEncoder of sequences": (lambda: MLPEncoder(D, 4), [SEQUENCES]),
    "GRUEncoder": (lambda: GRUEncoder(D, 4), [SEQUENCES]),
    "TransformerEncoder": (lambda: TransformerEncoder(D, 4, hidden=8), [SEQUENCES]),
    "PartitionedLinear": (lambda: PartitionedLinear(D, 3, 4), [VECTORS] * 2),
    **{f"ModalPartitioner {gate}": (partial(ModalPartitioner, D, gate), [VECTORS]) for gate in ("single", "dual")},
    "UniPairedDecoder": (lambda: UniPairedDecoder(D, 3, 4), [(3,), (4,), VECTORS]),
    "UniPairedDecoder of one part": (
        lambda: Call(lambda decoder, u, target: decoder(u, None, target), UniPairedDecoder(D, 3, 0)),
        [(3,), VECTORS],
    ),
    "VariationalLayer": (lambda: VariationalLayer(D, 3, layers=2), [VECTORS]),
    "InteractionGate": (lambda: Call(_lists, InteractionGate(D, 3)), [VECTORS] * 3),
    "PairedInteraction": (lambda: Call(_lists, PairedInteraction(3, D, heads=2)), [VECTORS] * 3),
    "PgMBlock": (_block, [VECTORS] * 3),
    "PgMBlock of steps": (_block, [SEQUENCES] * 3),
    "PgMBlock dual": (partial(_block, gate="dual"), [VECTORS] * 3),
    "PgMBlock sigmoid": (partial(_block, gate="sigmoid"), [VECTORS] * 3),
    "PgMBlock of one learner": (partial(_block, uni_learner=False), [VECTORS] * 3),
    "PgMBlock without decoders": (partial(_block, decoder=False), [VECTORS] * 3),
    "PgMBlock conditioned": (partial(_block, condition_on_others=True), [VECTORS] * 3),
    "PgMBlock with absent modalities": (_block, [VECTORS] * 3 + [()]),
    "PgMBlock with weights": (_block, [VECTORS] * 3 + [(), ()]),
    "cross_modal_info_nce": (lambda: Call(_info_nce), [VECTORS] * 3),
    "cross_modal_duc": (lambda: Call(_duc), [VECTORS] * 3),
}


def make_module(name, seed=0):
    """In fp64 and evaluation, its parameters drawn from ``seed``."""
    torch.manual_seed(seed)
    return CASES[name][0]().double().eval()


def make_tensors(name, rows):
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in CASES[name][1])


def flat(result):
    return [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]
