"""What every method promises the training loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from module_cases import awaken
from sharded import kinds_of_parts, lone_mesh, shard
from tolerances import AUTOCAST_BF16, FP64
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from pgm_fast.data.batch import Batch
from pgm_fast.errors import ConfigError
from pgm_fast.methods import METHODS, BaselineConfig, ModelConfig, PgMConfig, build

SMALL = ModelConfig(dim=8, hidden=12, heads=2, dropout=0.0)
ALLOWED = [(name, task) for name, method in METHODS.items() for task in method.tasks]
# of the tasks that differ most, in the first stage and in the last
STAGED = [
    (name, task, stage)
    for name, task in ALLOWED
    if task in ("classification", "retrieval")
    for stage in ((0, -1) if name in ("dimml", "dmil", "pretrained", "umt", "mcr") else (0,))
]


def make(name, spec, encoders=None, model=SMALL, **config):
    torch.manual_seed(0)
    return awaken(build(name, spec, model, METHODS[name].config_class(**config), encoders).double())


def make_in(stage, name, spec, **config):
    """A method in one of its stages."""
    method = make(name, spec, **config)
    method.begin_stage(stage % len(method.stages(0.1)))
    return method.train()


def trained(method, stage=0):
    """Names of the parameters that a stage trains."""
    grouped = {id(p) for group in method.stages(0.1)[stage].groups for p in group["params"]}
    return {name for name, p in method.named_parameters() if id(p) in grouped}


@pytest.mark.parametrize(("name", "task"), ALLOWED)
@pytest.mark.parametrize("kind", ["vectors", "sequences", "per_step"])
@pytest.mark.parametrize("missing", [(), ("audio",), ("text", "audio", "vision")])
def test_every_task_and_kind_of_data_trains_every_parameter(make_batch, name, task, kind, missing):
    spec, batch = make_batch(
        task, per_step=kind == "per_step", sequences=["text", "vision"] if kind == "sequences" else (), missing=missing
    )
    method = make(name, spec)
    out = method(batch)
    out.losses["total"].backward()
    rows = len(batch.weight)
    if task == "retrieval":
        assert out.logits is None and set(out.embeddings) == set(spec.modalities)
        for embedding in out.embeddings.values():
            torch.testing.assert_close(
                embedding.norm(dim=-1), torch.ones(rows, dtype=torch.float64), rtol=FP64, atol=FP64
            )
    else:
        answer = method.eval()(batch)
        assert answer.logits.shape == (rows, spec.num_outputs)
        assert {m: x.shape for m, x in answer.unimodal.items()} == {
            m: (rows, spec.num_outputs) for m in spec.modalities
        }
    assert all(torch.isfinite(loss) and loss.shape == () for loss in out.losses.values())
    for parameter_name, parameter in method.named_parameters():
        if parameter_name in trained(method):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
            assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", METHODS)
def test_groups_hold_every_parameter_once(make_batch, name):
    method = make(name, make_batch()[0])
    stages = method.stages(0.1)
    everything = sorted(id(p) for p in method.parameters())
    for stage in stages:
        grouped = [id(p) for group in stage.groups for p in group["params"]]
        assert len(set(grouped)) == len(grouped) and set(grouped) <= set(everything)
        assert len({group["lr"] for group in stage.groups if not group["name"].endswith(".partitioner")}) == 1
    assert {id(p) for stage in stages for group in stage.groups for p in group["params"]} == set(everything)
    assert len(stages) > 1 or stages[0].groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("modalities", [1, 2])
def test_one_modality_is_enough(make_batch, name, modalities):
    spec, batch = make_batch(modalities=modalities)
    if modalities < METHODS[name].least_modalities:
        with pytest.raises(ConfigError, match=f"{name} needs two modalities or more, the data has text"):
            make(name, spec)
        return
    method = make(name, spec)
    method(batch).losses["total"].backward()
    assert all(p.grad.any() for key, p in method.named_parameters() if key in trained(method))


@pytest.mark.parametrize("name", METHODS)
def test_without_labels_there_are_predictions_and_no_losses(make_batch, name):
    spec, batch = make_batch()
    method = make(name, spec).eval()
    with_labels = method(batch)
    without = method(dataclasses.replace(batch, labels=None))
    assert without.losses == {}
    assert torch.equal(without.logits, with_labels.logits)


@pytest.mark.parametrize(("name", "task", "stage"), STAGED)
def test_zero_rows(make_batch, name, task, stage):
    spec, batch = make_batch(task, rows=0, sequences=["text"], missing=["audio"])
    method = make_in(stage, name, spec)
    out = method(batch, report=True)
    out.losses["total"].backward()
    assert out.losses["total"] == 0
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


@pytest.mark.parametrize(("name", "task", "stage"), STAGED)
def test_what_stands_in_an_absent_modality_changes_nothing(make_batch, name, task, stage):
    spec, batch = make_batch(task, missing=["audio", "vision"])
    method = make_in(stage, name, spec)
    losses, grads = [], []
    for garbage in (0.0, 1e3):
        inputs = {
            m: torch.where(batch.presence[m].unsqueeze(-1), x, garbage) if m in batch.presence else x
            for m, x in batch.inputs.items()
        }
        torch.manual_seed(1)
        out = method(dataclasses.replace(batch, inputs=inputs), report=True)
        losses.append((out.losses, out.logits))
        parameters = [p for key, p in method.named_parameters() if key in trained(method, stage)]
        grads.append(torch.autograd.grad(out.losses["total"], parameters))
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "task", "stage"), STAGED)
def test_padding_rows_change_nothing(make_batch, name, task, stage):
    spec, batch = make_batch(task, missing=["audio"])
    padded = Batch(
        inputs={m: torch.cat((x, x[:2])) for m, x in batch.inputs.items()},
        weight=torch.cat((batch.weight, torch.zeros(2))),
        index=torch.cat((batch.index, torch.tensor([-1, -1]))),
        labels=None if batch.labels is None else torch.cat((batch.labels, batch.labels[:2])),
        presence={m: torch.cat((p, p[:2])) for m, p in batch.presence.items()},
        modality_weight={m: torch.cat((w, torch.zeros(2))) for m, w in batch.modality_weight.items()},
    )
    method = make_in(stage, name, spec)
    losses = []
    for one in (padded, batch):
        torch.manual_seed(1)
        losses.append(method(one).losses)
    torch.testing.assert_close(*losses, rtol=FP64, atol=FP64)


@pytest.mark.parametrize(("name", "task"), [(n, t) for n, t in ALLOWED if t != "retrieval"])
def test_halves_with_weights_times_two_average_to_the_whole(make_batch, name, task):
    spec, batch = make_batch(task, rows=8, missing=["audio"])
    method = make(
        name, spec, **({"align_weight": 0.0, "share_weight": 0.3, "share_target": {"*": 0.4}} if name == "pgm" else {})
    )
    halves = [
        Batch(
            inputs={m: x[part] for m, x in batch.inputs.items()},
            weight=2 * batch.weight[part],
            index=batch.index[part],
            labels=batch.labels[part],
            presence={m: p[part] for m, p in batch.presence.items()},
            modality_weight={m: 2 * w[part] for m, w in batch.modality_weight.items()},
        )
        for part in (slice(0, 4), slice(4, 8))
    ]
    method.eval()  # a row's noise is that of its place in the batch
    whole = method(batch).losses
    parts = [method(half).losses for half in halves]
    assert set(parts[0]) == set(whole)
    for key, loss in whole.items():
        torch.testing.assert_close((parts[0][key] + parts[1][key]) / 2, loss, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("name", METHODS)
def test_a_few_steps_lower_the_loss(make_batch, name):
    spec, batch = make_batch(rows=12, sequences=["vision"], missing=["audio"])
    method = make(name, spec)
    optimizer = torch.optim.AdamW(method.stages(1e-2)[0].groups)
    method.begin_stage(0)
    first = None
    for _ in range(20):
        optimizer.zero_grad()
        loss = method(batch).losses["total"]
        loss.backward()
        optimizer.step()
        first = first if first is not None else loss.item()
    assert loss.item() < 0.8 * first  # a fifth is far more than chance can give on fixed data


@pytest.mark.parametrize("name", METHODS)
def test_runs_in_float32_under_autocast(make_batch, name):
    spec, batch = make_batch(sequences=["text"], missing=["audio"])
    batch = dataclasses.replace(batch, inputs={m: x.float() for m, x in batch.inputs.items()})
    method = make(name, spec).float()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(batch, report=True).losses
    assert losses["total"].dtype == torch.float32
    losses["total"].backward()
    assert all(torch.isfinite(p.grad).all() for key, p in method.named_parameters() if key in trained(method))
    torch.manual_seed(1)
    torch.testing.assert_close(losses["total"], method(batch).losses["total"], rtol=AUTOCAST_BF16, atol=0)


@pytest.mark.parametrize(("name", "task", "stage"), STAGED)
@pytest.mark.parametrize("per_step", [False, True])
def test_a_step_never_needs_a_value_on_the_host(make_batch, name, task, stage, per_step):
    spec, batch = make_batch(task, sequences=["text"], missing=["audio"], per_step=per_step)
    config = {"share_weight": 1.0, "share_target": {"*": 0.5}} if name == "pgm" else {}
    method = make_in(stage, name, spec, **config)
    # fake tensors have no values: .item(), bool(), nonzero() and boolean indexing raise
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        faked = tree_map_only(torch.Tensor, mode.from_tensor, fields)
        method(Batch(**faked), report=True).losses["total"].backward()


def test_methods_share_encoders_and_head_widths(make_batch):
    spec, _ = make_batch()
    methods = {name: make(name, spec) for name in METHODS}
    states = [{k: v for k, v in m.encoders.state_dict().items()} for m in methods.values()]
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)
    shape = {k: v.shape for k, v in methods["joint"].head.state_dict().items()}
    assert {k: v.shape for k, v in methods["pgm"].head.state_dict().items()} == shape
    shape = {k: v.shape for k, v in methods["ensemble"].heads.state_dict().items()}
    assert {k: v.shape for k, v in methods["pgm"].uni_heads.state_dict().items()} == shape


def test_unknown_names_and_configs_of_another_method_are_named(make_batch):
    spec, _ = make_batch()
    with pytest.raises(ConfigError, match=rf"'join', must be one of {', '.join(METHODS)} \(did you mean joint\?\)"):
        build("join", spec, SMALL, BaselineConfig())
    with pytest.raises(ConfigError, match="method joint takes a BaselineConfig, got PgMConfig"):
        build("joint", spec, SMALL, PgMConfig())


@pytest.mark.parametrize("name", METHODS)
def test_any_part_can_be_sharded_by_itself(make_batch, name, tmp_path):
    spec, batch = make_batch(sequences=["text"], missing=["audio"])

    def losses_and_gradients(method):
        torch.manual_seed(1)
        losses = method(batch).losses
        losses["total"].backward()
        found = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
        return losses, {key: g.full_tensor() if hasattr(g, "full_tensor") else g for key, g in found.items()}

    want = losses_and_gradients(make(name, spec))
    with lone_mesh(tmp_path) as mesh:
        for kind in kinds_of_parts(make(name, spec)):
            method = shard(make(name, spec), kind, mesh)
            torch.testing.assert_close(losses_and_gradients(method), want, rtol=FP64, atol=FP64)


@pytest.mark.parametrize(("name", "task"), [(n, t) for n, t in ALLOWED if t in ("classification", "retrieval")])
def test_every_module_is_called_in_one_stage_or_another(make_batch, name, task):
    spec, batch = make_batch(task, sequences=["text"], missing=["audio"])
    method, seen = make(name, spec), set()
    own = {m for m in method.modules() if list(m.parameters()) and not isinstance(m, torch.nn.ModuleDict)}
    for module in own:
        module.register_forward_hook(lambda m, *_: seen.add(m))
    for stage in range(len(method.stages(0.1))):
        method.begin_stage(stage)
        method(batch)
    assert own <= seen
