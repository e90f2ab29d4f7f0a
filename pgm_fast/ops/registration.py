"""How an op reaches torch: schema, dispatch over backends, fake. The only place in the project that touches
torch.library."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import backends, host
from .tracing import records_formula

__all__ = ["connect_host", "define", "define_autograd", "define_backward", "schemas"]

_library = torch.library.Library("pgm_fast", "DEF")
schemas: dict[str, str] = {}  # of every op that is defined


def define(schema: str, reference: Callable, fake: Callable):
    """Defines ``pgm_fast::<name>`` from its schema and returns a function that calls it.

    It may also call the reference itself, see :func:`~pgm_fast.ops.tracing.records_formula`.

    Args:
        schema: ``name(Tensor h, ...) -> ...``; the first argument is the tensor, or the list of tensors, whose device
            and dtype choose the backend.
        reference: the plain PyTorch computation, registered as the ``torch`` backend.
        fake: shapes and dtypes of the outputs from those of the inputs.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    schemas[name] = schema
    backends.register(name, "torch", lambda: reference)

    def dispatch(*args):
        return backends.select(name, args)(*args)

    # explicit autograd: one body for every device, and autograd (registered apart) still sees the op as a whole
    _library.impl(name, dispatch, "CompositeExplicitAutograd")
    compiled = host.load_or_none()
    if compiled is not None:
        compiled.set_dispatch(name, dispatch)
    torch.library.register_fake(f"pgm_fast::{name}", fake, lib=_library)
    op = getattr(torch.ops.pgm_fast, name).default

    def call(*args):
        return reference(*args) if records_formula(args) else op(*args)

    call.__name__ = call.__qualname__ = name
    return call


def define_backward(schema: str, reference: Callable, fake: Callable):
    """As :func:`define`, for an op that computes gradients: asking for gradients of those is an error, not zero."""
    call = define(schema, reference, fake)
    name = call.__name__.removesuffix("_backward")

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"pgm_fast.ops.{name} cannot be differentiated twice; write this part in plain PyTorch where a second "
            "derivative is needed (a gradient penalty, say)"
        )

    define_autograd(call, None, refuse)
    return call


def define_autograd(call: Callable, setup_context: Callable | None, backward: Callable) -> None:
    """Gives the op that ``call`` calls, of :func:`define`, its derivative; ``backward`` calls another op, so that it is
    one node to ``torch.compile`` too."""
    name = f"pgm_fast::{call.__name__}"
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_library)


def connect_host() -> None:
    """Puts the compiled host path in front of the ops defined so far, where there is one built for their schemas."""
    host.connect(schemas)
