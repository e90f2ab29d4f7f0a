"""Files that ``torch.save`` wrote: a dict of tensors and numpy arrays, or one of splits that hold such dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..archives import UNREADABLE, require_room
from ..raw import Problem, Raw, RefusedData, Request
from .generic import arrays_of, interpret
from .parts import has_parts, interpret_parts
from .pickles import ARRAY_GLOBALS, Refused

__all__ = ["load_torch", "read_pt"]


def load_torch(path: Path) -> Mapping:
    """The dict in a ``.pt`` file, through ``torch.load(weights_only=True)`` and, for numpy arrays, :mod:`.pickles`.

    Raises RefusedData for anything else.
    """
    import pickle

    import torch

    try:
        require_room(path)
        with torch.serialization.safe_globals(ARRAY_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (Refused, pickle.UnpicklingError) as error:
        what = _refused_part(error)
        message = f"refused: {what}; a dict of tensors, arrays, strings and lists of them is read"
        raise RefusedData(Problem(str(path), "", None, message)) from None
    except (AttributeError, *UNREADABLE) as error:
        reason = next(iter(str(error).splitlines()), "it is empty")
        message = f"not a readable torch file ({reason}); truncated? Write it again"
        raise RefusedData(Problem(str(path), "", None, message)) from None
    if not isinstance(content, Mapping):
        message = f"holds a {type(content).__name__}; a dict of key -> tensor is expected"
        raise RefusedData(Problem(str(path), "", None, message))
    return content


def _refused_part(error: Exception) -> str:
    """What of a file was refused: torch's own text would advise to run the code in it."""
    if isinstance(error, Refused):
        return f"it uses {error}"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it uses {found.group(1)}"
    if found := re.search(r"Unsupported operand \d+", str(error)):
        return f"{found.group().lower()}, of another pickle protocol than torch.save's own (pickle_protocol=2)"
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return found.group(1) if found else "torch cannot read it so"


def read_pt(path: Path, request: Request) -> Raw:
    content = load_torch(path)
    if has_parts(content):
        return interpret_parts(path, content, request)
    return interpret(path, arrays_of(path, content, request), request, known=list(map(str, content)))
