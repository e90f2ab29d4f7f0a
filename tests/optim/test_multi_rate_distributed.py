"""Two processes, with copies (DDP) or shards (FSDP2) of the parameters, step as one does; checkpoints fit either."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from tolerances import FP64, OPTIMIZER_FP64

# One process warms up and forks the ranks, which spares importing torch for each of them; so it may have no threads.
SCRIPT = """
import copy, json, math, os, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from pgm_fast.optim import MultiRateAdamW, MultiRateSGD
root, results = Path(sys.argv[1]), {}

OPTIMIZERS = {
    "adamw": (MultiRateAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (MultiRateSGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
MAX_NORM = 0.2

def launch(name, world, action):
    # action(rank) in `world` forked ranks: what each returned, or the text of what it raised.
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            status = 0
            try:
                store = f"file://{root}/{name}-store"
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
                torch.save(action(rank), root / f"{name}-{rank}.pt")
                dist.destroy_process_group()
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

def network(dtype=torch.float64):
    torch.manual_seed(0)
    # shards of unequal size, and of none: a bias of one number
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 1), nn.Linear(1, 3), nn.Tanh()).to(dtype)

def sharded(net):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)

def groups_of(net):
    return [{"params": [p], "lr": 0.01 * number} for number, p in enumerate(net.parameters(), 1)]

def rows(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 7, dtype=torch.float64, generator=generator)

def whole(x):
    if x.dtype == torch.int16:  # which no process group gathers
        return whole(x.int()).short()
    return x.full_tensor() if isinstance(x, DTensor) else x

def picture(net, optimizer):
    # the parameters and their state, put together from their shards
    params = dict(net.named_parameters())
    state = {n: {k: whole(v).detach().clone() for k, v in optimizer.state[p].items()} for n, p in params.items()}
    return {n.removeprefix("module."): whole(p).detach().clone() for n, p in params.items()}, list(state.values())

def reference(rank):
    out = {}
    for name, (_, theirs, options) in OPTIMIZERS.items():
        net = network()
        optimizer = theirs(groups_of(net), **options)
        for step in range(6):
            optimizer.zero_grad()
            (net(rows(step)) ** 2).mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
            optimizer.step()
        out[name] = picture(net, optimizer)
    return out

def train(rank):
    out = {}
    for name, (ours, _, options) in OPTIMIZERS.items():
        for form, wrap in (("ddp", DistributedDataParallel), ("fsdp", sharded)):
            net = wrap(network())
            optimizer = ours(groups_of(net), max_norm=MAX_NORM, skip_nonfinite=True, **options)
            norms, made = [], []
            new_plan = optimizer._new_plan
            optimizer._new_plan = lambda: made.append(1) or new_plan()
            for step in range(6):
                optimizer.zero_grad()
                (net(rows(step)[rank::2]) ** 2).mean().backward()
                norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
                norms.append((optimizer.total_norm().item(), whole(norm).item()))
                optimizer.step()
            out[f"{name} {form}"] = {
                "picture": picture(net, optimizer), "norms": norms, "tables": len(made),
                "launches": optimizer.launches_per_step,
            }
    return out

def not_finite(rank):
    out = {}
    for form in ("own check", "scaler"):
        net = sharded(network())
        optimizer = MultiRateAdamW(groups_of(net), skip_nonfinite=form == "own check")
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=form == "scaler")
        before = picture(net, optimizer)[0]
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale((net(rows(step)) ** 2).mean()).backward()
            if step == 1 and rank == 1:  # after the reduction: in this rank's shard alone
                next(net.parameters()).grad._local_tensor[0, 0] = math.nan
            at = picture(net, optimizer)[0]
            scaler.step(optimizer)
            scaler.update()
            moved = any(not torch.equal(a, b) for a, b in zip(at.values(), picture(net, optimizer)[0].values()))
            out[f"{form} {step}"] = moved
        out[f"{form} skipped"] = optimizer.skipped_steps.item()
        out[f"{form} steps"] = {optimizer.state[p]["step"].item() for p in net.parameters()}
    return out

FORMS = {
    "adamw": (MultiRateAdamW, torch.float64, {"amsgrad": True, "update_every": 2}),
    "sgd": (MultiRateSGD, torch.float32, {"momentum": 0.9}),
    "float32 masters": (MultiRateAdamW, torch.bfloat16, {"master_weights": "float32"}),
    "16-bit remainders": (MultiRateAdamW, torch.bfloat16, {"master_weights": "remainder"}),
}

def advance(net, optimizer, steps):
    # gradients that do not depend on the number of processes
    for step in steps:
        for number, p in enumerate(net.parameters()):
            generator = torch.Generator().manual_seed(100 * step + number)
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad
        optimizer.step()

def checkpointed(source, steps, target):
    def action(rank):
        out = {}
        for name, (ours, dtype, options) in FORMS.items():
            net = network(dtype)
            net = sharded(net) if dist.get_world_size() > 1 else net
            optimizer = ours(groups_of(net), **options)
            if source:
                with torch.no_grad():
                    for p in net.parameters():
                        p.fill_(9.0)
                model_state, optimizer_state = get_state_dict(net, optimizer)
                state = {"model": model_state, "optimizer": optimizer_state}
                dcp.load(state, checkpoint_id=root / f"{source} {name}")
                set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
            advance(net, optimizer, steps)
            if target:
                model_state, optimizer_state = get_state_dict(net, optimizer)
                state = {"model": model_state, "optimizer": optimizer_state}
                dcp.save(state, checkpoint_id=root / f"{target} {name}")
            out[name] = picture(net, optimizer)
        return out
    return action

def meshes(rank):
    # total norms on meshes of two dimensions: ours, and that of the whole gradients
    out = {}
    def norms(name, params):
        optimizer = MultiRateSGD(list(params), lr=0.1)
        out[name] = (optimizer.total_norm().item(), math.sqrt(sum(whole(p.grad).square().sum().item() for p in params)))
    for shape in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b"))
        net = fully_shard(network(), mesh=mesh)
        (net(rows(0)) ** 2).mean().backward()
        norms(f"hybrid {shape}", list(net.parameters()))
        net = parallelize_module(network()[:1], mesh["b"], {"0": ColwiseParallel()})
        fully_shard(net, mesh=mesh["a"])
        (net(rows(0)) ** 2).mean().backward()
        norms(f"tensor parallel {shape}", list(net.parameters()))
    mesh = init_device_mesh("cpu", (2,))
    params = []
    for placement in (Shard(0), Replicate()):
        params.append(nn.Parameter(distribute_tensor(torch.ones(5, 3), mesh, [placement])))
        params[-1].grad = distribute_tensor(torch.arange(15.0).view(5, 3), mesh, [placement])
    params.append(nn.Parameter(torch.ones(2)))
    params[-1].grad = torch.ones(2)
    norms("sharded, replicated and plain", params)
    # as fully_shard cuts what tensor parallelism has cut
    cut = [_StridedShard(0, split_factor=2)]
    p = nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, cut))
    p.grad = DTensor.from_local(torch.full((4, 3), 1.0 + rank), mesh, cut)
    out["cut twice"] = (MultiRateSGD([p], lr=0.1).total_norm().item(), math.sqrt(12 * (1 + 4)))
    return out

def partial(rank):
    # gradients that are sums over ranks yet to be taken, then placed as their parameter, then sums again
    out = {}
    mesh = init_device_mesh("cpu", (2,))
    for ours, theirs in ((MultiRateAdamW, torch.optim.AdamW), (MultiRateSGD, torch.optim.SGD)):
        both = []
        for build in (ours, theirs):
            p = nn.Parameter(distribute_tensor(torch.ones(5, 3, dtype=torch.float64), mesh, [Shard(0)]))
            optimizer = build([p], lr=0.1, foreach=False) if build is theirs else build([p], lr=0.1)
            for step in range(4):
                torch.manual_seed(10 * step + rank)
                here = torch.randn(5, 3, dtype=torch.float64)
                p.grad = DTensor.from_local(here, mesh, [Partial()])
                if step % 2:
                    p.grad = p.grad.redistribute(placements=[Shard(0)])
                optimizer.step()
            both.append(whole(p).detach())
        out[ours.__name__] = both
    return out

def refused(rank):
    # the state of a whole model given to shards of it
    net = network()
    optimizer = MultiRateAdamW(groups_of(net))
    advance(net, optimizer, range(1))
    shards = sharded(network())
    other = MultiRateAdamW(groups_of(shards))
    other.load_state_dict(optimizer.state_dict())
    try:
        advance(shards, other, range(1))
    except ValueError as error:
        return str(error)

def edited(rank):
    # weights loaded into a model of shards behind the back of an optimizer that keeps masters
    net = sharded(network(torch.bfloat16))
    optimizer = MultiRateSGD(groups_of(net), master_weights="float32")
    advance(net, optimizer, range(2))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(9.0)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return [whole(p).detach() for p in net.parameters()]

print(json.dumps({
    "reference": launch("reference", 1, reference),
    "train": launch("train", 2, train),
    "not_finite": launch("not_finite", 2, not_finite),
    "begun": launch("begun", 2, checkpointed(None, range(3), "begun")),
    "on one": launch("on one", 1, checkpointed("begun", range(3, 5), "on one")),
    "on two": launch("on two", 2, checkpointed("on one", range(5, 8), None)),
    "whole": launch("whole", 2, checkpointed(None, range(8), None)),
    "small": launch("small", 2, lambda rank: [meshes(rank), partial(rank), refused(rank), edited(rank)]),
}))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What every rank of a launch returned: ``ranks("train")``."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    root = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TMPDIR": str(root)}
    command = [sys.executable, "-c", SCRIPT, str(root)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    statuses = json.loads(run.stdout.splitlines()[-1])

    def returned(name):
        assert not any(statuses[name]), run.stderr
        return [torch.load(root / f"{name}-{rank}.pt", weights_only=True) for rank in range(len(statuses[name]))]

    return returned


def assert_same(actual, expected, tolerance):
    for (params, states), (other, others) in zip(actual, expected, strict=True):
        assert params.keys() == other.keys()
        for name, p in params.items():
            torch.testing.assert_close(p, other[name], rtol=tolerance, atol=tolerance)
        for state, theirs in zip(states, others, strict=True):
            for name, value in theirs.items():
                torch.testing.assert_close(state[name], value, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("form", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.works("DDP", "optimizers")
@pytest.mark.works("FSDP2", "optimizers")
def test_two_processes_step_as_torch_does_in_one(ranks, name, form):
    """Six steps, clipped by the norm of all gradients; parameters, and state put together from shards, some empty."""
    (alone,) = ranks("reference")
    for rank in ranks("train"):
        run = rank[f"{name} {form}"]
        assert_same([run["picture"]], [alone[name]], OPTIMIZER_FP64)
        for ours, torchs in run["norms"]:
            assert ours == pytest.approx(torchs, rel=FP64, abs=0)
        assert run["tables"] == 1 and run["launches"] == 2


@pytest.mark.parametrize("form", ["own check", "scaler"])
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all(ranks, form):
    for rank in ranks("not_finite"):
        assert [rank[f"{form} {step}"] for step in range(3)] == [True, False, True]
        assert rank[f"{form} skipped"] == 1.0 and rank[f"{form} steps"] == {2.0}


@pytest.mark.parametrize("form", ["adamw", "sgd", "float32 masters", "16-bit remainders"])
@pytest.mark.works("distributed checkpoints", "optimizers")
def test_a_checkpoint_goes_from_two_processes_to_one_and_back_bit_by_bit(ranks, form):
    """With gradients that are the same in any number of processes, so that nothing but the checkpoint may differ."""
    for whole, resumed in zip(ranks("whole"), ranks("on two"), strict=True):
        (params, states), (other, others) = whole[form], resumed[form]
        assert all(torch.equal(params[name], other[name]) for name in params)
        for state, theirs in zip(states, others, strict=True):
            assert state.keys() == theirs.keys()
            assert all(torch.equal(state[k], theirs[k]) and state[k].dtype == theirs[k].dtype for k in state)


@pytest.mark.works("tensor parallel", "optimizers")
def test_the_total_norm_is_over_all_shards_on_any_mesh(ranks):
    for rank, *_ in ranks("small"):
        assert len(rank) == 6
        for name, (ours, exact) in rank.items():
            assert math.isfinite(exact) and ours == pytest.approx(exact, rel=FP64, abs=0), name


def test_gradients_placed_otherwise_than_their_parameters_are_brought_there(ranks):
    for _, rank, *_ in ranks("small"):
        for ours, torchs in rank.values():
            torch.testing.assert_close(ours, torchs, rtol=OPTIMIZER_FP64, atol=OPTIMIZER_FP64)


def test_whole_state_given_to_shards_is_refused_with_the_way_to_load_it(ranks):
    for _, _, message, _ in ranks("small"):
        assert "set_optimizer_state_dict" in message


def test_master_weights_of_shards_follow_a_parameter_that_was_loaded(ranks):
    for *_, params in ranks("small"):
        assert all((p == 9.0).all() for p in params)
