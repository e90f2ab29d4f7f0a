"""PgMBlock plugs into a model of one's own."""

from __future__ import annotations

import itertools

import pytest
import torch
from module_cases import awaken
from tolerances import AUTOCAST_BF16, FP64, ROW_WEIGHT_FP32

from pgm_fast.errors import ConfigError
from pgm_fast.nn import PgMBlock, parameter_parts
from pgm_fast.nn.partitioner import GATES


def block(dims=None, **kwargs):
    torch.manual_seed(0)
    return awaken(PgMBlock(dims or {"text": 8, "audio": 8}, **kwargs).double())


def inputs(*leading, widths=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    names = ("text", "audio", "vision")
    return {
        m: torch.randn(*leading, w, dtype=torch.float64, generator=generator, requires_grad=True)
        for m, w in zip(names, widths, strict=False)
    }


@pytest.mark.parametrize("leading", [(5,), (2, 3), (0,)])
def test_keeps_names_widths_and_leading_dimensions(leading):
    module = block({"text": 8, "audio": 4})
    x = inputs(*leading, widths=(8, 4))
    representations, losses = module(x)
    assert {m: r.shape for m, r in representations.items()} == {m: h.shape for m, h in x.items()}
    assert set(losses) == {"reconstruction/text", "reconstruction/audio", "align"}
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    (sum(losses.values()) + sum(r.sum() for r in representations.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_reconstruction_measures_the_distance_to_the_input_and_leaves_it_alone_unless_told():
    for through in (False, True):
        module, x = block(reconstruct_through=through).eval(), inputs(5)
        representations, losses = module(x)
        loss = losses["reconstruction/text"]
        torch.testing.assert_close(loss, (representations["text"] - x["text"]).square().mean(), rtol=FP64, atol=FP64)
        grad = torch.autograd.grad(loss, x["text"], retain_graph=True)[0]
        by_target = -2 * (representations["text"] - x["text"]) / x["text"].numel()
        by_input = torch.autograd.grad((representations["text"] - x["text"].detach()).square().mean(), x["text"])[0]
        torch.testing.assert_close(grad, by_input + by_target if through else by_input, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("condition", [False, True])
def test_an_absent_modality_changes_nothing_for_the_others(condition):
    module = block({"text": 8, "audio": 8, "vision": 8}, condition_on_others=condition).eval()
    x = inputs(6, widths=(8, 8, 8))
    here = torch.tensor([True, False, True, False, True, True])
    results = []
    for garbage in (0.0, 1e8):
        changed = {**x, "audio": torch.where(here.unsqueeze(-1), x["audio"], torch.full_like(x["audio"], garbage))}
        representations, losses = module(changed, {"audio": here})
        assert not representations["audio"][~here].any()
        results.append((representations, losses))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    present = module.run({m: h[here] for m, h in x.items()})
    torch.testing.assert_close(
        results[0][1]["reconstruction/audio"], present.losses["reconstruction/audio"], rtol=FP64, atol=FP64
    )
    for m, r in present.representations.items():
        torch.testing.assert_close(results[0][0][m][here], r, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("condition", [False, True])
def test_alone_is_what_one_gets_with_the_others_absent(condition):
    module, x = block(condition_on_others=condition).eval(), inputs(4)
    nowhere = torch.zeros(4, dtype=torch.bool)
    out = module.run(x, {"audio": nowhere}, torch.full((4,), 0.25))
    among_others = module.run(x, alone=True)
    torch.testing.assert_close(among_others.alone["text"], out.representations["text"], rtol=FP64, atol=FP64)
    torch.testing.assert_close(among_others.uni_alone["text"], out.uni["text"], rtol=FP64, atol=FP64)


def test_context_is_the_mean_of_the_present_others():
    module = block({"text": 8, "audio": 8, "vision": 8}, condition_on_others=True).eval()
    x = inputs(3, widths=(8, 8, 8))
    here = torch.tensor([True, False, True])
    out = module.run(x, {"audio": here}, shares=True)
    context = torch.where(here.unsqueeze(-1), (x["audio"] + x["vision"]) / 2, x["vision"])
    torch.testing.assert_close(
        out.shares["text"], module.partitioners["text"].shares(x["text"], context), rtol=FP64, atol=FP64
    )


@pytest.mark.parametrize("condition", [False, True])
def test_nothing_of_other_modalities_reaches_the_lone_uni_features(condition):
    module, x = block(condition_on_others=condition), inputs(4)
    loss = module.run(x).uni_alone["text"].square().sum()
    grads = torch.autograd.grad(loss, [x["text"], x["audio"]], allow_unused=True)
    assert grads[0].abs().sum() > 0
    assert grads[1] is None or not grads[1].any()


@pytest.mark.parametrize(
    ("gate", "uni", "paired", "decoder", "identity"),
    [c for c in itertools.product(GATES, *[[True, False]] * 4) if c[1] or c[2]],
)
def test_every_switch_gives_what_out_dims_says_and_trains_every_parameter(gate, uni, paired, decoder, identity):
    module = block(
        features=6, gate=gate, uni_learner=uni, paired_learner=paired, decoder=decoder, identity_start=identity
    )
    x = inputs(5)
    out = module.run(x, shares=True)
    assert {m: r.shape[-1] for m, r in out.representations.items()} == module.out_dims
    assert bool(out.uni) == uni and bool(out.paired) == paired and ("align" in out.losses) == paired
    if not decoder:
        assert module.out_dims["text"] == (8 if identity else 6) * (uni + paired)
    total = sum(r.square().sum() for r in out.representations.values()) + sum(out.losses.values())
    total.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_parameters_know_modality_and_part():
    parts = parameter_parts(block())
    assert set(parts.values()) == {
        (m, p) for m in ("text", "audio") for p in ("partitioner", "uni", "paired", "decoder")
    }


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("sides", [{}, {"paired_learner": False}, {"uni_learner": False}])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.works("AMP", "layers")
def test_it_starts_by_returning_its_input_bit_by_bit(gate, sides, autocast):
    torch.manual_seed(0)
    module = PgMBlock({"text": 48, "audio": 80}, gate=gate, **sides)
    x = {m: 3 * h.detach().float() + 0.1 for m, h in inputs(64, widths=(48, 80)).items()}
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        representations, losses = module(x)
    for m, h in x.items():
        assert torch.equal(representations[m], h)
        assert autocast is not None or losses[f"reconstruction/{m}"] == 0


def test_what_the_boundaries_are_told_by_their_shares_they_are_not_told_by_the_task():
    module, x = block(by_shares=True), inputs(5)
    out = module.run(x, shares=True)
    gates = list(module.partitioners.parameters())
    task = sum(r.square().sum() for r in out.representations.values()) + sum(out.losses.values())
    assert all(g is None for g in torch.autograd.grad(task, gates, retain_graph=True, allow_unused=True))
    grads = torch.autograd.grad(sum(s[..., 0].sum() for s in out.shares.values()), gates)
    assert all(g.any() for g in grads)


def test_state_dict_names_are_stable():
    own = [
        "partitioners.text.boundaries.0.weight",
        "partitioners.text.boundaries.0.bias",
        "partitioners.text.boundaries.1.weight",
        "partitioners.text.boundaries.1.bias",
        "partitioners.text.boundaries.3.weight",
        "partitioners.text.boundaries.3.bias",
        *(f"learners.text.{side}_norm.{p}" for side in ("uni", "paired") for p in ("weight", "bias")),
        *(f"learners.text.{side}.{i}.{p}" for side in ("uni", "paired") for i in (0, 3) for p in ("weight", "bias")),
        "decoders.text.uni.weight",
        "decoders.text.paired.weight",
        "decoders.text.paired.bias",
    ]
    assert list(block({"text": 8}).state_dict()) == own


def test_state_dict_names_of_the_single_gate_are_stable():
    own = [
        "partitioners.text.projection.weight",
        "partitioners.text.projection.bias",
        "learners.text.split.uni.weight",
        "learners.text.split.uni.bias",
        "learners.text.split.paired.weight",
        "learners.text.split.paired.bias",
        "learners.text.uni.weight",
        "learners.text.uni.bias",
        "learners.text.paired.weight",
        "learners.text.paired.bias",
        "learners.text.uni_norm.weight",
        "learners.text.uni_norm.bias",
        "learners.text.paired_norm.weight",
        "learners.text.paired_norm.bias",
        "decoders.text.uni.weight",
        "decoders.text.paired.weight",
        "decoders.text.paired.bias",
    ]
    assert list(block({"text": 8}, gate="single", identity_start=False).state_dict()) == own


@pytest.mark.parametrize(
    ("gate", "condition", "missing"),
    [("boundary", False, False), ("single", False, False), ("single", False, True), ("dual", True, True)],
)
@pytest.mark.works("torch.compile", "layers")
def test_compiles_whole_and_agrees(gate, condition, missing):
    module, x = block(gate=gate, condition_on_others=condition).eval(), inputs(4)
    presence = {"audio": torch.tensor([True, False, True, True])} if missing else None
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for run in (module, compiled):
        representations, losses = run(x, presence)
        total = sum(losses.values()) + sum(r.square().sum() for r in representations.values())
        results.append((representations, losses, torch.autograd.grad(total, list(module.parameters()))))
    torch.testing.assert_close(*results, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.works("AMP", "layers")
def test_runs_under_autocast(identity):
    torch.manual_seed(0)
    module = awaken(PgMBlock({"text": 8, "audio": 8}, identity_start=identity))
    x = {m: h.detach().float() for m, h in inputs(5).items()}
    with torch.autocast("cpu", torch.bfloat16):
        representations, losses = module(x)
    assert representations["text"].dtype == (torch.float32 if identity else torch.bfloat16)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    reference, reference_losses = module(x)
    torch.testing.assert_close(
        representations["text"].float(), reference["text"], rtol=AUTOCAST_BF16, atol=AUTOCAST_BF16
    )
    torch.testing.assert_close(losses["align"], reference_losses["align"], rtol=AUTOCAST_BF16, atol=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dims": {}}, "no modalities"),
        ({"dims": {"a": 8, "b": 4}, "condition_on_others": True}, "one width.*'b': 4"),
        ({"dims": {"a": 8}, "condition_on_others": True}, "two modalities"),
        ({"dims": {"a": 8}, "uni_learner": False, "paired_learner": False}, "keep at least one"),
        ({"dims": {"a.b": 8}}, "'a.b'"),
        ({"dims": {"a": 8}, "align_temperature": 0.0}, "align_temperature is 0.0"),
        ({"dims": {"a": 8}, "align_temperature": "1"}, "align_temperature is '1', must be a finite number above 0, or"),
        ({"dims": [8, 6]}, "^dims is a list, must be a mapping such as .*text"),
        ({"dims": {"a": "8"}}, "^the width of 'a' in dims is '8', must be a whole number of at least 1"),
        ({"dims": {"a": 8.0}}, "^the width of 'a' in dims is 8.0, must be"),
        ({"dims": {"a": -2}}, "^the width of 'a' in dims is -2, must be"),
        ({"dims": {"a": 0}}, "^the width of 'a' in dims is 0, must be"),
        ({"dims": {1: 8}}, "^modality name 1 cannot name a module"),
        ({"dims": {"a": 8}, "features": "4"}, "^features is '4', must be a whole number of at least 0"),
        ({"dims": {"a": 8}, "chunk": "4"}, "^chunk is '4', must be a whole number of at least 1"),
        ({"dims": {"a": 8}, "temperature": "1"}, "^gate temperature is '1', must be a finite number above 0"),
        ({"dims": {"a": 8}, "dropout": "1"}, "^dropout is '1', must be a finite number of at least 0 and of at most 1"),
        ({"dims": {"a": 8}, "dtype": torch.int64}, "^dtype is torch.int64, must be a floating-point dtype"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        PgMBlock(**kwargs)


@pytest.mark.parametrize("weighted", [False, True])
def test_padded_steps_change_nothing_whatever_they_hold(weighted):
    module = block().eval()
    steps = torch.tensor([[True, True, True], [True, False, False]])
    x = inputs(2, 3)
    weight = torch.rand(2, 3, dtype=torch.float64) if weighted else None
    flat = {m: h[steps] for m, h in x.items()}
    expected, losses = module(flat, weight=None if weight is None else weight[steps] / weight[steps].sum())
    for garbage in (0.0, 1e8):
        padded = {m: h.masked_fill(~steps.unsqueeze(-1), garbage) for m, h in x.items()}
        made, found = module(padded, weight=None if weight is None else weight / weight[steps].sum(), mask=steps)
        torch.testing.assert_close(found, losses, rtol=FP64, atol=FP64, check_dtype=False)
        for m, h in made.items():
            torch.testing.assert_close(h[steps], expected[m], rtol=FP64, atol=FP64)
            assert not h[~steps].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda x: list(x.values()), "^representations must be a mapping from each of text, audio .* got a list"),
        (lambda x: {**x, "text": x["text"].double()}, r"^the representation of text is torch.float64 .*pass text.to\("),
        (lambda x: {**x, "text": x["text"].long()}, "^the representation of text must be a floating.* torch.int64"),
        (lambda x: {**x, "audio": None}, "^the representation of audio must be a floating.* got NoneType"),
        (lambda x: {**x, "text": x["text"].numpy()}, "^the representation of text must be a floating.* got ndarray"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_representation_that_no_layer_takes_is_named(changed, message, autocast):
    x = {m: h.detach().float() for m, h in inputs(2).items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(TypeError, match=message):
        block().float()(changed(x))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_a_block_in_double_names_what_is_not(given):
    message = rf"of text is {given} and the block torch.float64: .*make the block to\({given}\)"
    with pytest.raises(TypeError, match=message):
        block()({m: h.to(given) for m, h in inputs(2).items()})


def test_a_single_number_is_no_representation():
    with pytest.raises(ValueError, match=r"the representation of text must have shape \[..., 8\], got \[\]"):
        block()({**inputs(2), "text": torch.tensor(1.0).double()})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"presence": [True]}, "^presence must be a mapping from some of text, audio to a bool tensor, got a list"),
        ({"presence": {"text": None}}, "^presence of text must be a tensor, got NoneType"),
        ({"mask": [True]}, "^mask must be a tensor, got list"),
        ({"weight": 1.0}, "^weight must be a tensor, got float"),
    ],
)
def test_what_is_said_of_rows_is_said_in_tensors(argument, message):
    with pytest.raises(TypeError, match=message):
        block()(inputs(2), **argument)


def test_sequences_of_different_lengths_are_named():
    x = {"text": torch.randn(2, 5, 8), "audio": torch.randn(2, 7, 8)}
    with pytest.raises(ValueError, match=r"text \[2, 5, 8\], audio \[2, 7, 8\]"):
        block()({m: h.double() for m, h in x.items()})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"presence": {"audio": torch.ones(2, dtype=torch.bool)}}, r"presence of audio must hold bool.*\[2, 5\], got"),
        ({"presence": {"text": torch.ones(2, 5)}}, r"presence of text must hold bool.*torch.float32"),
        (
            {"presence": {"smell": torch.ones(2, 5, dtype=torch.bool)}},
            "some of text, audio; got smell",
        ),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask must hold bool.*\[2, 5\], got torch.bool \[2, 4\]"),
        ({"weight": torch.ones(2)}, r"weight must hold one number per row, \[2, 5\], got torch.float32 \[2\]"),
    ],
)
def test_what_is_said_of_rows_must_be_said_of_each(argument, message):
    with pytest.raises(ValueError, match=message):
        block()(inputs(2, 5), **argument)


@pytest.mark.parametrize("condition", [False, True])
def test_forgotten_weights_are_those_of_the_rows_that_are_there(condition):
    module, x = block(condition_on_others=condition), inputs(6)
    presence = {"audio": torch.tensor([True, False, True, True, False, True])}
    weight = torch.full((6,), 1 / 6, dtype=torch.float64)
    by_modality = {"audio": presence["audio"] / 4}
    told = module.run(x, presence, weight, modality_weight=by_modality)
    for losses in (module(x, presence)[1], module.run(x, presence).losses):
        torch.testing.assert_close(losses, told.losses, rtol=ROW_WEIGHT_FP32, atol=ROW_WEIGHT_FP32)


def test_stacked_models_are_mapped_over():
    models = [PgMBlock({"text": 8, "audio": 8}).double() for _ in range(2)]
    x = {m: h.detach() for m, h in inputs(4).items()}
    stacked, buffers = torch.func.stack_module_state(models)

    def call(parameters, buffers):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))[0]

    made = torch.func.vmap(call)(stacked, buffers)
    for k, model in enumerate(models):
        torch.testing.assert_close({m: h[k] for m, h in made.items()}, model(x)[0], rtol=FP64, atol=FP64)
