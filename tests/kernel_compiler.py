"""What a call would launch on a GPU, compiled and taken apart on a machine that has none.

A wrapper of ``kernels/`` is called on tensors of the meta device while launches are recorded instead of made; each is
then compiled as Triton's own launcher would have it, for any architecture, with the assembler that Triton carries.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from unittest import mock

import torch
import triton
from pgm_fast.kernels import duc_loss_gathered
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.language import target_info
from triton.runtime.jit import JITFunction

__all__ = ["SHARED", "Compiled", "Launch", "compile_launch", "record_launches"]

# Compute capabilities that kernels are compiled for, and the bytes of shared memory that a block may ask for; sm_86 and
# sm_120 have as little as sm_89.
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel and all that Triton specialises it on."""

    kernel: JITFunction
    grid: tuple[int, ...]
    signature: tuple[tuple[str, str | tuple], ...]
    constants: tuple[tuple[tuple[int, ...], object], ...]
    aligned: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Compiled:
    """A kernel's PTX and binary, and the shared memory (bytes) that a block asks for when it is launched."""

    ptx: str
    cubin: bytes
    shared: int

    @cached_property
    def usage(self) -> str:
        """What the assembler says that it takes."""
        return self._cuobjdump("-res-usage")

    @cached_property
    def sass(self) -> str:
        return self._cuobjdump("-sass")

    def _cuobjdump(self, option: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def _usage(self, name: str) -> int:
        return int(re.search(rf"\b{name}:(\d+)", self.usage).group(1))

    @cached_property
    def registers(self) -> int:
        return self._usage("REG")

    @cached_property
    def stack(self) -> int:
        return self._usage("STACK") + self._usage("LOCAL")

    @cached_property
    def warnings(self) -> list[str]:
        """What the assembler says of products that it makes one after the other, codes C75xx: wgmma of sm_90 alone."""
        if "wgmma" not in self.ptx:
            return []
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "-o", os.devnull]
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(self.ptx)
            file.flush()
            done = subprocess.run([*command, file.name], capture_output=True, text=True, check=True)
        assert "registers" in done.stderr
        return re.findall(r"\(C75\d\d\).*", done.stderr)

    def count(self, instruction: str) -> int:
        """Number of machine instructions that match a regular expression."""
        return len(re.findall(rf"\b{instruction}", self.sass))


def record_launches(call: Callable[[], object], capability: int = 90) -> list[Launch]:
    """The kernel launches that ``call`` would make on ``sm_<capability>``, none of them made."""
    found = []

    def run(kernel, *args, grid, warmup, **kwargs):
        found.append(_launch(kernel, args, grid, kwargs))

    in_shared = mock.patch.object(duc_loss_gathered, "operands_in_shared", lambda _: capability in (90, 100))
    with mock.patch.object(JITFunction, "run", run), in_shared:
        call()
    return found


def _launch(kernel: JITFunction, args: tuple, grid, kwargs: dict) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: kwargs.pop(name) for name in list(kwargs) if name in kernel.arg_names}
    values |= {p.name: p.default for p in kernel.params if p.name not in values and p.has_default}
    signature, constants, aligned = [], [], []
    for position, parameter in enumerate(kernel.params):
        value = values.pop(parameter.name)
        kind = _kind(parameter, value)
        signature.append((parameter.name, kind))
        # a tuple is specialised entry by entry, whatever is asked for
        entries, free = {(position,): (kind, value)}, parameter.do_not_specialize
        if isinstance(kind, tuple):
            entries, free = {(position, i): entry for i, entry in enumerate(zip(kind, value, strict=True))}, False
        for path, (entry_kind, entry) in entries.items():
            if entry_kind == "constexpr":
                constants.append((path, entry))
            elif not free and _is_aligned(parameter, entry):
                aligned.append(path)
    assert not values, f"{kernel.__name__} takes no {sorted(values)}"
    if callable(grid):
        grid = grid({kernel.arg_names[path[0]]: value for path, value in constants} | kwargs)
    return Launch(kernel, grid, *map(tuple, (signature, constants, aligned, sorted(kwargs.items()))))


def _kind(parameter, value, free: bool | None = None) -> str | tuple:
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, tuple):
        return tuple(_kind(parameter, entry, free=False) for entry in value)
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        if value == 1 and not (parameter.do_not_specialize if free is None else free):
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    assert isinstance(value, float), f"{parameter.name} is a {type(value).__name__}"
    return "fp32"


def _is_aligned(parameter, value) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment
    return isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0


@cache
def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compiles for ``sm_<capability>``."""
    source = ASTSource(
        launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={path: [["tt.divisibility", 16]] for path in launch.aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    # kernels may ask what they are compiled for, and are told of the device at hand
    with mock.patch.object(target_info, "current_target", lambda: target):
        made = triton.compile(source, target=target, options=dict(launch.options))
    return Compiled(made.asm["ptx"], made.asm["cubin"], made.metadata.shared)
