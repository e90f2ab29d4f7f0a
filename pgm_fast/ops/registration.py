"""How an op reaches torch: schema, dispatch over backends, fake. The only place in the project that touches
torch.library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends
from ..backends import host
from .flops import offer_formulas, offer_later
from .routes import takes_formula
from .tracing import as_tensor, in_forward_mode, in_transform, is_constant, records_formula

__all__ = ["connect_host", "define", "define_autograd", "define_backward", "schemas"]

schemas: dict[str, str] = {}  # of every op that is defined
_references: dict[str, Callable] = {}

# torch.func's transforms (grad, jvp, vmap and those made of them), batches of gradients and torch.jit.trace get the
# reference of an op, made of torch's own operators, which they all know.
_BY_REFERENCE = ("FuncTorchDynamicLayerFrontMode", "Batched", "Tracer")


class _Library(torch.library.Library):
    """Derivatives that :func:`torch.library.register_autograd` puts here are of reverse mode: what carries one of
    forward mode, which they would drop without a word, gets the reference too."""

    def impl(self, op_name, fn, dispatch_key="", **kwargs):
        derived = _forward_mode_first(_references[op_name], fn) if dispatch_key == "Autograd" else fn
        super().impl(op_name, derived, dispatch_key, **kwargs)


def _forward_mode_first(reference: Callable, kernel: Callable) -> Callable:
    def derived(keyset, *args):
        return reference(*args) if in_forward_mode() and any(map(_has_tangent, args)) else kernel(keyset, *args)

    return derived


def _has_tangent(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_tangent, value))
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


_library = _Library("pgm_fast", "DEF")


def define(schema: str, reference: Callable, fake: Callable):
    """Defines ``pgm_fast::<name>`` from its schema and returns a function that calls it.

    It may also call the reference itself, see :func:`~pgm_fast.ops.tracing.records_formula` and
    :func:`~pgm_fast.ops.routes.takes_formula`. ``pgm_fast::<name>.varying`` is the same op with tensors ``[]`` for its
    floats: a graph calls that where one changes from call to call, because a float in a graph is a constant.

    Args:
        schema: ``name(Tensor h, ...) -> ...``; the first argument is the tensor, or the list of tensors, whose device
            and dtype choose the backend.
        reference: the plain PyTorch computation, registered as the ``torch`` backend.
        fake: shapes and dtypes of the outputs from those of the inputs.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    schemas[name], _references[name] = schema, reference
    backends.register(name, "torch", lambda: reference)

    def dispatch(*args):
        return backends.run(name, args)

    # explicit autograd: one body for every device, and autograd (registered apart) still sees the op as a whole
    _library.impl(name, dispatch, "CompositeExplicitAutograd")
    compiled = host.load_or_none()
    if compiled is not None:
        compiled.set_python(name, dispatch, reference)
    torch.library.register_fake(f"pgm_fast::{name}", fake, lib=_library)
    for key in _BY_REFERENCE:
        _library.impl(name, reference, key)
    overloads = getattr(torch.ops.pgm_fast, name)
    op = overloads.default
    floats = [k for k, argument in enumerate(op._schema.arguments) if str(argument.type) == "float"]
    varying = _define_varying(schema, op, floats, reference, fake) if floats else None
    offer_later(overloads, _with_numbers(reference, floats, lambda x: 1.0))

    def call(*args):
        if torch.compiler.is_compiling():
            if varying is not None and any(isinstance(args[k], Tensor) for k in floats):
                return varying(*args)
            if records_formula() or takes_formula(name, args):
                return reference(*args)
            if not all(map(is_constant, args)):
                if varying is None or in_transform():
                    return reference(*args)
                return varying(*(as_tensor(x) if k in floats else x for k, x in enumerate(args)))
            return op(*args)
        offer_formulas()
        return op(*args)

    call.__name__ = call.__qualname__ = name
    return call


def _define_varying(schema: str, op: Callable, floats: list[int], reference: Callable, fake: Callable) -> Callable:
    name, _, rest = schema.partition("(")
    full = f"{name}.varying"
    # a graph of CUDA's would keep the number that it was captured with
    _library.define(f"{full}({rest.replace('float ', 'Tensor ')}", tags=(torch.Tag.cudagraph_unsafe,))
    _library.impl(full, _with_numbers(op, floats), "CompositeExplicitAutograd")
    torch.library.register_fake(f"pgm_fast::{full}", fake, lib=_library)
    _references[full] = _with_numbers(reference, floats)
    for key in _BY_REFERENCE:
        _library.impl(full, _references[full], key)
    return getattr(torch.ops.pgm_fast, name).varying


def _with_numbers(run: Callable, floats: list[int], number: Callable[[Tensor], float] = Tensor.item) -> Callable:
    """``run``, with a number for each tensor in the place of a float."""

    def with_numbers(*args):
        return run(*(number(x) if k in floats and isinstance(x, Tensor) else x for k, x in enumerate(args)))

    return with_numbers


def define_backward(schema: str, reference: Callable, fake: Callable):
    """As :func:`define`, for an op that computes gradients: asking for gradients of those is an error, not zero."""
    call = define(schema, reference, fake)
    name = call.__name__.removesuffix("_backward")

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"pgm_fast.ops.{name} cannot be differentiated twice by torch.autograd.grad and backward(); where a second "
            "derivative is needed (a gradient penalty, say), take the first with torch.func.grad or torch.func.vjp"
        )

    define_autograd(call, None, refuse)
    return call


def define_autograd(call: Callable, setup_context: Callable | None, backward: Callable) -> None:
    """Gives the op that ``call`` calls, of :func:`define`, its derivative; ``backward`` calls another op, so that it is
    one node to ``torch.compile`` too."""
    for name in (call.__name__, f"{call.__name__}.varying"):
        if name in _references:
            torch.library.register_autograd(f"pgm_fast::{name}", backward, setup_context=setup_context, lib=_library)


def connect_host() -> None:
    """Puts the compiled host path in front of the ops defined so far, where there is one built for their schemas."""
    host.connect(schemas)
