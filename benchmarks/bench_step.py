"""A whole training step of PgM, forward, all losses, backward, clipping, optimizer: plain PyTorch, torch.compile of it
and this project's ops, each with the same optimizers, in one run.

    python benchmarks/bench_step.py [--device cpu|cuda] [--threads 2] [--quick]

Three modalities, ten classes, a learning rate per part of the model, no dropout. ``eager`` is the model written with
``torch.nn`` alone (plain_pgm.py), ``ours`` the method as it is trained here, on a CPU by itself and under
torch.compile. On a CUDA device torch.compile runs in its mode ``reduce-overhead``, and ``ours`` is also captured in a
CUDA graph, whole. Correctness comes first: all forms have the same loss and the same gradients in the encoders, where
the reverse pass ends.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import harness
import torch
from plain_pgm import PlainPgM
from torch import Tensor, nn

from pgm_fast import backends
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import ModelConfig, Output, PgMConfig, build
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups

MODALITIES = ("text", "audio", "vision")
# the form that PlainPgM writes out
EARLIER = {"identity_start": False, "interaction": "attention", "uni_weight": 1.0}
CLASSES = 10
CASES = {  # gate, batch, width of inputs and all features
    "cpu": (("single", 64, 128), ("dual", 64, 128), ("single", 1024, 512)),
    "cuda": (("single", 64, 128), ("single", 1024, 512)),
}
QUICK = (("single", 16, 32),)
RATES = {"*": {"encoder": 0.5, "partitioner": 2.0, "uni": 1.5, "paired": 0.75, "decoder": 1.25, "head": 1.0}}
CAPTURED, COMPILED = "ours, CUDA graph", "ours, torch.compile"
# a rate at which nothing is learned: at 1e-3 the forms were slower the more often their model had learned the batch,
# probably since its gradients become too small to be normal numbers, on which arithmetic is slow
RATE, DECAY, LARGEST_NORM = 1e-9, 1e-2, 1.0
OPTIMIZERS: dict[str, Callable[[list[dict]], torch.optim.Optimizer]] = {
    "torch AdamW": lambda groups: torch.optim.AdamW(groups, weight_decay=DECAY),
    "torch AdamW, fused": lambda groups: torch.optim.AdamW(groups, weight_decay=DECAY, fused=True),
    "MultiRateAdamW": lambda groups: MultiRateAdamW(groups, weight_decay=DECAY, max_norm=LARGEST_NORM),
}


@dataclass(frozen=True)
class Form:
    """One way to write the model: its module, and its loss on the batch."""

    model: nn.Module
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """A training step, and what drops the gradients that it leaves."""

    run: Callable[[], object]
    clear: Callable[[], object]


def forms(gate: str, rows: int, d: int, device: torch.device) -> dict[str, Form]:
    """name -> form, all with the same parameters and on the same batch."""
    spec = DataSpec({m: ModalitySpec(d) for m in MODALITIES}, "classification", CLASSES)
    torch.manual_seed(0)
    model = ModelConfig(dim=d, hidden=d, dropout=0.0, normalize=False)
    ours = build("pgm", spec, model, PgMConfig(**EARLIER, gate=gate)).to(device)
    batch = Batch(
        inputs={m: torch.randn(rows, d) for m in MODALITIES},
        weight=torch.full((rows,), 1.0 / rows),
        index=torch.arange(rows),
        labels=torch.randint(CLASSES, (rows,)),
    ).to(device)
    plain = PlainPgM(ours).to(device)
    compiled = torch.compile(plain, mode="reduce-overhead" if device.type == "cuda" else None)

    def ours_on(model: nn.Module, run: Callable[[Batch], Output]) -> Form:
        return Form(model, lambda: run(batch).losses["total"])

    found = {
        "eager": Form(plain, lambda: plain(batch.inputs, batch.labels)),
        "torch.compile": Form(plain, lambda: compiled(batch.inputs, batch.labels)),
        "ours": ours_on(ours, ours),
    }
    if device.type == "cuda":
        own = copy.deepcopy(ours)  # whose gradients no other step drops
        found[CAPTURED] = ours_on(own, own)
    else:
        found[COMPILED] = ours_on(ours, torch.compile(ours))
    return found


def check(found: dict[str, Form]) -> None:
    """Loss and gradients of the encoders in every form.

    Raises:
        AssertionError: one differs from those of the plain model.
    """
    expected = None
    for form in found.values():
        loss = form.loss()
        got = loss.detach().clone(), *torch.autograd.grad(loss, list(form.model.encoders.parameters()))
        expected = expected or got
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def training_step(form: Form, optimizer: torch.optim.Optimizer, captured: bool = False) -> Step:
    """A step as a training loop writes it, or captured in a CUDA graph."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run() -> None:
        # a captured step writes to the same gradients each time
        optimizer.zero_grad(set_to_none=not captured)
        form.loss().backward()
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


def measure(gate: str, rows: int, d: int, device: torch.device) -> list[dict]:
    """Rows of one gate and size: every form with every optimizer."""
    torch.compiler.reset()
    found = forms(gate, rows, d, device)
    check(found)
    steps = {
        (name, kind): training_step(form, make(multi_rate_groups(form.model, RATE, RATES)), name == CAPTURED)
        for name, form in found.items()
        for kind, make in OPTIMIZERS.items()
        if kind == "MultiRateAdamW" or name != CAPTURED
    }
    timings = harness.interleaved({key: step.run for key, step in steps.items()}, device)
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
            times_eager=round(timings["eager", kind].median / timing.median, 2),
            times_compile=round(timings["torch.compile", kind].median / timing.median, 2),
        )
        measured.append(row)
        print(
            f"pgm {gate:7} B={rows:<5} d={d:<4} {name:18} {kind:19} {timing.median:8.2f} ms "
            f"({timing.p20:.2f} to {timing.p80:.2f})  {row['times_eager']:.2f}x eager  "
            f"{row['times_compile']:.2f}x compile  {counts.ops} ops  {counts.host_reads} host reads  "
            f"{counts.peak_bytes / 2**20:.1f} MiB",
            flush=True,
        )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(CASES), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a small size, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    for case in QUICK if arguments.quick else CASES[device.type]:
        rows += measure(*case, device)
        if not arguments.quick:
            # at every size, so that a run that is stopped leaves what it measured
            print(harness.write("step", device, rows))


if __name__ == "__main__":
    main()
