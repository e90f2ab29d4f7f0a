"""What sharding asks of a module, without other processes: a mesh of this one alone, or of two that never talk."""

from __future__ import annotations

from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


@contextmanager
def lone_mesh(folder):
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@contextmanager
def second_of_two():
    """The mesh as the second of two ranks sees it. No test may be the first: torch keeps what it learns of a mesh."""
    dist.init_process_group("fake", rank=1, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def kinds_of_parts(module):
    """Classes of what is called inside of ``module`` and has parameters; None for the whole alone."""
    parts = [part for part in module.modules() if part is not module and list(part.parameters())]
    return [None, *{type(part) for part in parts if not isinstance(part, (nn.ModuleDict, nn.ModuleList))}]


def shard(module, kind, mesh):
    """``fully_shard`` on every part of this class, then on the whole."""
    for part in list(module.modules()):
        if part is not module and type(part) is kind:
            fully_shard(part, mesh=mesh)
    return fully_shard(module, mesh=mesh)
