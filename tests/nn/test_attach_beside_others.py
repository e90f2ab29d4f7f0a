"""What torch and other libraries do to models, they do to models with PgM attached."""

from __future__ import annotations

import pytest
import torch
from attach_models import LABELS, PLACES, Crossed, Late, gradients, inputs, made, total
from module_cases import awaken
from sharded import kinds_of_parts, lone_mesh, shard
from tolerances import FP64
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pgm_fast.nn import MLP, attach, collect_losses


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.works("torch.compile", "attach")
def test_compiles_whole_and_agrees(fresh):
    model = made(Crossed, task_heads=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    args = inputs(torch.float64)
    want = gradients(model, *args)
    torch.testing.assert_close(gradients(model, *args, run=compiled), want, rtol=FP64, atol=FP64)


@pytest.mark.works("torch.compile", "attach")
def test_its_graphs_serve_every_batch_size(fresh):
    model, counter = made(task_heads=3), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    frames = []
    for rows in (7, 5, 3):
        args = inputs(torch.float64, rows)
        results = [total(run, *args, target=LABELS[:rows]) for run in (model, compiled)]
        torch.testing.assert_close(*results, rtol=FP64, atol=FP64)
        frames.append(counter.frame_count)
    assert frames == [frames[0]] * 3


@pytest.mark.works("torch.export", "attach")
def test_exports_what_the_model_computes():
    model = made(task_heads=3).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, inputs(torch.float64), dynamic_shapes=(batch, batch))
    assert not [node for node in program.graph.nodes if "pgm_fast" in str(node.target)]
    args = inputs(torch.float64, 3)
    torch.testing.assert_close(program.module()(*args), model(*args), rtol=FP64, atol=FP64)


@pytest.mark.works("torch.jit.trace", "attach")
def test_a_trace_serves_other_batch_sizes():
    model = made(task_heads=3).eval()
    traced = torch.jit.trace(model, inputs(torch.float64), check_trace=False)
    args = inputs(torch.float64, 3)
    torch.testing.assert_close(traced(*args), model(*args), rtol=FP64, atol=FP64)


@pytest.mark.works("ONNX", "attach")
def test_an_onnx_program_has_onnx_operators_only():
    pytest.importorskip("onnxscript", reason="pip install 'pgm-fast[integrations]'")
    program = torch.onnx.export(made(dtype=torch.float32).eval(), inputs(), dynamo=True, verbose=False)
    assert {node.domain for node in program.model_proto.graph.node} == {""}


@pytest.mark.works("torch.func", "attach")
def test_torch_func_differentiates_what_it_collects():
    model = made(task_heads=3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def run(parameters):
        logits = torch.func.functional_call(model, parameters, inputs(torch.float64))
        return logits.square().mean() + sum(collect_losses(model, LABELS).values())

    got = torch.func.grad(run)(parameters)
    torch.testing.assert_close(list(got.values()), gradients(model, *inputs(torch.float64))[1:], rtol=FP64, atol=FP64)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    with lone_mesh(tmp_path_factory.mktemp("store")) as mesh:
        yield mesh


@pytest.mark.works("FSDP2", "attach")
def test_any_part_can_be_sharded(mesh):
    args = inputs(torch.float64)
    want = gradients(made(task_heads=3), *args)
    for kind in kinds_of_parts(made(task_heads=3)):
        if kind and not issubclass(kind, nn.ModuleDict):
            sharded = shard(made(task_heads=3), kind, mesh)
            torch.testing.assert_close(gradients(sharded, *args), want, rtol=FP64, atol=FP64)
    whole = fully_shard(made(task_heads=3), mesh=mesh, reshard_after_forward=True)
    torch.testing.assert_close(gradients(whole, *args), want, rtol=FP64, atol=FP64)
    with pytest.raises(ValueError, match="container"):
        fully_shard(made().pgm, mesh=mesh)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.works("DDP", "attach")
def test_ddp_finds_what_takes_part(mesh, options):
    args = inputs(torch.float64)
    want = gradients(made(task_heads=3), *args)
    model = made(task_heads=3)
    ddp = DistributedDataParallel(model, **options)
    for _ in range(2):
        torch.testing.assert_close(gradients(model, *args, run=ddp), want, rtol=FP64, atol=FP64)


@pytest.mark.works("tensor parallel", "attach")
def test_layers_of_learners_and_heads_can_be_split_over_ranks(mesh):
    model, plan = made(task_heads=3), {}
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            plan |= {f"{name}.0": ColwiseParallel(), f"{name}.3": RowwiseParallel()}
    want = gradients(made(task_heads=3), *inputs(torch.float64))
    parallelize_module(model, mesh, plan)
    torch.testing.assert_close(gradients(model, *inputs(torch.float64)), want, rtol=FP64, atol=FP64)


def test_outputs_may_be_changed_in_place(mesh):
    made()(*inputs(torch.float64)).mul_(2).sum().backward()


class Checkpointed(Late):
    reentrant = False

    def forward(self, text, audio, mask=None):
        found = [
            checkpoint(self.encoders[m], x, use_reentrant=self.reentrant) for m, x in (("text", text), ("audio", audio))
        ]
        return self.head(torch.cat([self.mean(h, mask) for h in found], -1))


@pytest.mark.works("activation checkpointing", "attach")
def test_encoders_may_be_checkpointed():
    mask = torch.arange(4) < torch.tensor([[4], [1], [2], [3], [4], [1], [2]])
    options = {"options": {"sequence": True}, "task_heads": 3}
    want = gradients(made(masks={"text": "text_mask"}, **options), *inputs(torch.float64), mask)
    model = made(Checkpointed, masks={"text": "mask"}, **options)
    torch.testing.assert_close(gradients(model, *inputs(torch.float64), mask), want, rtol=FP64, atol=FP64)
    model.reentrant = True
    with pytest.raises(RuntimeError, match="encoders.text ran without gradients.*use_reentrant=False"):
        model(*(x.requires_grad_() for x in inputs(torch.float64)))


@pytest.mark.works("PEFT", "attach")
def test_lora_goes_first():
    peft = pytest.importorskip("peft", reason="pip install 'pgm-fast[integrations]'")
    tuned = peft.get_peft_model(Late(), peft.LoraConfig(r=2, target_modules=r".*layers\.0"))
    before = tuned(*inputs())
    attach(tuned, {m: f"base_model.model.{path}" for m, path in PLACES.items()}, task_heads=3)
    assert torch.equal(tuned(*inputs()), before)
    total(awaken(tuned), *inputs()).backward()
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in tuned.named_parameters() if "lora_" in name or "pgm." in name}


@pytest.mark.works("offload", "attach")
def test_offloaded_weights_are_fetched():
    accelerate = pytest.importorskip("accelerate", reason="pip install 'pgm-fast[integrations]'")
    model = made(task_heads=3)
    want = total(model, *inputs(torch.float64))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(total(model, *inputs(torch.float64)), want, rtol=FP64, atol=FP64)


def _is_linear_of_pgm(module, name):
    return "pgm." in name and isinstance(module, nn.Linear)


@pytest.mark.works("quantisation", "attach")
def test_quantised_layers_are_called():
    quantization = pytest.importorskip("torchao.quantization", reason="pip install 'pgm-fast[integrations]'")
    model = made(dtype=torch.float32).eval()
    before = model(*inputs())
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), _is_linear_of_pgm)
    after = model(*inputs())
    # eight bits change what full precision gave
    assert after.isfinite().all() and not torch.equal(after, before)


@pytest.mark.works("moving averages", "attach")
def test_a_moving_average_follows_the_whole():
    model = made()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average(*inputs(torch.float64)), model(*inputs(torch.float64)))
