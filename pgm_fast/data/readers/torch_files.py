"""Files that ``torch.save`` wrote: a dict of tensors, or one of splits that hold such dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..archives import UNREADABLE, require_room
from ..raw import Problem, Raw, RefusedData, Request
from .generic import arrays_of, interpret
from .parts import has_parts, interpret_parts

__all__ = ["load_torch", "read_pt"]


def load_torch(path: Path) -> Mapping:
    """The dict in a ``.pt`` file, through ``torch.load(weights_only=True)``. Raises RefusedData for anything else."""
    import pickle

    import torch

    try:
        require_room(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it uses {found.group(1)}" if found else str(error).splitlines()[0]
        message = (
            f"refused: {what}; a dict of tensors, strings and lists of them is read (torch.load with weights_only=True)"
        )
        raise RefusedData(Problem(str(path), "", None, message)) from None
    except UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), "it is empty")
        message = f"not a readable torch file ({reason}); truncated? Write it again"
        raise RefusedData(Problem(str(path), "", None, message)) from None
    if not isinstance(content, Mapping):
        message = f"holds a {type(content).__name__}; a dict of key -> tensor is expected"
        raise RefusedData(Problem(str(path), "", None, message))
    return content


def read_pt(path: Path, request: Request) -> Raw:
    content = load_torch(path)
    if has_parts(content):
        return interpret_parts(path, content, request)
    return interpret(path, arrays_of(path, content, request), request, known=list(map(str, content)))
