"""How an op reaches torch: schema, dispatch over backends, fake. The only place in the project that touches
torch.library."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import backends, host

__all__ = ["connect_host", "define", "define_autograd", "define_backward", "schemas"]

_library = torch.library.Library("pgm_fast", "DEF")
schemas: dict[str, str] = {}  # of every op that is defined


def define(schema: str, reference: Callable, fake: Callable):
    """Defines ``pgm_fast::<name>`` from its schema and returns the op.

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
    return getattr(torch.ops.pgm_fast, name).default


def define_backward(schema: str, reference: Callable, fake: Callable):
    """As :func:`define`, for an op that computes gradients: asking for gradients of those is an error, not zero."""
    op = define(schema, reference, fake)
    name = schema.partition("_backward(")[0]

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"pgm_fast.ops.{name} cannot be differentiated twice; write this part in plain PyTorch where a second "
            "derivative is needed (a gradient penalty, say)"
        )

    torch.library.register_autograd(op, refuse, lib=_library)
    return op


def define_autograd(op, setup_context: Callable, backward: Callable) -> None:
    """Gives ``op`` its derivative; ``backward`` calls another op, so that it is one node to ``torch.compile`` too."""
    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_library)


def connect_host() -> None:
    """Puts the compiled host path in front of the ops defined so far, where there is one built for their schemas."""
    host.connect(schemas)
