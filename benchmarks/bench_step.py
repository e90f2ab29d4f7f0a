"""A whole training step of PgM, forward, all losses, backward, clipping, optimizer: plain PyTorch, torch.compile of it
and this project's ops, each with the same optimizers, in one run.

    python benchmarks/bench_step.py [--device cpu|cuda] [--threads 2] [--processor] [--rows 64 1024] [--quick]
    python benchmarks/bench_step.py --shares     # where an eager step of ours spends its time

Three modalities, ten classes, the defaults of the method but for the gate and dropout, which is off, and a learning
rate per part of the model. ``eager`` is the model written with ``torch.nn`` alone (plain_pgm.py), ``torch.compile``
that model compiled, ``cpp_wrapper`` the same without Python between its kernels, ``ours`` the method as it is trained
here, by itself, under torch.compile, and with the engine's ``train.compile``. On a CUDA device torch.compile runs in
its mode ``reduce-overhead``, and ``ours`` is also captured in a CUDA graph, whole. ``bare products`` are the matrix
products of a step and nothing else. Correctness comes first: all forms have the same loss and the same gradients in the
encoders, where the reverse pass ends, and in the gates. In large batches calls are a small part, and so is the
optimizer: each form has the one of its own side, and forms that save calls are left out. With ``--processor`` a step is
what it takes of the processor: on a machine that has other work its wall clock measures that.
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
from plain_pgm import PlainPgM
from torch import Tensor, nn

from pgm_fast import backends
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import ModelConfig, PgMConfig, build
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups
from pgm_fast.train.compiled import CompiledStep
from pgm_fast.train.json_files import read_json

MODALITIES = ("text", "audio", "vision")
CLASSES = 10
CASES = {  # gate, batch, width of inputs and all features
    "cpu": (("boundary", 64, 128), ("single", 64, 128), ("dual", 64, 128), ("boundary", 1024, 512)),
    "cuda": (("boundary", 64, 128), ("single", 64, 128), ("boundary", 1024, 512)),
}
QUICK = (("boundary", 16, 32),)
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
    """One way to write the model: its module, what leaves the gradients of a batch there and returns the loss, and
    where its gates are."""

    model: nn.Module
    gradients: Callable[[], Tensor]
    gates: nn.Module

    def checked(self) -> list[nn.Parameter]:
        return [*self.model.encoders.parameters(), *self.gates.parameters()]


@dataclass(frozen=True)
class Step:
    """A training step, and what drops the gradients that it leaves."""

    run: Callable[[], object]
    clear: Callable[[], object]


def forms(gate: str, rows: int, d: int, device: torch.device) -> dict[str, Form]:
    """name -> form, all with the same parameters and on the same batch."""
    spec = DataSpec({m: ModalitySpec(d) for m in MODALITIES}, "classification", CLASSES)
    torch.manual_seed(0)
    ours = build("pgm", spec, ModelConfig(dim=d, hidden=d, dropout=0.0), PgMConfig(gate=gate)).to(device)
    with torch.no_grad():
        for parameter in ours.parameters():
            # some layers start as zeros, behind which there is no gradient to compare
            parameter.add_(torch.randn_like(parameter), alpha=0.3 * d**-0.5)
    batch = Batch(
        inputs={m: torch.randn(rows, d) for m in MODALITIES},
        weight=torch.full((rows,), 1.0 / rows),
        index=torch.arange(rows),
        labels=torch.randint(CLASSES, (rows,)),
    ).to(device)
    plain = PlainPgM(ours).to(device)

    def plainly(run: Callable[..., Tensor]) -> Form:
        return Form(plain, lambda: _backward(run(batch.inputs, batch.labels)), plain.gates)

    def ours_by(model: nn.Module, run: Callable[[Batch], object]) -> Form:
        return Form(model, lambda: _backward(run(batch).losses["total"]), model.block.partitioners)

    found = {"eager": plainly(plain)}
    if device.type == "cuda":
        own = copy.deepcopy(ours)  # whose gradients no other step drops
        found["torch.compile"] = plainly(torch.compile(plain, mode="reduce-overhead"))
        return found | {"ours": ours_by(ours, ours), CAPTURED: ours_by(own, own)}
    program = CompiledStep(ours, ours.parameters(), rows, "fp32")
    found |= {
        "torch.compile": plainly(torch.compile(plain)),
        "ours": ours_by(ours, ours),
        PROGRAM: Form(ours, lambda: program(batch)["total"], ours.block.partitioners),
    }
    if rows <= SMALL:
        found[WRAPPED] = plainly(torch.compile(plain, options={"cpp_wrapper": True}))
        found[COMPILED] = ours_by(ours, torch.compile(ours))
    return found


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


def check(found: dict[str, Form]) -> None:
    """Loss and gradients of encoders and gates in every form.

    Raises:
        AssertionError: one differs from those of the plain model.
    """
    expected = None
    for form in found.values():
        form.model.zero_grad()
        got = [form.gradients().clone(), *(p.grad.clone() for p in form.checked())]
        form.model.zero_grad()
        expected = expected or got
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


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


def bare_products(plain: PlainPgM, gradients: Callable[[], Tensor], rows: int, d: int) -> Step:
    """Products of the linear layers and of the alignment, forward and for both gradients, on operands that are there
    already; the data has no gradient."""
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
    for _ in combinations(MODALITIES, 2):
        a, b, logits = made(rows, d), made(rows, d), made(rows, rows)
        work += [(a, b.t(), made(rows, rows)), (logits, b, made(rows, d)), (logits.t(), a, made(rows, d))]

    def run() -> None:
        for a, b, out in work:
            torch.mm(a, b, out=out)

    return Step(run, lambda: None)


def measure(gate: str, rows: int, d: int, device: torch.device, clock: HostClock | None) -> list[dict]:
    """Rows of one gate and size: every form with every optimizer."""
    torch.compiler.reset()
    found = forms(gate, rows, d, device)
    check(found)
    steps = {
        (name, kind): training_step(form, make(multi_rate_groups(form.model, RATE, RATES)), name == CAPTURED)
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
            op=f"pgm {gate}",
            variant=name,
            backend=backends.chosen("partition", device.type) if name.startswith("ours") else "none",
            optimizer=kind,
            dtype="float32",
            shape={"batch": rows, "modalities": len(MODALITIES), "d": d},
            kind="training step",
            times_best=round(best / timing.median, 2),
        )
        measured.append(row)
        print(
            f"pgm {gate:8} B={rows:<5} d={d:<4} {name:27} {kind:19} {timing.median:8.2f} ms "
            f"({timing.p20:.2f} to {timing.p80:.2f})  {row['times_best']:.2f}x torch's best  "
            f"{counts.ops} ops  {counts.host_reads} host reads  {counts.peak_bytes / 2**20:.1f} MiB",
            flush=True,
        )
    return measured


def shares(gate: str, rows: int, d: int, device: torch.device) -> dict:
    """Where an eager step of ours spends its time on the host, by torch's profiler: percent inside of ops of each kind,
    and between them, which is Python, autograd and the calls themselves."""
    form = forms(gate, rows, d, device)["ours"]
    step = training_step(form, OPTIMIZERS[OURS](multi_rate_groups(form.model, RATE, RATES)))
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
    shape = {"batch": rows, "modalities": len(MODALITIES), "d": d}
    row = {"op": f"pgm {gate}", "shape": shape, "ms": round(whole / 1e3 / count, 3), "percent": percent}
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
    parser.add_argument("--rows", nargs="+", type=int, default=[], help="these batches alone; others stay in the file")
    parser.add_argument("--quick", action="store_true", help="a small size, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    cases = [case for case in CASES[device.type] if not arguments.rows or case[1] in arguments.rows]
    where = harness.RESULTS / arguments.device / "step.json"
    rows = read_json(where)["rows"] if arguments.rows and where.exists() else []
    rows = [row for row in rows if row["shape"]["batch"] not in arguments.rows]
    if arguments.shares:
        print(harness.write("step_shares", device, [shares(*case, device) for case in cases]))
        return
    clock = ProcessorClock() if arguments.processor else None
    for case in QUICK if arguments.quick else cases:
        rows += measure(*case, device, clock)
        if not arguments.quick:
            # at every size, so that a run that is stopped leaves what it measured
            print(harness.write("step", device, rows, clock=CLOCKS[arguments.processor]))


if __name__ == "__main__":
    main()
