"""Does a trained model lose or gain by having PgM attached to it?

    python benchmarks/attached.py [--seeds 0 1 2 3 4 5] [--sets digits mfeat.npz]

A late-fusion and a cross-attention model are trained, each on random splits. Then training goes on twice from the best
epoch: as it is, and with :func:`pgm_fast.nn.attach` and task heads. Learning rate and epoch of each are chosen on the
validation split. Writes ``results/methods/attached.json`` and, from it alone, ``attached.md``. Data files are looked
for in ``PGM_FAST_DATA``, else in ``data/``; a set whose file is missing is skipped.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgm_fast.data import load
from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.nn import attach, collect_losses
from pgm_fast.optim import MultiRateAdamW
from pgm_fast.study.intervals import paired_interval
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "attached.json", RESULTS / "attached.md"
SETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "mfeat.npz": {"modalities": ["fou", "mor"]},
    "landuse21.npz": {},
}
WIDTH, BATCH = 64, 64
EPOCHS = {"before": 20, "after": 15}
RATES = (3e-4, 1e-3, 3e-3)
Views = dict[str, Tensor]


class LateFusion(nn.Module):
    """An encoder per modality, one head on all."""

    def __init__(self, widths: Mapping[str, int], classes: int):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(d, 2 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * WIDTH, WIDTH))
                for m, d in widths.items()
            }
        )
        self.head = nn.Sequential(nn.Linear(WIDTH * len(widths), 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, classes))

    def forward(self, views: Views) -> Tensor:
        return self.head(torch.cat([self.encoders[m](x) for m, x in views.items()], dim=-1))


class CrossAttention(LateFusion):
    """Modalities read each other before the head."""

    def __init__(self, widths: Mapping[str, int], classes: int):
        super().__init__(widths, classes)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, views: Views) -> Tensor:
        h = torch.stack([self.encoders[m](x) for m, x in views.items()], dim=1)
        return self.head((h + self.attention(h, h, h, need_weights=False)[0]).flatten(1))


MODELS = {"late fusion": LateFusion, "cross-attention": CrossAttention}


def read(source: str, seed: int) -> dict[str, tuple[Views, Tensor]]:
    """split -> standardised views and labels, on a random split of its own."""
    path = source if not source.endswith(".npz") else str(data_folder() / source)
    features = load(path, resplit="all", resplit_seed=seed, **SETS[source])
    train = features.rows("train")
    splits = {}
    for split in ("train", "valid", "test"):
        rows = features.rows(split)
        views = {}
        for m, values in features.modalities.items():
            mean, deviation = values[train].mean(0), values[train].std(0) + 1e-6
            views[m] = torch.from_numpy((values[rows] - mean) / deviation).float()
        splits[split] = views, torch.from_numpy(features.labels[rows])
    return splits


def data_folder() -> Path:
    return Path(os.environ.get("PGM_FAST_DATA", "data"))


def accuracy(model: nn.Module, split: tuple[Views, Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(split[0]).argmax(-1) == split[1]).float().mean())


def train(model: nn.Module, splits: Mapping[str, tuple[Views, Tensor]], lr: float, epochs: int, seed: int) -> float:
    """Leaves the model at its best epoch, the state it came in counted as one; the validation accuracy there."""
    views, labels = splits["train"]
    optimizer = MultiRateAdamW(model.parameters(), lr=lr, weight_decay=0.01, max_norm=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    best, kept = accuracy(model, splits["valid"]), copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            logits = model({m: x[rows] for m, x in views.items()})
            loss = F.cross_entropy(logits, labels[rows])
            if hasattr(model, "pgm"):
                loss = loss + sum(collect_losses(model, labels[rows]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        found = accuracy(model, splits["valid"])
        if found >= best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best


def chosen(make: Any, splits: Mapping[str, tuple[Views, Tensor]], epochs: int, seed: int) -> nn.Module:
    """The model of the rate that is best on validation."""
    tried = []
    for lr in RATES:
        torch.manual_seed(seed)
        model = make()
        tried.append((train(model, splits, lr, epochs, seed), model))
    return max(tried, key=lambda one: one[0])[1]


def measure(source: str, name: str, seed: int) -> dict[str, Any]:
    """Test accuracy of the trained model, of training that goes on, and of training that goes on with PgM."""
    splits = read(source, seed)
    widths = {m: x.shape[1] for m, x in splits["train"][0].items()}
    classes = int(max(labels.max() for _, labels in splits.values())) + 1
    base = chosen(lambda: MODELS[name](widths, classes), splits, EPOCHS["before"], seed)
    paths = {m: f"encoders.{m}" for m in widths}
    plain = chosen(lambda: copy.deepcopy(base), splits, EPOCHS["after"], seed)
    attached = chosen(
        lambda: attach(copy.deepcopy(base), paths, task_heads=classes, dropout=0.1), splits, EPOCHS["after"], seed
    )
    models = {"trained": base, "goes on": plain, "goes on with PgM": attached}
    scores = {arm: accuracy(model, splits["test"]) for arm, model in models.items()}
    return {"set": source.removesuffix(".npz"), "model": name, "seed": seed, "test": scores}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    options = parser.parse_args(arguments)
    runs = []
    for source in options.sets:
        if source.endswith(".npz") and not (data_folder() / source).exists():
            print(f"{source}: skipped, it is not in {data_folder()}; set PGM_FAST_DATA to its folder")
            continue
        for name in MODELS:
            for seed in options.seeds:
                runs.append(measure(source, name, seed))
                print(runs[-1], flush=True)
    facts = {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "versions": versions(),
        "commit": git_commit(RESULTS.parent),
        "epochs": EPOCHS,
        "rates": RATES,
    }
    write_json(JSON, {**facts, "runs": runs})
    with atomic_write(TABLE, "w") as file:
        file.write(table())


def table() -> str:
    """The content of ``attached.md``."""
    runs = read_json(JSON)["runs"]
    lines = [
        "# PgM attached to a trained model",
        "",
        "Test accuracy in percent, mean ± sample standard deviation over random splits; rates and epochs are chosen on",
        "validation. Difference: with PgM against without, paired by split, with its 95 % t-interval. Made by",
        "`python benchmarks/attached.py`.",
        "",
        "| set | model | trained | training goes on | goes on with PgM | n | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for place in dict.fromkeys((run["set"], run["model"]) for run in runs):
        of = [run["test"] for run in runs if (run["set"], run["model"]) == place]
        cells = [_cell([scores[arm] for scores in of]) for arm in of[0]]
        gain = [scores["goes on with PgM"] - scores["goes on"] for scores in of]
        found = paired_interval(gain)
        interval = f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if found["low"] is not None else ""
        lines.append(
            f"| {' | '.join(place)} | {' | '.join(cells)} | {len(of)} | {100 * found['mean']:+.1f}{interval} |"
        )
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
