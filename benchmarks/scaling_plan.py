"""A plan of larger machines: bytes and operations of a step, counted, and what links and devices would make of them.

    python benchmarks/scaling_plan.py

Counted on tensors without memory (torch's FakeTensorMode), with the ops as their plain formula: parameters, what a step
keeps for its backward pass, floating-point operations of matrix products and convolutions. Nothing of it was run on a
GPU. Writes ``results/cpu/scaling_plan.json``, from which ``scaling_page.py`` computes the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import harness
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pgm_fast import backends
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import build
from pgm_fast.train.configure import make_config

CLASSES = 10
WIDE = {"model.encoder": "transformer", "model.layers": 24, "model.hidden": 1024, "model.dim": 1024, "model.heads": 16}
PICTURES = {"video": ModalitySpec(3 * 224**2, True, "frames"), "audio": ModalitySpec(257, True, "spectrogram")}


@dataclass(frozen=True)
class Case:
    """A model and what one device sees of it in a step: ``batch`` samples, with ``steps`` of each sequence."""

    settings: dict[str, Any]
    modalities: dict[str, ModalitySpec]
    batch: int
    steps: dict[str, int]


CASES = {
    "PgM, three vectors, d 128": Case(
        {"method": "pgm", "model.dim": 128, "model.hidden": 128},
        {m: ModalitySpec(128) for m in ("text", "audio", "vision")},
        64,
        {},
    ),
    "DMIL, picture and sound, two ResNet-18": Case(
        {"preset": "dmil/crema-d"}, PICTURES, 64, {"video": 1, "audio": 188}
    ),
    "PgM, three transformers of 24 layers, width 1024": Case(
        {"method": "pgm", **WIDE},
        {m: ModalitySpec(1024, True) for m in ("text", "audio", "vision")},
        8,
        dict.fromkeys(("text", "audio", "vision"), 512),
    ),
}


def count(name: str, case: Case) -> dict[str, Any]:
    """Of one step on one device."""
    config = make_config(None, {"train.device": "cpu", **case.settings})
    spec = DataSpec(case.modalities, "classification", CLASSES)
    rows = case.batch
    with torch.device("meta"):
        method = build(config.method, spec, config.model, getattr(config, config.method)).train()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with FakeTensorMode(allow_non_fake_inputs=True), backends.backend("torch"):
        method.to_empty(device="cpu")
        last = len(method.stages(1e-3)) - 1
        stage = method.stages(1e-3)[last]
        method.begin_stage(last)
        trained = [p for group in stage.groups for p in group["params"]]
        inputs = {
            m: torch.randn(rows, *([case.steps[m]] if s.sequence else []), s.dim) for m, s in case.modalities.items()
        }
        lengths = {m: torch.full((rows,), steps) for m, steps in case.steps.items()}
        labels = torch.randint(CLASSES, (rows,))
        batch = Batch(inputs, torch.full((rows,), 1 / rows), torch.arange(rows), lengths, labels)
        owned = {p.untyped_storage()._cdata for p in (*method.parameters(), *inputs.values())}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in owned:
                kept[storage._cdata] = storage  # held, so that no other gets its number
            return tensor

        with FlopCounterMode(display=False) as operations:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                total = method(batch).losses["total"]
            total.backward()
    return {
        "case": name,
        "method": config.method,
        "settings": case.settings,
        "batch": rows,
        "stage": stage.name,
        "parameters": sum(p.numel() for p in trained),
        "kept_bytes": sum(storage.nbytes() for storage in kept.values()),
        "flop": operations.get_total_flops(),
    }


def main() -> None:
    rows = [count(name, case) for name, case in CASES.items()]
    print(harness.write("scaling_plan", torch.device("cpu"), rows))


if __name__ == "__main__":
    main()
