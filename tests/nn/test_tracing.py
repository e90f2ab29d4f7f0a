"""A graph that was recorded of a module at one batch size serves the others, whoever recorded it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tolerances import FP64
from torch import nn
from torch._dynamo.testing import CompileCounter

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
RECORDED = 8
SERVED = (11, 2, 600)
NAMES = ("text", "sound", "picture")


class _Call(nn.Module):
    """``f`` of a module, or of nothing, as a module of tensors."""

    def __init__(self, f, module=None):
        super().__init__()
        self.f, self.module = f, module

    def forward(self, *tensors):
        return self.f(*tensors) if self.module is None else self.f(self.module, *tensors)


def _call_block(block, *tensors):
    """All of the block's outputs for representations, presence of the last modality and row weights, as given."""
    representations = dict(zip(NAMES, tensors, strict=False))
    presence = {NAMES[2]: tensors[3] > 0} if len(tensors) > 3 else None
    weight = tensors[4].exp() if len(tensors) > 4 else None
    made, losses = block(representations, presence, weight)
    return tuple(made.values()) + tuple(losses.values())


def _block(**kwargs):
    return _Call(_call_block, PgMBlock(dict.fromkeys(NAMES, D), **kwargs))


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
        lambda: _Call(lambda decoder, u, target: decoder(u, None, target), UniPairedDecoder(D, 3, 0)),
        [(3,), VECTORS],
    ),
    "VariationalLayer": (lambda: VariationalLayer(D, 3, layers=2), [VECTORS]),
    "InteractionGate": (lambda: _Call(_lists, InteractionGate(D, 3)), [VECTORS] * 3),
    "PairedInteraction": (lambda: _Call(_lists, PairedInteraction(3, D, heads=2)), [VECTORS] * 3),
    "PgMBlock": (_block, [VECTORS] * 3),
    "PgMBlock of steps": (_block, [SEQUENCES] * 3),
    "PgMBlock dual": (partial(_block, gate="dual"), [VECTORS] * 3),
    "PgMBlock sigmoid": (partial(_block, gate="sigmoid"), [VECTORS] * 3),
    "PgMBlock of one learner": (partial(_block, uni_learner=False), [VECTORS] * 3),
    "PgMBlock without decoders": (partial(_block, decoder=False), [VECTORS] * 3),
    "PgMBlock conditioned": (partial(_block, condition_on_others=True), [VECTORS] * 3),
    "PgMBlock with absent modalities": (_block, [VECTORS] * 3 + [()]),
    "PgMBlock with weights": (_block, [VECTORS] * 3 + [(), ()]),
    "cross_modal_info_nce": (lambda: _Call(_info_nce), [VECTORS] * 3),
    "cross_modal_duc": (lambda: _Call(_duc), [VECTORS] * 3),
}
by_module = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _module(name):
    torch.manual_seed(0)
    return CASES[name][0]().double().eval()


def _tensors(name, rows):
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in CASES[name][1])


def _flat(result):
    return [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]


def _assert_serves(program, module, name):
    for rows in (1, *SERVED):
        tensors = _tensors(name, rows)
        for got, want in zip(_flat(program(*tensors)), _flat(module(*tensors)), strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=FP64, atol=FP64)


# torch compiles no GRU
@pytest.mark.parametrize("name", [name for name in CASES if name != "GRUEncoder"])
@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
def test_one_graph_serves_every_batch_size(name, dynamic):
    counter = CompileCounter()
    compiled = torch.compile(_module(name).train(), fullgraph=True, dynamic=dynamic, backend=counter)
    for rows in SERVED:
        compiled(*_tensors(name, rows))
    # the first of torch's graphs is for the first size alone, where nobody said otherwise
    assert counter.frame_count == (1 if dynamic else 2)


@by_module
def test_exports_with_a_dynamic_batch(name):
    module, tensors = _module(name), _tensors(name, RECORDED)
    program = torch.export.export(
        _Call(module), tensors, dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in tensors),)
    )
    assert not [node for node in program.graph.nodes if "pgm_fast" in str(node.target)]
    _assert_serves(program.module(), module, name)


@by_module
def test_a_trace_serves_other_batch_sizes(name):
    module = _module(name)
    traced = torch.jit.trace(_Call(module), _tensors(name, RECORDED), check_trace=False)
    _assert_serves(traced, module, name)


def test_a_gate_whose_temperature_is_annealed_compiles_twice():
    counter, block = CompileCounter(), _module("PgMBlock")
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    tensors = _tensors("PgMBlock", RECORDED)
    for step in range(5):
        for part in block.module.modules():
            if hasattr(part, "temperature"):
                part.temperature = 0.9 - 0.1 * step
        for got, want in zip(compiled(*tensors), block(*tensors), strict=True):
            torch.testing.assert_close(got, want, rtol=FP64, atol=FP64)
    assert counter.frame_count == 2
