"""Which modality and which part of the model a parameter belongs to, so that each can have its own learning rate."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from ..errors import ConfigError

__all__ = ["PARTS", "SHARED", "has_mark", "mark_part", "modality_dict", "parameter_parts", "unmark"]

PARTS = ("encoder", "partitioner", "uni", "paired", "decoder", "head")
SHARED = "shared"
_MARK = "_pgm_fast_part"

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def mark_part(module: AnyModule, modality: str | None = None, part: str | None = None) -> AnyModule:
    """Says that the parameters of ``module``, and of everything inside it, belong to a modality and a part.

    Marks are inherited by submodules and the nearest one wins, for modality and part separately: a module marked
    ``part="uni"`` inside a module marked ``modality="text"`` is ``text.uni``. Modules of this package that know their
    part (partitioner, learners, decoder, block) carry marks already; in a model of your own, mark the rest::

        mark_part(model.text_encoder, "text", "encoder")
        mark_part(model.classifier, "shared", "head")
        optimizer = torch.optim.AdamW(multi_rate_groups(model, 1e-3, {"*": {"encoder": 0.1, "head": 1.0}}))

    Args:
        module: any module; returned as it is.
        modality: a modality's name, or :data:`SHARED` for what serves all of them; None leaves it to the enclosing
            module.
        part: one of :data:`PARTS`, or a name of your own such as ``"fusion"``; None leaves it to the enclosing module.

    Raises:
        ConfigError: a part that is no name, or nearly that of another.
    """
    if part is not None and part not in PARTS:
        near = difflib.get_close_matches(part, PARTS, n=1, cutoff=0.85)
        if near or not part.isidentifier():
            nearly = f", nearly {near[0]!r}" if near else ""
            raise ConfigError(
                f"part is {part!r}{nearly}; must be one of {', '.join(PARTS)}, or a name of your own unlike these"
            )
    before = getattr(module, _MARK, (None, None))
    setattr(module, _MARK, (modality if modality is not None else before[0], part if part is not None else before[1]))
    return module


def has_mark(module: nn.Module) -> bool:
    """Whether ``module`` was given to :func:`mark_part` itself."""
    return _MARK in vars(module)


def unmark(module: nn.Module) -> None:
    """Takes its own mark from ``module``."""
    vars(module).pop(_MARK, None)


def parameter_parts(model: nn.Module) -> dict[str, tuple[str | None, str | None]]:
    """Name of each parameter -> (modality, part), None where nothing says; shared parameters once, where first met."""
    found: dict[str, tuple[str | None, str | None]] = {}
    seen: set[int] = set()

    def walk(module: nn.Module, prefix: str, modality: str | None, part: str | None) -> None:
        own_modality, own_part = _marks(module)
        modality = own_modality if own_modality is not None else modality
        part = own_part if own_part is not None else part
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[prefix + name] = (modality, part)
        for name, child in module.named_children():
            walk(child, f"{prefix}{name}.", modality, part)

    walk(model, "", None, None)
    return found


def _marks(module: nn.Module) -> tuple[str | None, str | None]:
    """Its own, or those of the layer that it wraps under the name that PEFT's adapters give it."""
    wrapped = getattr(module, "base_layer", None)
    return getattr(module, _MARK, None) or getattr(wrapped, _MARK, (None, None))


def modality_dict(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """A ``ModuleDict`` by modality.

    Raises:
        ConfigError: a name that a module's attribute cannot have.
    """
    result = nn.ModuleDict()
    for name, module in modules.items():
        if not isinstance(name, str) or not name or "." in name or hasattr(result, name):
            raise ConfigError(
                f"modality name {name!r} cannot name a module (no string, empty, holds a dot, or reserved): rename it"
            )
        result[name] = module
    return result
