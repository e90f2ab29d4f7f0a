"""Modules over ranks: ``fully_shard`` on any part, since all are called; data and tensor parallel."""

from __future__ import annotations

import pytest
import torch
from module_cases import CASES, flat, make_module, make_tensors
from sharded import kinds_of_parts, lone_mesh, shard
from tolerances import FP64
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from pgm_fast.nn import MLP, ModalPartitioner, PgMBlock, VariationalLayer


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    with lone_mesh(tmp_path_factory.mktemp("store")) as mesh:
        yield mesh


def gradients(module, run):
    outputs = flat(run(module))
    sum(x.sin().sum() for x in outputs).backward()
    found = [p.grad for p in module.parameters()]
    return outputs, [g if g is None or not hasattr(g, "full_tensor") else g.full_tensor() for g in found]


def assert_sharding_changes_nothing(make, run, mesh):
    want = gradients(make(), run)
    for kind in kinds_of_parts(make()):
        torch.testing.assert_close(gradients(shard(make(), kind, mesh), run), want, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("cross_modal")])
@pytest.mark.works("FSDP2", "layers")
def test_a_part_can_be_sharded_by_itself(name, mesh):
    tensors = make_tensors(name, 5)
    assert_sharding_changes_nothing(lambda: make_module(name), lambda module: module(*tensors), mesh)


OTHER_WAYS = {
    "run": (
        lambda: PgMBlock({"text": 6, "audio": 6}, condition_on_others=True),
        lambda block, x: block.run({"text": x, "audio": x.cos()}, shares=True, alone=True),
    ),
    "moments": (lambda: VariationalLayer(6, 4, layers=2), lambda layer, x: layer.moments(x)),
    "shares": (lambda: ModalPartitioner(6), lambda partitioner, x: partitioner.shares(x)),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_so_can_what_is_entered_by_another_method(way, mesh):
    kind, enter = OTHER_WAYS[way]
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def make():
        torch.manual_seed(0)
        return kind().double()

    assert_sharding_changes_nothing(make, lambda module: tuple(torch.utils._pytree.tree_leaves(enter(module, x))), mesh)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.works("DDP", "layers")
def test_ddp_changes_nothing(options, mesh):
    tensors = make_tensors("PgMBlock", 5)
    want = gradients(make_module("PgMBlock"), lambda module: module(*tensors))
    module = make_module("PgMBlock")
    ddp = DistributedDataParallel(module, **options)
    torch.testing.assert_close(gradients(module, lambda _: ddp(*tensors)), want, rtol=FP64, atol=FP64)


@pytest.mark.works("tensor parallel", "layers")
def test_layers_of_learners_can_be_split_over_ranks(mesh):
    tensors = make_tensors("PgMBlock", 5)
    want = gradients(make_module("PgMBlock"), lambda module: module(*tensors))
    module, plan = make_module("PgMBlock"), {}
    for name, part in module.named_modules():
        if isinstance(part, MLP):
            plan |= {f"{name}.0": ColwiseParallel(), f"{name}.3": RowwiseParallel()}
    parallelize_module(module, mesh, plan)
    torch.testing.assert_close(gradients(module, lambda module: module(*tensors)), want, rtol=FP64, atol=FP64)
