"""Does training wait for sounds and pictures? Samples per second with files decoded by processes, and from memory.

    python benchmarks/media_input.py [--workers 1] [--rounds 5]

Clips as CREMA-D's are made (2.5 s at 16 kHz, ten pictures of 480 x 360) and taken as the preset ``dmil/crema-d`` takes
them: one random picture, a random part of it, 3 s of sound. Two ResNet-18 learn on one thread, in turn from batches
that are kept in memory and from files, an epoch of each per round. Writes ``results/methods/media_input.json``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pgm_fast import presets
from pgm_fast.data import Batch, Loader, Normalizer, load
from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.nn.resnet import ResNetEncoder
from pgm_fast.train.run.json_files import read_json, write_json

JSON = Path(__file__).resolve().parent / "results" / "methods" / "media_input.json"
PRESET = "dmil/crema-d"
CLIPS, BATCH, PICTURES = 32, 8, 10


def make_clips(folder: Path) -> None:
    """Smooth pictures and noise: they take the decoders as long as real ones."""
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        names = [f"{split}{k}" for k in range(CLIPS if split == "train" else 2)]
        for name in names:
            soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(40_000), 16_000, subtype="PCM_16")
            (folder / name).mkdir()
            for step in range(PICTURES):
                coarse = Image.fromarray(rng.integers(0, 256, (45, 60, 3), np.uint8))
                coarse.resize((480, 360), Image.Resampling.BICUBIC).save(folder / name / f"{step}.jpg", quality=90)
        lines = [f"{name},{'ab'[k % 2]}" for k, name in enumerate(names)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


class Model(nn.Module):
    """A ResNet-18 per modality and a head on both."""

    def __init__(self, spec):
        super().__init__()
        kinds = {m: (of.kind, of.dim) for m, of in spec.modalities.items()}
        self.encoders = nn.ModuleDict({m: ResNetEncoder(*of, 512, projection=False) for m, of in kinds.items()})
        self.head = nn.Linear(1024, 2)

    def forward(self, batch: Batch):
        return self.head(torch.cat([net(batch.inputs[m], batch.lengths[m]) for m, net in self.encoders.items()], -1))


def epoch(model: Model, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> float:
    """Samples per second, waiting for the first batch included."""
    begin, count = time.perf_counter(), 0
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch.labels).backward()
        optimizer.step()
        count += len(batch.labels)
    return count / (time.perf_counter() - begin)


def measure(workers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Samples per second of every round; an epoch of each kind before them is not counted."""
    features = load(folder, media=presets.read(PRESET, "train")["media"])
    settings = {"batch_size": BATCH, "normalizer": Normalizer.fit(features), "augment": True, "shuffle": True}
    loader = Loader(features, "train", workers=workers, **settings)
    torch.manual_seed(0)
    model = Model(features.spec)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    kept = list(loader.batches(0))
    epoch(model, optimizer, kept[:1])
    found: dict[str, list[float]] = {"kept": [], "files": []}
    for number in range(rounds):
        found["kept"].append(epoch(model, optimizer, kept))
        found["files"].append(epoch(model, optimizer, loader.batches(1 + number)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_clips(Path(folder))
        rates = measure(args.workers, args.rounds, Path(folder))
    content = {
        "preset": PRESET,
        "workers": args.workers,
        "samples_per_s": rates,
        "processor": processor_name(),
        "versions": versions(),
        "commit": git_commit(),
        "date": date.today().isoformat(),
    }
    write_json(JSON, content)
    print(sentence())


def sentence() -> str:
    """The result in words, from the result file."""
    content = read_json(JSON)
    rates = content["samples_per_s"]
    parts = [files / kept for files, kept in zip(rates["files"], rates["kept"], strict=True)]
    files, kept = (statistics.median(rates[key]) for key in ("files", "kept"))
    return (
        f"Two ResNet-18 on one thread of {content['processor']}, inputs as `{content['preset']}` has them: "
        f"{files:.2f} samples per second from files with `train.workers={content['workers']}`, {kept:.2f} from memory, "
        f"{100 * statistics.median(parts):.0f} % (median of {len(parts)} rounds, {100 * min(parts):.0f} to "
        f"{100 * max(parts):.0f} %; `python benchmarks/media_input.py`)."
    )


if __name__ == "__main__":
    main()
