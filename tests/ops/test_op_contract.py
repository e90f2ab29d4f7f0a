"""What every op promises, whatever it computes: one property per test, over all ops and the backends and devices
here."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, TEMPERATURES, forward_and_gradients, outputs
from rounding import assert_errs_like_torch
from tolerances import DRAWS, DRAWS_OF_WIDE_ROWS, FINITE_DIFFERENCE, FP64

import pgm_fast
from pgm_fast import backends

by_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@pytest.fixture(autouse=True)
def _backend(request):
    if "case" in request.fixturenames:
        with pgm_fast.backend(request.getfixturevalue("case").backend):
            yield
    else:
        yield


def test_a_gpu_takes_part():
    """Says in the report that every case above and below ran on the CPU only, where that is so."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: every op and backend is held to its contract on the CPU only")
    assert {case.device for case in CASES} == {"cpu", "cuda"}
    assert {"partition", "partition_dual"} <= {case.name for case in CASES if case.backend == "triton"}


def test_what_was_compiled_takes_part():
    """Says in the report which kernels of this machine the cases here leave out, and why."""
    served = backends.implementations("cpu")
    left_out = {f"{op}: {by['native']}" for op, by in served.items() if by.get("native") is not None}
    if left_out:
        pytest.skip("; ".join(sorted(left_out)))


SIZES = [(0, 3), (1, 1), (5, 7), (3, 64)]


@by_op
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_plain_formula_in_fp64(case, temperature):
    case.skip_unless_served(torch.float64)
    kwargs = {"temperature": temperature} if case.has_temperature else {}
    for rows, d in SIZES:
        tensors = case.tensors(rows, d, torch.float64)
        got, got_gradients = forward_and_gradients(case.run, tensors, **kwargs)
        want, want_gradients = forward_and_gradients(case.plain, tensors, **kwargs)
        for a, b in zip(got + got_gradients, want + want_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


@by_op
def test_gradients_equal_finite_differences(case):
    case.skip_unless_served(torch.float64)
    tensors = [x.requires_grad_() for x in case.tensors(3, 5, torch.float64)]
    assert torch.autograd.gradcheck(case.run, tensors, rtol=0, atol=FINITE_DIFFERENCE)


@by_op
@pytest.mark.parametrize(
    ("d", "dtype"),
    [
        (96, torch.float32),
        (96, torch.float16),
        (96, torch.bfloat16),
        (5000, torch.float32),
        # rounded when they are written, at any width alike
        *(pytest.param(5000, half, marks=pytest.mark.slow) for half in (torch.float16, torch.bfloat16)),
    ],
    ids=str,
)
def test_error_is_at_most_twice_that_of_plain_torch(case, dtype, d):
    case.skip_unless_served(dtype)
    count = DRAWS if d < 1000 else DRAWS_OF_WIDE_ROWS
    draws = [_results(case, case.tensors(17, d, dtype, seed=seed)) for seed in range(count)]
    assert_errs_like_torch(draws, dtype)


def _results(case, tensors):
    """Of the op, of plain torch and of fp64. At relu's kink a rounding changes a gradient by its whole value: only
    outputs are compared there."""
    by_each = ((case.run, tensors), (case.plain, tensors), (case.plain, [x.double() for x in tensors]))
    results = [forward_and_gradients(*arguments) for arguments in by_each]
    return [made + gradients if case.smooth else made for made, gradients in results]


@by_op
def test_passes_opcheck(case):
    called = []
    with _recording(called):
        case.run(*[x.requires_grad_() for x in case.tensors(4, 6)])
    assert called
    for op, args in called:
        torch.library.opcheck(op, args, rtol=0, atol=0)


@by_op
def test_compiles_without_a_graph_break_to_the_same_numbers(case):
    tensors = case.tensors(4, 6)
    compiled = torch.compile(case.run, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        sum(forward_and_gradients(compiled, tensors), []),
        sum(forward_and_gradients(case.run, tensors), []),
        strict=True,
    ):
        assert torch.equal(a, b)


@by_op
@pytest.mark.parametrize("variant", ["strided", "expanded"])
def test_strides_do_not_matter(case, variant):
    """Transposed, sliced and expanded inputs give the numbers of plain torch's contiguous ones, to torch's error: a
    product of such operands may be summed in another order."""
    draws = []
    for seed in range(DRAWS):
        tensors = case.tensors(4, 6, seed=seed)
        if variant == "strided":
            inputs = [_transposed(x) for x in tensors]
        else:
            inputs = [x[:1].expand_as(x) if batched else x for x, batched in zip(tensors, case.batch_axis, strict=True)]
        dense = [x.contiguous() for x in inputs]
        exact = case.plain(*[x.double() for x in dense])
        draws.append(tuple(map(outputs, (case.run(*inputs), case.plain(*dense), exact))))
    assert_errs_like_torch(draws, torch.float32)


@by_op
def test_expanded_incoming_gradients_are_read_and_left_alone(case):
    leaves = [x.requires_grad_() for x in case.tensors(4, 6)]
    result = outputs(case.run(*leaves))
    ones = [x.new_ones(()).expand(x.shape) for x in result]
    expanded = torch.autograd.grad(result, leaves, ones, retain_graph=True)
    contiguous = [torch.ones_like(x) for x in result]
    dense = torch.autograd.grad(result, leaves, contiguous)
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))
    assert all(torch.equal(x, torch.ones_like(x)) for x in contiguous)


@by_op
def test_inputs_are_never_written_and_two_calls_agree_bitwise(case):
    tensors = case.tensors(5, 9)
    before = [x.clone() for x in tensors]
    first, second = (sum(forward_and_gradients(case.run, tensors), []) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@by_op
def test_wide_rows_stay_finite(case):
    result, gradients = forward_and_gradients(case.run, case.tensors(2, 8192, scale=0.1))
    assert all(x.isfinite().all() for x in result + gradients)


@by_op
def test_autocast_gives_finite_outputs_and_gradients_in_the_parameters_dtype(case):
    case.skip_unless_served(torch.bfloat16)
    leaves = [x.requires_grad_() for x in case.tensors(4, 6)]
    with torch.autocast(case.device, torch.bfloat16):
        result = outputs(case.run(*leaves))
    products = case.name.startswith(("partitioned_linear", "grouped_partitioned_linear", "reconstruction", "mlp"))
    assert result[0].dtype == (torch.bfloat16 if products else torch.float32)
    gradients = torch.autograd.grad(sum(x.float().sum() for x in result), leaves)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("case", [c for c in CASES if c.has_temperature], ids=lambda case: case.id)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, torch.tensor(1.0), True], ids=repr)
def test_a_wrong_temperature_is_named(case, value):
    with pytest.raises((ValueError, TypeError), match="temperature must be"):
        case.run(*case.tensors(2, 4), temperature=value)


@by_op
def test_wrong_tensors_are_named(case):
    tensors = case.tensors(3, 4)
    for position in range(len(tensors)):
        empty = tensors[position].new_empty(2, 0)
        for wrong, error in ((tensors[position].long(), TypeError), (3.0, TypeError), (empty, ValueError)):
            arguments = [*tensors[:position], wrong, *tensors[position + 1 :]]
            with pytest.raises(error, match=r"must (have|be)|last dimension"):
                case.run(*arguments)
        if position:
            arguments = [*tensors[:position], tensors[position].to("meta"), *tensors[position + 1 :]]
            with pytest.raises(ValueError, match="is on meta"):
                case.run(*arguments)


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() if x.ndim == 2 else torch.stack([x, x], -1)[..., 0]


class _recording(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes every call of one of this project's ops."""

    def __init__(self, called):
        super().__init__()
        self.called = called

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "pgm_fast":
            self.called.append(
                (function, tuple(x.detach().clone() if isinstance(x, torch.Tensor) else x for x in args))
            )
        return function(*args, **(kwargs or {}))


@by_op
def test_a_second_derivative_is_refused_rather_than_zero(case):
    leaves = [x.requires_grad_() for x in case.tensors(3, 4)]
    result = outputs(case.run(*leaves))
    first = torch.autograd.grad(sum(x.square().sum() for x in result), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
