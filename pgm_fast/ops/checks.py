"""Argument checks shared by the ops. Messages name the argument, what it got and what it takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "autocast_dtype",
    "check_features",
    "check_fraction",
    "check_gate",
    "check_labels",
    "check_positive",
    "check_same_dtype",
    "check_temperature",
    "check_tensor",
]

_STRIDED = torch.strided


def check_tensor(
    name: str, value: object, *, shape: tuple[int | None, ...] | None = None, like: Tensor | None = None
) -> None:
    """Checks that ``value`` is a dense floating-point tensor of this shape (None: any size) on the device of ``like``.

    Raises:
        TypeError: not a tensor, not floating point, or not dense (sparse, nested).
        ValueError: wrong shape or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a floating-point tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if value.layout is not _STRIDED:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}; make it dense, by to_dense() if sparse")
    if like is not None and value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device}, but the first tensor is on {like.device}; move them to one device"
        )
    if shape is not None and not _fits(value.shape, shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(value.shape)}")


def _fits(shape: torch.Size, wanted: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for got, want in zip(shape, wanted):  # noqa: B905 (the lengths are equal; a loop, because each call pays for it)
        if want is not None and got != want:
            return False
    return True


def check_labels(labels: object, like: Tensor) -> None:
    """Checks int64 ``[rows]`` class numbers of the rows of ``like``, on its device; their range is not looked at.

    Raises:
        TypeError: not int64.
        ValueError: wrong shape or device.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(f"labels must be an int64 tensor, got {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != like.shape[:1] or labels.device != like.device:
        raise ValueError(
            f"labels must have shape [{like.shape[0]}] on {like.device}, got {list(labels.shape)} on {labels.device}"
        )


def check_same_dtype(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """Checks that every other tensor, where there is one, has the dtype of the first.

    Raises:
        TypeError: one has another.
    """
    dtype = first.dtype
    for name, x in others.items():
        if x is not None and x.dtype != dtype:
            raise TypeError(f"{name} must have the dtype of {first_name} ({dtype}), got {x.dtype}")


def check_gate(name: str, z: Tensor, h: Tensor, h_name: str = "h") -> None:
    """Checks gate logits ``z[..., d/c]`` against ``h[..., d]``: same leading sizes, d a multiple of the gates.

    Raises:
        TypeError, ValueError: see :func:`check_tensor`.
    """
    check_tensor(name, z, like=h)
    if z.shape == h.shape:
        return
    if z.ndim != h.ndim or z.shape[:-1] != h.shape[:-1]:
        raise ValueError(
            f"{name} must have the leading sizes of {h_name} {list(h.shape[:-1])}, got shape {list(z.shape)}"
        )
    if z.shape[-1] == 0 or h.shape[-1] % z.shape[-1] != 0:
        raise ValueError(
            f"{name} must have as many entries in its last dimension as {h_name} ({h.shape[-1]}) or a divisor of it "
            f"(one gate per chunk of neighbours), got {z.shape[-1]}"
        )


def check_features(name: str, h: Tensor) -> None:
    """Checks ``h[..., d]`` with d >= 1."""
    check_tensor(name, h)
    if h.ndim == 0 or h.shape[-1] == 0:
        raise ValueError(f"{name} must have shape [..., d] with d >= 1, got {list(h.shape)}")


def check_temperature(value: float) -> float:
    """:func:`check_positive` of a temperature."""
    return check_positive("temperature", value)


def check_positive(name: str, value: float) -> float:
    """Returns ``value`` as a float.

    Raises:
        TypeError: not a Python number (a tensor would force a synchronisation).
        ValueError: not finite or not positive.
    """
    _check_number(name, value)
    # a comparison, unlike math.isfinite, may be recorded for a number that changes between the calls of a graph
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    return float(value) if isinstance(value, int) else value


def check_fraction(name: str, value: float) -> float:
    """Returns ``value`` as a float.

    Raises:
        TypeError: not a Python number.
        ValueError: not in [0, 1).
    """
    _check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be >= 0 and < 1, got {value}")
    return float(value) if isinstance(value, int) else value


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{name} must be a Python float, got {type(value).__name__}")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of matrix products on this tensor's device, None outside of autocast and for fp64, as torch has it."""
    device_type = x.device.type
    # torch knows no autocast of the meta device, not even that it is off
    if x.dtype == torch.float64 or device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
