"""A whole training step of each method, forward, all losses, backward, clipping, optimizer: plain PyTorch,
torch.compile of it and this project's ops, each with the same optimizers, in one run.

    python benchmarks/bench_step.py [--device cpu|cuda] [--threads 2] [--processor] [--quick]
    python benchmarks/bench_step.py --cases "pgm boundary" --rows 64     # these alone; others stay in the file
    python benchmarks/bench_step.py --shares     # where an eager step of ours spends its time

Ten classes, the defaults of the method but for the gate and dropout, which is off, and a learning rate per part of the
model. DI-MML is in its first stage after the warm-up, where each modality hands a part of its dimensions to each other;
DMIL is in its third stage. ``eager`` is the model written with ``torch.nn`` alone (plain_pgm.py, plain_dimml.py,
plain_dmil.py), ``torch.compile`` that model compiled, ``cpp_wrapper`` the same without Python between its kernels,
``ours`` the method as it is trained here, by itself, under torch.compile, and with the engine's ``train.compile``. On a
CUDA device torch.compile runs in its mode ``reduce-overhead``, and ``ours`` is also captured in a CUDA graph, whole.
``bare products`` are the matrix products of a step and nothing else. Correctness comes first: all forms have the same
loss, and the same gradients in the encoders, where the reverse pass ends, and in the gates; of DMIL, which draws noise,
the loss without noise, and its mean with it. In large batches calls are a small part, and so is the optimizer: each
form has the one of its own side, and forms that save calls are left out. With ``--processor`` a step is what it takes
of the processor: on a machine that has other work its wall clock measures that.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import harness
import torch
from clocks import HostClock, ProcessorClock
from plain_dimml import PlainDIMML
from plain_dmil import PlainDMIL
from plain_pgm import PlainPgM
from torch import Tensor, nn

from pgm_fast import backends
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import METHODS, Method, ModelConfig, PgMConfig, build
from pgm_fast.methods.dmil_config import JOINT
from pgm_fast.nn import parameter_parts
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups
from pgm_fast.train.step.compiled import CompiledStep

MODALITIES = ("text", "audio", "vision")
CLASSES = 10
SMALL_STEPS = tuple((op, 64, 128) for op in ("pgm boundary", "pgm single", "pgm dual", "dimml", "dmil"))
CASES = {  # method and what it is trained with, batch, width of inputs and all features
    "cpu": (*SMALL_STEPS, ("pgm boundary", 1024, 512)),
    "cuda": (*(case for case in SMALL_STEPS if case[0] != "pgm dual"), ("pgm boundary", 1024, 512)),
}
QUICK = tuple((op, 16, 32) for op in ("pgm boundary", "dimml", "dmil"))
RATES = {"*": {"encoder": 0.5, "partitioner": 2.0, "uni": 1.5, "paired": 0.75, "decoder": 1.25, "head": 1.0}}
CLOCKS = {False: "wall", True: "time of the processor"}
PRODUCTS, WRAPPED = "bare products", "torch.compile, cpp_wrapper"
CAPTURED, COMPILED, PROGRAM = "ours, CUDA graph", "ours, torch.compile", "ours, train.compile"
OURS = "MultiRateAdamW"
SMALL = 64  # rows, up to which calls are most of a step
# a rate at which nothing is learned: at 1e-3 the forms were slower the more often their model had learned the batch,
# probably since its gradients become too small to be normal numbers, on which arithmetic is slow
RATE, DECAY, LARGEST_NORM = 1e-9, 1e-2, 1.0
OPTIMIZERS: dict[str, Callable[[list[dict]], torch.optim.Optimizer]] = {
    "torch AdamW, fused": lambda groups: torch.optim.AdamW(groups, weight_decay=DECAY, fused=True),
    OURS: lambda groups: MultiRateAdamW(groups, weight_decay=DECAY, max_norm=LARGEST_NORM),
}


# kind of work -> parts of the names of ops that do it; the first kind that fits
KINDS = {
    "optimizer": ("Optimizer.step",),
    "products": ("linear", "addmm", "mm", "mlp", "reconstruction"),
    "gates": ("partition",),
    "losses": ("info_nce", "cross_entropy", "log_softmax", "nll_loss"),
    "norms": ("layer_norm",),
}
OTHER, BETWEEN, WHOLE = "other ops", "between ops", "steps"


@dataclass(frozen=True)
class Form:
    """One way to write the model: its module, and what leaves the gradients of a batch there and returns the loss."""

    model: nn.Module
    gradients: Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """A training step, and what drops the gradients that it leaves."""

    run: Callable[[], object]
    clear: Callable[[], object]


def models(op: str, d: int) -> tuple[Method, nn.Module]:
    """The method in the stage that has most to do, and the same written with ``torch.nn`` alone."""
    name, _, gate = op.partition(" ")
    # its paper, and so the plain form, has two
    modalities = MODALITIES[:2] if name == "dmil" else MODALITIES
    spec = DataSpec({m: ModalitySpec(d) for m in modalities}, "classification", CLASSES)
    settings = PgMConfig(gate=gate) if name == "pgm" else METHODS[name].config_class()
    torch.manual_seed(0)
    ours = build(name, spec, ModelConfig(dim=d, hidden=d, dropout=0.0), settings)
    with torch.no_grad():
        for parameter in ours.parameters():
            # some layers start as zeros, behind which there is no gradient to compare
            parameter.add_(torch.randn_like(parameter), alpha=0.3 * d**-0.5)
    if name == "pgm":
        return ours, PlainPgM(ours)
    if name == "dmil":
        ours.begin_stage(JOINT)
        return ours, PlainDMIL(ours)
    return _distilling(ours), PlainDIMML(ours)


def _distilling(method: Method) -> Method:
    """After the warm-up, with half of its dimensions effective in each modality."""
    method.effective.copy_(torch.rand(method.effective.shape) < 0.5)
    method.measured.fill_(True)
    method.begin_stage(0)
    method.begin_epoch(0, method.config.warmup, lambda: iter(()))
    return method


def forms(op: str, rows: int, d: int, device: torch.device) -> dict[str, Form]:
    """name -> form, all with the same parameters and on the same batch."""
    ours, plain = (model.to(device) for model in models(op, d))
    batch = Batch(
        inputs={m: torch.randn(rows, d) for m in ours.spec.modalities},
        weight=torch.full((rows,), 1.0 / rows),
        index=torch.arange(rows),
        labels=torch.randint(CLASSES, (rows,)),
    ).to(device)

    def plainly(run: Callable[..., Tensor]) -> Form:
        return Form(plain, lambda: _backward(run(batch.inputs, batch.labels)))

    def ours_by(model: nn.Module, run: Callable[[Batch], object]) -> Form:
        return Form(model, lambda: _backward(run(batch).losses["total"]))

    found = {"eager": plainly(plain)}
    if device.type == "cuda":
        own = copy.deepcopy(ours)  # whose gradients no other step drops
        found["torch.compile"] = plainly(torch.compile(plain, mode="reduce-overhead"))
        return found | {"ours": ours_by(ours, ours), CAPTURED: ours_by(own, own)}
    program = CompiledStep(ours, ours.parameters(), rows, "fp32")
    found |= {
        "torch.compile": plainly(torch.compile(plain)),
        "ours": ours_by(ours, ours),
        PROGRAM: Form(ours, lambda: program(batch)["total"]),
    }
    if rows <= SMALL:
        found[WRAPPED] = plainly(torch.compile(plain, options={"cpp_wrapper": True}))
        found[COMPILED] = ours_by(ours, torch.compile(ours))
    return found


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


def check(found: dict[str, Form], op: str) -> None:
    """Every form has the loss of the plain model, and its gradients.

    Raises:
        AssertionError: one differs.
    """
    if op == "dmil":
        return _check_drawn(found)
    expected = None
    for form in found.values():
        form.model.zero_grad()
        got = {"loss": form.gradients().clone(), **_gradients(form.model)}
        form.model.zero_grad()
        expected = expected or got
        # under other names where the plain model has no such layer
        for name in expected.keys() & got.keys():
            a, b = got[name], expected[name]
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name, of the encoders and of what writes the gates."""
    named = dict(model.named_modules())
    parts = {"encoders": named["encoders"], "gates": named.get("gates") or named.get("block.partitioners")}
    found = {}
    for part, module in parts.items():
        if module is not None:
            found |= {f"{part}.{i}": p.grad.clone() for i, p in enumerate(module.parameters())}
    return found


def _check_drawn(found: dict[str, Form], draws: int = 100) -> None:
    """Of models that draw noise: the mean loss of as many steps, within six of its standard errors."""
    drawn = {name: torch.stack([form.gradients().clone() for _ in range(draws)]) for name, form in found.items()}
    for form in found.values():
        form.model.zero_grad()
    expected = drawn["eager"]
    for name, losses in drawn.items():
        error = ((losses.var() + expected.var()) / draws).sqrt()
        assert (losses.mean() - expected.mean()).abs() < 6 * error, (name, losses.mean(), expected.mean(), error)


def groups(model: nn.Module) -> list[dict]:
    """A rate for each part that the model has."""
    parts = {part for _, part in parameter_parts(model).values()}
    rates = {"*": {part: rate for part, rate in RATES["*"].items() if part in parts}}
    return multi_rate_groups(model, RATE, rates, default=1.0)


def training_step(form: Form, optimizer: torch.optim.Optimizer, captured: bool = False) -> Step:
    """A step as a training loop writes it, or captured in a CUDA graph."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run() -> None:
        # a captured step writes to the same gradients each time
        optimizer.zero_grad(set_to_none=not captured)
        form.gradients()
        if not isinstance(optimizer, MultiRateAdamW):
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
        optimizer.step()

    if captured:
        return Step(capture(run), lambda: None)
    return Step(run, optimizer.zero_grad)


def capture(run: Callable[[], object], warm_up: int = 3) -> Callable[[], object]:
    """``run`` as a CUDA graph, after steps that make its state, tables and gradients."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def bare_products(plain: nn.Module, gradients: Callable[[], Tensor], rows: int, d: int) -> Step:
    """Products of the linear layers and of the losses between pairs of modalities, forward and for their gradients, on
    operands that are there already; the data has no gradient."""
    shapes: list[tuple[nn.Linear, int, bool]] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, given, _: shapes.append((layer, len(given[0]), given[0].requires_grad))
        )
        for layer in plain.modules()
        if isinstance(layer, nn.Linear)
    ]
    gradients()
    for hook in hooks:
        hook.remove()
    plain.zero_grad()
    device = next(plain.parameters()).device

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    work = []
    for layer, count, needed in shapes:
        n, k, m = count, layer.in_features, layer.out_features
        x, w, y = made(n, k), made(m, k), made(n, m)
        work += [(x, w.t(), made(n, m)), (y.t(), x, made(m, k)), *([(y, w, made(n, k))] if needed else [])]
    for a, b, both in pairs(plain, rows, d):
        logits = made(rows, rows)
        work += [(a, b.t(), made(rows, rows)), (logits, b, made(rows, b.shape[1]))]
        work += [(logits.t(), a, made(rows, a.shape[1]))] if both else []

    def run() -> None:
        for a, b, out in work:
            torch.mm(a, b, out=out)

    return Step(run, lambda: None)


def pairs(plain: nn.Module, rows: int, d: int) -> list[tuple[Tensor, Tensor, bool]]:
    """Operands of the losses between modalities, and whether both have a gradient."""
    if isinstance(plain, PlainPgM):
        return [(torch.randn(rows, d), torch.randn(rows, d), True) for _ in combinations(MODALITIES, 2)]
    handed = plain.handed.values() if isinstance(plain, PlainDIMML) else ()
    return [(torch.randn(rows, len(dims)), torch.randn(rows, len(dims)), False) for dims in handed]


def measure(op: str, rows: int, d: int, device: torch.device, clock: HostClock | None) -> list[dict]:
    """Rows of one case: every form with every optimizer."""
    torch.compiler.reset()
    found = forms(op, rows, d, device)
    check(found, op)
    steps = {
        (name, kind): training_step(form, make(groups(form.model)), name == CAPTURED)
        for name, form in found.items()
        for kind, make in OPTIMIZERS.items()
        if (kind == OURS) == name.startswith("ours") or (rows <= SMALL and name != CAPTURED)
    }
    eager = found["eager"]
    steps[PRODUCTS, "none"] = bare_products(eager.model, eager.gradients, rows, d)
    timings = harness.interleaved({key: step.run for key, step in steps.items()}, device, clock)
    # the best that PyTorch has, by itself and with its own optimizer
    best = min(
        timings[name, "torch AdamW, fused"].median for name in (WRAPPED, "torch.compile", "eager") if name in found
    )
    measured = []
    for (name, kind), timing in timings.items():
        step = steps[name, kind]
        counts = harness.count(step.run, device, clear=step.clear)
        row = harness.as_row(
            timing,
            counts,
            op=op,
            variant=name,
            backend=backends.chosen("partition", device.type) if name.startswith("ours") else "none",
            optimizer=kind,
            dtype="float32",
            shape={"batch": rows, "modalities": len(eager.model.encoders), "d": d},
            kind="training step",
            times_best=round(best / timing.median, 2),
        )
        measured.append(row)
        print(
            f"{op:12} B={rows:<5} d={d:<4} {name:27} {kind:19} {timing.median:8.2f} ms "
            f"({timing.p20:.2f} to {timing.p80:.2f})  {row['times_best']:.2f}x torch's best  "
            f"{counts.ops} ops  {counts.host_reads} host reads  {counts.peak_bytes / 2**20:.1f} MiB",
            flush=True,
        )
    return measured


def shares(op: str, rows: int, d: int, device: torch.device) -> dict:
    """Where an eager step of ours spends its time on the host, by torch's profiler: percent inside of ops of each kind,
    and between them, which is Python, autograd and the calls themselves."""
    form = forms(op, rows, d, device)["ours"]
    step = training_step(form, OPTIMIZERS[OURS](groups(form.model)))
    count = max(3, 50 * SMALL // rows)
    for _ in range(harness.WARM_UP):
        step.run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with torch.profiler.record_function(WHOLE):
            for _ in range(count):
                step.run()
    took = dict.fromkeys((WHOLE, *KINDS, OTHER), 0.0)
    for event in profile.events():
        if event.name == WHOLE:
            took[WHOLE] += event.cpu_time_total
        elif _is_outermost(event):
            took[_kind(event.name)] += event.cpu_time_total
    whole = took.pop(WHOLE)
    percent = {kind: round(100 * spent / whole, 1) for kind, spent in took.items()}
    percent[BETWEEN] = round(100 - sum(percent.values()), 1)
    shape = {"batch": rows, "modalities": len(form.model.encoders), "d": d}
    row = {"op": op, "shape": shape, "ms": round(whole / 1e3 / count, 3), "percent": percent}
    print(row, flush=True)
    return row


def _kind(name: str) -> str:
    own = name.rpartition("::")[2]
    return next((kind for kind, names in KINDS.items() if any(part in own for part in names)), OTHER)


def _is_outermost(event) -> bool:
    """Whether it is an op, or a step of the optimizer, that no other one calls."""
    if not _counts(event.name):
        return False
    while (event := event.cpu_parent) is not None:
        if _counts(event.name):
            return False
    return True


def _counts(name: str) -> bool:
    return name.startswith(("aten::", "pgm_fast::", "Optimizer.step"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(CASES), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor", action="store_true", help="count the processor's time, for --threads 1")
    parser.add_argument("--shares", action="store_true", help="only where an eager step of ours spends its time")
    parser.add_argument("--cases", nargs="+", choices=sorted({case[0] for case in CASES["cpu"]}), default=[])
    parser.add_argument("--rows", nargs="+", type=int, default=[], help="these batches alone")
    parser.add_argument("--quick", action="store_true", help="a small size, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    wanted = [
        case
        for case in CASES[device.type]
        if case[0] in (arguments.cases or [case[0]]) and case[1] in (arguments.rows or [case[1]])
    ]
    if arguments.shares:
        print(harness.write("step_shares", device, [shares(*case, device) for case in wanted]))
        return
    clock = ProcessorClock() if arguments.processor else None
    facts = {"clock": CLOCKS[arguments.processor]}
    kept = harness.earlier("step", device, **facts) if len(wanted) < len(CASES[device.type]) else []
    rows = [row for row in kept if (row["op"], row["shape"]["batch"], row["shape"]["d"]) not in wanted]
    for case in QUICK if arguments.quick else wanted:
        rows += measure(*case, device, clock)
        if not arguments.quick:
            # at every size, so that a run that is stopped leaves what it measured
            print(harness.write("step", device, rows, **facts))


if __name__ == "__main__":
    main()
