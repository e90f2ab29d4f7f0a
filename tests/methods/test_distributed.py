"""Two ranks with half of the rows each train as one process with all of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tolerances import FP64

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import METHODS, ModelConfig, build

torch.set_num_threads(1)
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
result = {}
for name, task in (
    ("pgm", "classification"),
    ("pgm", "retrieval"),
    ("joint", "retrieval"),
    ("ensemble", "regression"),
    ("dimml", "classification"),
    ("ogm", "classification"),
    ("umt", "regression"),
    ("mla", "classification"),
    ("mmpareto", "classification"),
):
    torch.manual_seed(0)
    widths = {"a": ModalitySpec(3), "b": ModalitySpec(4), "c": ModalitySpec(2)}
    spec = DataSpec(widths, task, 0 if task == "retrieval" else 2)
    method = build(name, spec, ModelConfig(dim=8, hidden=8, dropout=0.0), METHODS[name].config_class()).double()
    generator = torch.Generator().manual_seed(1)
    inputs = {m: torch.randn(8, s.dim, dtype=torch.float64, generator=generator) for m, s in widths.items()}
    targets = torch.randn(8, 2, generator=generator)
    labels = {"classification": torch.arange(8) % 2, "regression": targets, "retrieval": None}[task]
    present = torch.arange(8) % 3 != 0
    weight = torch.tensor([1.0] * 7 + [0.0]) / 7
    here = weight * present
    part = slice(rank * 8 // world, (rank + 1) * 8 // world)
    batch = Batch(
        inputs={m: x[part] for m, x in inputs.items()},
        weight=world * weight[part],
        index=torch.arange(8)[part],
        labels=None if labels is None else labels[part],
        presence={"b": present[part]},
        modality_weight={"b": world * here[part] / here.sum()},
    )
    if name == "dimml":  # after its warm-up, every modality with dimensions to hand over
        method.effective[:] = torch.arange(3).unsqueeze(1) == torch.arange(8) % 4
        method.measured.fill_(True)
        method.begin_epoch(0, method.config.warmup, lambda: iter([]))
        method._look()
        method.fusion_head.requires_grad_(False)
    if name == "umt":
        method.begin_stage(1)
        for part in (method.teachers, method.uni_heads):
            part.requires_grad_(False)
    unused = method.turns > 1
    wrapped = DistributedDataParallel(method, find_unused_parameters=unused) if world > 1 else method
    for turn in range(method.turns):
        method.begin_turn(turn)
        method.zero_grad()
        losses = wrapped(batch).losses
        method.backward(losses["total"])
        method.after_backward(1)
    terms = {k: v.detach() for k, v in losses.items()}
    if world > 1:
        for term in terms.values():
            dist.all_reduce(term)
            term /= world
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    result[f"{name}/{task}"] = (terms, gradients, dict(method.named_buffers()))
if rank == 0:
    torch.save(result, f"{folder}/result{world}.pt")
if world > 1:
    dist.barrier()  # a rank that is gone closes connections that the other still reads
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_gradients_and_losses_are_those_of_the_joined_batch(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(world), str(tmp_path)], env=environment)
        for world in (1, 2)
        for rank in range(world)
    ]
    try:
        assert [run.wait(timeout=600) for run in runs] == [0, 0, 0]
    finally:
        for run in runs:
            run.kill()
    one, two = (torch.load(tmp_path / f"result{world}.pt", weights_only=True) for world in (1, 2))
    torch.testing.assert_close(two, one, rtol=FP64, atol=FP64, check_dtype=False)
