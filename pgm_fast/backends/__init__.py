"""Who computes an op: the choice (:mod:`.selection`), and what there is to choose from: compiled kernels
(:mod:`.native`), those of Triton (:mod:`.triton`), and the way to the first without a Python frame (:mod:`.host`).
The reference, which always serves, stands with each op in ``pgm_fast/ops``."""

from __future__ import annotations

from .selection import (
    BACKENDS,
    backend,
    check_op,
    chosen,
    explain,
    implementations,
    is_automatic,
    left_out,
    register,
    run,
    select,
    set_backend,
)

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
