"""What can compute an op here, and which of those a call takes.

Every op has the ``torch`` backend: the reference, plain PyTorch, every device and dtype. ``native`` (compiled C++ on
the CPU, compiled CUDA on its devices) and ``triton`` (CUDA devices) register per op in ``pgm_fast/ops``; not every op
has such kernels. The choice depends on device, dtype and shape only:

- automatic (the default): the first of ``native``, ``triton``, ``torch`` that serves the call. Falling back to
  ``torch`` where a kernel exists but cannot serve is said once, at INFO. A kernel that the device cannot start
  is left out from then on, which is said as a warning;
- explicit, ``with pgm_fast.backend("torch"):`` or ``PGM_FAST_BACKEND=torch``: that one, or :class:`BackendError` with
  the reason and the names that can. The choice is global to the process, because backward runs on autograd's own
  threads: keep backward inside the context, and enter it outside of ``torch.compile``-d code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import BackendError, LaunchError
from . import host

__all__ = [
    "BACKENDS",
    "backend",
    "check_op",
    "chosen",
    "explain",
    "implementations",
    "is_automatic",
    "left_out",
    "register",
    "run",
    "select",
    "set_backend",
]

BACKENDS = ("native", "triton", "torch")

_log = logging.getLogger("pgm_fast.backends")


@dataclass(frozen=True)
class Implementation:
    """One way to compute one op.

    Attributes:
        load: called at first use, returns the function; may raise ImportError or OSError, whose text is then the
            reason.
        devices: device types served, None for all.
        dtypes: dtypes of the op's first tensor served, None for all.
        refuse: given the op's arguments, a reason not to serve this call, or None. Looks at shapes and dtypes only.
        outdone: given the op's arguments, whether the next backend with a kernel should be faster at these shapes; the
            automatic choice then takes that one where it serves the call.
    """

    load: Callable[[], Callable]
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    refuse: Callable[..., str | None] | None = None
    outdone: Callable[..., bool] | None = None


@dataclass(frozen=True)
class _Candidate:
    backend: str
    run: Callable
    refuse: Callable[..., str | None] | None
    outdone: Callable[..., bool] | None


# op -> backend -> devices -> implementation
_implementations: dict[str, dict[str, dict[frozenset[str] | None, Implementation]]] = {}
_candidates: dict[tuple[str, str, torch.dtype], tuple[_Candidate, ...]] = {}
_reasons: dict[tuple[str, str, torch.dtype], dict[str, str]] = {}
_said: set[tuple[str, str]] = set()
# (op, device type, dtype, backend) -> why its kernel cannot be started
_left_out: dict[tuple[str, str, torch.dtype, str], str] = {}
_explicit: str | None = os.environ.get("PGM_FAST_BACKEND") or None


def register(
    op: str,
    name: str,
    load: Callable[[], Callable],
    *,
    devices: tuple[str, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    refuse: Callable[..., str | None] | None = None,
    outdone: Callable[..., bool] | None = None,
) -> None:
    """Says that backend ``name`` computes ``op`` on these devices, in place of what it had for the same ones. Called by
    ``pgm_fast/ops`` only. See :class:`Implementation`."""
    _check_name(name)
    served = frozenset(devices) if devices else None
    _implementations.setdefault(op, {}).setdefault(name, {})[served] = Implementation(
        load, served, frozenset(dtypes) if dtypes else None, refuse, outdone
    )
    _forget()


def select(op: str, args: tuple) -> Callable:
    """The function that computes ``op`` on these arguments; the first one is a tensor or a list of tensors.

    Raises:
        BackendError: the explicit choice cannot serve.
    """
    return _select(_key(op, args), args).run


def run(op: str, args: tuple):
    """What the function of :func:`select` returns. Where its kernel cannot be started, that of the next backend.

    Raises:
        BackendError: the explicit choice cannot serve.
    """
    key = _key(op, args)
    while True:
        candidate = _select(key, args)
        try:
            return candidate.run(*args)
        except LaunchError as error:
            reason = f"cannot start its kernel: {error}"
        _left_out[(*key, candidate.backend)] = reason
        _forget()
        if _explicit is None:
            # every one, for there is one per dtype at most
            _log.warning("%s, %s: backend %s %s; falling back", op, key[2], candidate.backend, reason)


def left_out() -> dict[tuple[str, str, torch.dtype, str], str]:
    """(op, device type, dtype, backend) -> why its kernel could not be started in this process. For ``doctor``."""
    return dict(_left_out)


def _key(op: str, args: tuple) -> tuple[str, str, torch.dtype]:
    first = args[0]
    if isinstance(first, (list, tuple)):
        first = first[0]
    return op, first.device.type, first.dtype


def _select(key: tuple[str, str, torch.dtype], args: tuple) -> _Candidate:
    op = key[0]
    candidates = _candidates.get(key)
    if candidates is None:
        candidates = _find_candidates(key)
    refused = {}
    taken = _take(candidates, args, refused)
    if taken is None:
        raise BackendError(_refusal(key, refused if _explicit is not None and refused else _reasons[key]))
    if refused:
        for name, reason in refused.items():
            _say_once(op, name, reason)
    return taken


def _take(candidates: tuple[_Candidate, ...], args: tuple, refused: dict[str, str]) -> _Candidate | None:
    """The first of the candidates that serves a call, or None; why those before it do not goes into ``refused``."""
    slower = None
    for candidate in candidates:
        reason = None if candidate.refuse is None else candidate.refuse(*args)
        if reason is None:
            if slower is not None and candidate.backend == "torch":
                refused.pop(slower.backend)
                return slower
            if _explicit is not None or candidate.outdone is None or not candidate.outdone(*args):
                return candidate
            slower, reason = candidate, "should be slower at these shapes than the next kernel"
        refused[candidate.backend] = reason
    return None


def check_op(op: str) -> None:
    """Raises BackendError where there is no such op."""
    if op not in _implementations:
        raise BackendError(f"there is no op {op!r}; the ops are {', '.join(sorted(_implementations))}")


def explain(
    op: str, device_type: str = "cpu", dtype: torch.dtype = torch.float32, args: tuple | None = None
) -> tuple[str | None, dict[str, str]]:
    """What a call of ``op`` takes, and why. For ``doctor``.

    Args:
        op: its name, with ``_backward`` for its backward.
        device_type, dtype: of the op's first tensor.
        args: its arguments, on any device, for nothing is computed; None where shapes are not asked for.

    Returns:
        The name of the backend, None where the call raises; and for every backend, in the order of choice, why it is
        taken or not.

    Raises:
        BackendError: there is no such op.
    """
    check_op(op)
    key = (op, device_type, dtype)
    candidates = _candidates.get(key)
    if candidates is None:
        candidates = _find_candidates(key)
    refused: dict[str, str] = {}
    taken = next(iter(candidates), None) if args is None else _take(candidates, args, refused)
    refused |= _reasons[key]
    if taken is not None:
        refused[taken.backend] = "serves the call" if args is not None else "serves this device and dtype"
    beyond = (
        "is not asked: another one serves" if _explicit is None else f"is not asked: {_explicit} was chosen by name"
    )
    return taken.backend if taken else None, {name: refused.get(name, beyond) for name in BACKENDS}


def chosen(op: str, device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Name of the backend that a call of ``op`` takes for a device type and dtype, shapes aside."""
    key = (op, device_type, dtype)
    candidates = _candidates.get(key) or _find_candidates(key)
    if not candidates:
        raise BackendError(_refusal(key, _reasons[key]))
    return candidates[0].backend


def implementations(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, dict[str, str | None]]:
    """op -> backend -> None where it serves this device type and dtype, else the reason why not. For ``doctor``."""
    return {op: {name: _reason((op, device_type, dtype), name) for name in BACKENDS} for op in _implementations}


def set_backend(name: str | None) -> None:
    """Chooses a backend for the whole process; None gives the choice back to the automatic rule."""
    global _explicit
    if name is not None:
        _check_name(name)
    _explicit = name
    _forget()


def is_automatic() -> bool:
    """Whether nobody has chosen a backend by name."""
    return _explicit is None


class backend:
    """Context manager: ops inside use the named backend or raise :class:`BackendError`.

    Example:
        >>> with pgm_fast.backend("torch"):
        ...     loss = block(representations)
        ...     loss.backward()
    """

    def __init__(self, name: str | None):
        if name is not None:
            _check_name(name)
        self.name = name

    def __enter__(self) -> backend:
        self.previous = _explicit
        set_backend(self.name)
        return self

    def __exit__(self, *exc_info) -> None:
        set_backend(self.previous)


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; the backends are {', '.join(BACKENDS)}")


def _forget() -> None:
    _candidates.clear()
    _reasons.clear()
    compiled = host.load_or_none()
    if compiled is not None:
        compiled.forget()


def _load(key: tuple[str, str, torch.dtype], name: str) -> _Candidate | str:
    """What of this backend computes the op there, or why nothing does."""
    op, device_type, dtype = key
    by_devices = _implementations[op].get(name)
    if by_devices is None:
        return f"has no {op} kernel in this release"
    implementation = _serving(by_devices, device_type)
    if implementation is None:
        served = sorted(device for devices in by_devices for device in devices or ())
        return f"serves {', '.join(served)} tensors, not {device_type}"
    if implementation.dtypes is not None and dtype not in implementation.dtypes:
        return f"does not serve {dtype}"
    if (*key, name) in _left_out:
        return _left_out[(*key, name)]
    try:
        return _Candidate(name, implementation.load(), implementation.refuse, implementation.outdone)
    except ModuleNotFoundError as error:
        of_ours = (error.name or "").startswith("pgm_fast.")
        return "is not built here; pgm-fast doctor says what that takes" if of_ours else str(error)
    except (ImportError, OSError) as error:
        return str(error)


def _reason(key: tuple[str, str, torch.dtype], name: str) -> str | None:
    loaded = _load(key, name)
    return loaded if isinstance(loaded, str) else None


def _serving(by_devices: dict[frozenset[str] | None, Implementation], device_type: str) -> Implementation | None:
    return next((found for served, found in by_devices.items() if served is None or device_type in served), None)


def _find_candidates(key: tuple[str, str, torch.dtype]) -> tuple[_Candidate, ...]:
    op = key[0]
    if _explicit is not None:
        _check_name(_explicit)
    found, reasons = [], {}
    for name in BACKENDS if _explicit is None else (_explicit,):
        candidate = _load(key, name)
        if isinstance(candidate, _Candidate):
            found.append(candidate)
            continue
        reasons[name] = candidate
        if name in _implementations[op] and (*key, name) not in _left_out:
            _say_once(op, name, candidate)
    _candidates[key], _reasons[key] = tuple(found), reasons
    compiled = host.load_or_none()
    if compiled is not None and found and found[0].backend == "native" and key[1] == "cpu":
        # from the next call on, and until something changes, without asking here
        compiled.serve(op, key[2])
    return _candidates[key]


def _say_once(op: str, name: str, reason: str) -> None:
    if (op, name) not in _said:
        _said.add((op, name))
        _log.info("%s: backend %s %s; falling back", op, name, reason)


def _refusal(key: tuple[str, str, torch.dtype], reasons: dict[str, str]) -> str:
    op, device_type, dtype = key
    why = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    able = [name for name in BACKENDS if name not in reasons and _reason(key, name) is None]
    return f"{op} on {device_type} {dtype}: {why}. Backends that can: {', '.join(able) or 'none'}"
