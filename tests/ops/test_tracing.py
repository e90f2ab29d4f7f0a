"""A graph that was recorded of an op at one batch size serves the others, whoever recorded it."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, forward_and_gradients, outputs
from tolerances import FP64
from torch._dynamo.testing import CompileCounter

# one case per op and variant: what is recorded does not depend on the backend
TRACED = [case for case in CASES if case.backend == "torch" and case.device == "cpu"]
by_op = pytest.mark.parametrize("case", TRACED, ids=lambda case: case.name)

RECORDED = 8
SERVED = (11, 2, 33, 600)  # 600: more rows than anything that is decided by a number of rows asks for
WIDTH = 6


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class _Module(torch.nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, *tensors):
        return outputs(self.run(*tensors))


def _assert_serves(program, case):
    for rows in (1, *SERVED):
        tensors = case.tensors(rows, WIDTH, torch.float64)
        for got, want in zip(program(*tensors), outputs(case.run(*tensors)), strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=FP64, atol=FP64)


@by_op
@pytest.mark.parametrize(
    ("dynamic", "learns"),
    [pytest.param(None, True, id="automatic"), pytest.param(True, False, id="dynamic", marks=pytest.mark.slow)],
)
def test_one_graph_serves_every_batch_size(case, dynamic, learns):
    counter = CompileCounter()
    compiled = torch.compile(case.run, fullgraph=True, dynamic=dynamic, backend=counter)
    for rows in SERVED:
        compiled(*[x.requires_grad_(learns) for x in case.tensors(rows, WIDTH)])
    # the first of torch's graphs is for the first size alone, where nobody said otherwise
    assert counter.frame_count == (1 if dynamic else 2)


@pytest.mark.parametrize("case", [case for case in TRACED if case.has_temperature], ids=lambda case: case.name)
def test_a_temperature_that_is_annealed_compiles_twice(case):
    counter = CompileCounter()
    compiled = torch.compile(case.run, fullgraph=True, backend=counter)
    tensors = case.tensors(4, WIDTH, torch.float64)
    for step in range(5):
        temperature = 0.9 - 0.1 * step
        (got, got_gradients), (want, want_gradients) = (
            forward_and_gradients(f, tensors, temperature=temperature) for f in (compiled, case.run)
        )
        for a, b in zip(got + got_gradients, want + want_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)
    assert counter.frame_count == 2


@by_op
def test_exports_with_a_dynamic_batch_to_torchs_own_operators(case):
    batched = [{0: torch.export.Dim.DYNAMIC} if batched else {} for batched in case.batch_axis]
    program = torch.export.export(
        _Module(case.run), tuple(case.tensors(RECORDED, WIDTH, torch.float64)), dynamic_shapes=(tuple(batched),)
    )
    assert not [node for node in program.graph.nodes if "pgm_fast" in str(node.target)]
    _assert_serves(program.module(), case)


@by_op
def test_a_trace_serves_other_batch_sizes_with_torchs_own_operators(case):
    traced = torch.jit.trace(_Module(case.run), tuple(case.tensors(RECORDED, WIDTH, torch.float64)), check_trace=False)
    assert not [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("pgm_fast")]
    _assert_serves(traced, case)
