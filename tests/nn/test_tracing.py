"""A graph that was recorded of a module at one batch size serves the others, whoever recorded it."""

from __future__ import annotations

import pytest
import torch
from module_cases import CASES, Call, flat, make_module, make_tensors
from tolerances import FP64
from torch._dynamo.testing import CompileCounter

RECORDED = 8
SERVED = (11, 2, 600)
# made of what is recorded of other cases, too
ALIKE = {f"PgMBlock {kind}" for kind in ("dual", "sigmoid", "of one learner", "without decoders", "with weights")}


def by_module(*left_out):
    names = [name for name in CASES if name not in left_out]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in names]
    )


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _assert_serves(program, module, name):
    for rows in (1, *SERVED):
        tensors = make_tensors(name, rows)
        for got, want in zip(flat(program(*tensors)), flat(module(*tensors)), strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=FP64, atol=FP64)


@by_module("GRUEncoder")  # torch compiles none
@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)], ids=["automatic", "dynamic"])
@pytest.mark.works("torch.compile", "layers")
def test_one_graph_serves_every_batch_size(name, dynamic):
    counter = CompileCounter()
    compiled = torch.compile(make_module(name).train(), fullgraph=True, dynamic=dynamic, backend=counter)
    for rows in SERVED:
        compiled(*make_tensors(name, rows))
    # the first of torch's graphs is for the first size alone, where nobody said otherwise
    assert counter.frame_count == (1 if dynamic else 2)


@by_module()
@pytest.mark.works("torch.export", "layers")
def test_exports_with_a_dynamic_batch(name):
    module, tensors = make_module(name), make_tensors(name, RECORDED)
    program = torch.export.export(
        Call(module), tensors, dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in tensors),)
    )
    assert not [node for node in program.graph.nodes if "pgm_fast" in str(node.target)]
    _assert_serves(program.module(), module, name)


@by_module()
@pytest.mark.works("torch.jit.trace", "layers")
def test_a_trace_serves_other_batch_sizes(name):
    module = make_module(name)
    traced = torch.jit.trace(Call(module), make_tensors(name, RECORDED), check_trace=False)
    _assert_serves(traced, module, name)


@by_module("cross_modal_duc")  # its dims are numbers, not shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.works("meta device", "layers")
def test_shapes_are_known_without_memory(name, dtype):
    module, tensors = make_module(name).to(dtype), [x.to(dtype) for x in make_tensors(name, RECORDED)]
    found = flat(module.to("meta")(*(x.to("meta") for x in tensors)))
    module.to_empty(device="cpu")
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in flat(module(*tensors))]
    assert all(x.is_meta for x in found)


@pytest.mark.works("ONNX", "layers")
def test_an_onnx_program_has_onnx_operators_only():
    pytest.importorskip("onnxscript")
    name = "PgMBlock"
    module, tensors = make_module(name), make_tensors(name, RECORDED)
    program = torch.onnx.export(
        Call(module), tensors, dynamo=True, dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in tensors),)
    )
    assert {node.domain for node in program.model_proto.graph.node} == {""}


@pytest.mark.works("torch.compile", "layers")
def test_a_gate_whose_temperature_is_annealed_compiles_twice():
    counter, block = CompileCounter(), make_module("PgMBlock")
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    tensors = make_tensors("PgMBlock", RECORDED)
    for step in range(5):
        for part in block.module.modules():
            if hasattr(part, "temperature"):
                part.temperature = 0.9 - 0.1 * step
        for got, want in zip(compiled(*tensors), block(*tensors), strict=True):
            torch.testing.assert_close(got, want, rtol=FP64, atol=FP64)
    assert counter.frame_count == 2
