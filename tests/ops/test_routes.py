"""Which ops torch.compile records as plain formulas: those that were measured to be faster so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from op_cases import BOUNDARIES, CASES, forward_and_gradients, outputs
from rounding import assert_errs_like_torch
from tolerances import DRAWS, FP64

import pgm_fast
from pgm_fast.ops import routes
from pgm_fast.train.run.json_files import read_json

# one case per op and variant: what is recorded does not depend on the backend
RECORDED = [case for case in CASES if case.backend == "torch" and case.device == "cpu"]
# more than the rows that a vector of Inductor's code takes at once, and a row longer than one
ROWS, WIDTH = 32, 64
# those of a gate with a number that may change from call to call: a temperature, or the width of a boundary
GATES = [
    replace(case, run=lambda *x, temperature, run=BOUNDARIES[case.name]: run(*x, width=temperature))
    if case.name in BOUNDARIES
    else case
    for case in RECORDED
    if case.smooth and "partition" in case.name
]
ANNEALED = (0.9, 0.7, 0.5, 0.3)
by_gate = pytest.mark.parametrize("case", GATES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    routes.choose(None)
    torch._dynamo.reset()


def op_of(case):
    """The op that a case calls, as it is registered."""
    name = case.name.partition("-")[0]
    return "partition_dual_share" if case.name == "partition_share-dual" else name


def calls_recorded(run, tensors, numbers=({},), **options) -> list[bool]:
    """For each graph that torch.compile records of calls of ``run`` with these numbers, whether it calls an op of this
    project."""
    found = []

    def keep(module, _):
        found.append(any("pgm_fast" in str(node.target) for node in module.graph.nodes))
        return module.forward

    compiled = torch.compile(run, fullgraph=True, backend=keep, **options)
    for named in numbers:
        compiled(*tensors, **named)
    return found


def is_a_call(run, tensors) -> bool:
    (found,) = calls_recorded(run, tensors, dynamic=False)
    return found


def computed(run):
    """``run`` of tensors that are computed in the same program, so that its backward pass may make them anew: what
    Inductor does then is what it does wrong."""
    return lambda *tensors, **numbers: run(*[x * x.sigmoid() for x in tensors], **numbers)


by_route = pytest.mark.parametrize("route", routes.ROUTES, ids=lambda route: route.op)


def test_the_table_is_what_the_result_file_says(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import recorded

    content = read_json(repository / routes.RESULTS)
    assert recorded.table(content["rows"]) in (repository / "pgm_fast/ops/routes.py").read_text(encoding="utf-8")
    assert {route.op for route in routes.ROUTES} <= {op_of(case) for case in RECORDED} - routes.ALWAYS_CALLS


@by_route
def test_a_formula_is_recorded_where_it_was_measured_and_nowhere_else(route):
    case = next(case for case in RECORDED if op_of(case) == route.op)
    assert not is_a_call(case.run, case.tensors(route.rows, 4, route.dtype))
    assert is_a_call(case.run, case.tensors(route.rows, 4, torch.float64))
    assert is_a_call(case.run, case.tensors(route.rows + 1, 4, route.dtype))
    with pgm_fast.backend("torch"):
        assert is_a_call(case.run, case.tensors(route.rows, 4, route.dtype))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_what_inductor_compiles_wrong_is_always_a_call(case):
    routes.choose("formula")
    assert is_a_call(case.run, case.tensors(4, 6)) == (op_of(case) in routes.ALWAYS_CALLS)


@pytest.mark.slow
def test_gradients_of_compiled_code_are_those_of_eager():
    """All ops in one program of Inductor's, which takes a minute to make. Their arguments are computed in it, so that
    its backward pass may make them anew: what Inductor does then is what it does wrong."""
    recorded = [case for case in RECORDED if case.smooth]

    def program(attribute):
        def every(*tensors):
            made, left = [], [x * x.sigmoid() for x in tensors]
            for case in recorded:
                own = [left.pop(0) for _ in case.batch_axis]
                made.extend(outputs(getattr(case, attribute)(*own)))
            return tuple(made)

        return every

    compiled, plain, draws = torch.compile(program("run"), fullgraph=True, dynamic=False), program("plain"), []
    for seed in range(DRAWS):
        tensors = [x for case in recorded for x in case.tensors(ROWS, WIDTH, seed=seed)]
        wide = [x.double() for x in tensors]
        results = [forward_and_gradients(f, x) for f, x in ((compiled, tensors), (plain, tensors), (plain, wide))]
        draws.append(tuple(made + gradients for made, gradients in results))
    assert_errs_like_torch(draws, torch.float32)


@pytest.mark.parametrize(
    "case", [case for case in GATES if op_of(case) in routes.ALWAYS_CALLS], ids=lambda case: case.name
)
def test_a_gate_whose_number_changes_is_a_call_in_two_graphs(case):
    numbers = [{"temperature": value} for value in ANNEALED]
    assert calls_recorded(case.run, case.tensors(4, 6), numbers) == [True, True]


def test_a_number_that_changes_is_one_inside_of_a_transform_too():
    h, z = next(case for case in GATES if case.name == "partition").tensors(4, 6, torch.float64)

    def slope(z, temperature):
        return torch.func.grad(lambda z: pgm_fast.ops.partition(h, z, temperature)[1].square().sum())(z)

    compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")
    for value in ANNEALED:
        torch.testing.assert_close(compiled(z, value), slope(z, value), rtol=FP64, atol=FP64)


@pytest.mark.slow
@by_gate
def test_gradients_of_compiled_code_follow_a_number_that_changes(case):
    """A graph that serves every number has wrong ones where the gate is left to Inductor."""
    program = computed(case.run)
    compiled, draws = torch.compile(program, fullgraph=True), []
    for call in range(DRAWS):
        tensors = case.tensors(ROWS, WIDTH, seed=call)
        wide = [x.double() for x in tensors]
        results = [
            forward_and_gradients(f, x, temperature=ANNEALED[call % len(ANNEALED)])
            for f, x in ((compiled, tensors), (program, tensors), (program, wide))
        ]
        draws.append(tuple(made + gradients for made, gradients in results))
    assert_errs_like_torch(draws, torch.float32)
