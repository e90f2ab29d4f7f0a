"""One case per way in which a Triton kernel is launched: a call on tensors of the meta device, and what its machine
code must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A call to compile.

    Attributes:
        name: kernel file, shape and dtype.
        call: calls wrappers of ``kernels/`` on meta tensors.
        wide: loads and stores 16 bytes per thread.
        matrix: multiplies on the matrix units (wgmma on sm_90).
        double: computes in fp64.
    """

    name: str
    call: Callable[[], object]
    wide: bool = False
    matrix: bool = False
    double: bool = False


CASES: list[Case] = []
