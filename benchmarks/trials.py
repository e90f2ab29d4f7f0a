"""Does it help PgM? Changes that were thought of, each tried on rows that no test split holds.

    python benchmarks/trials.py [--seeds 0 1 2 3 4] [--sets wiki] [--variants pgm "pgm, teachers"]

The rows of a set's train and valid splits are dealt anew into train, valid and held-out ones, another deal per seed;
its test split is not read. Made sets have fresh rows per seed. Every variant has the same settings,
and its epoch is chosen on validation. The sets are looked for in ``PGM_FAST_DATA``, else in ``data/``. Writes
``results/methods/trials.json``, where runs that are not made again stay, and, from it alone, ``trials.md``.

Variants that are no settings of the engine are here:

- ``auto rates``: the rates of what belongs to one modality follow that modality's own validation loss by the bold
  driver (Battiti, Complex Systems 3, 1989): times 1.25 after an epoch that lowers its best by 1 %, else times 0.5,
  within [1/8, 8];
- ``teachers``: encoders, learners and heads of each modality learn alone for half of the epochs; then all do, held to
  copies of those encoders by their mean squared distance (Du et al., ICML 2023);
- ``residual``: a row counts in the paired loss by what no modality alone knows of its label, 1 - max_m i_m;
- ``permutation``: MCR's greedy game (Kontras et al., NeurIPS 2025) on the task head, at its published weight.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import competition
import numpy as np
import torch
from torch import Tensor

from pgm_fast.data.batch import Batch
from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.methods import METHODS
from pgm_fast.methods.base import Output, Stage
from pgm_fast.methods.components import encode, fuse
from pgm_fast.methods.mcr import GAMES, _constant, divergence, exchange
from pgm_fast.methods.pgm import PgM
from pgm_fast.methods.tasks import task_loss
from pgm_fast.nn.block import BlockOutput
from pgm_fast.nn.calibration import fit_temperature, label_log_likelihood
from pgm_fast.study.intervals import paired_interval
from pgm_fast.train import fit, jobs
from pgm_fast.train.loop import Training
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "trials.json", RESULTS / "trials.md"
DATA = Path(os.environ.get("PGM_FAST_DATA", "data"))
# name -> file, modalities (None for all), rows of validation, rows held out
SETS: dict[str, tuple[str, list[str] | None, int, int]] = {
    "wiki": ("wiki.npz", ["image", "sift", "text", "topics"], 300, 500),
    "landuse21": ("landuse21.npz", None, 250, 325),
    "mfeat fou+mor": ("mfeat.npz", ["fou", "mor"], 250, 300),
}
RUN = {
    "train.lr": 0.004,
    "train.epochs": 12,
    "train.batch_size": 128,
    "train.device": "cpu",
    "train.threads": 1,
    "train.plots": False,
    "train.logger": [],
    "data.modality_dropout": 0.2,
}
_COMPETING = {**competition.RUN, "train.batch_size": 64, "data.modality_dropout": 0.0}
# made sets: name -> what makes the rows, and settings in place of those
MADE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "competition, SGD": (competition.SET, _COMPETING),
    "competition, AdamW": (competition.SET, {**_COMPETING, "train.optimizer": "adamw", "train.lr": 0.001}),
    "thirds": (
        {"kind": "mixture", "n": 2000},
        {"train.epochs": 15, "train.batch_size": 64, "train.lr": 0.001, "data.modality_dropout": 0.0},
    ),
}
# of "thirds": a row in three is told by both modalities alike, by one of them, or only by both together
TRUTH = {"uni_only": 1 / 6, "paired_only": 1 / 3, "shared": 1 / 3, "unused": 1 / 6}
FASTER, SLOWER, LEAST_GAIN, WIDEST = 1.25, 0.5, 0.01, 8.0
GAME_WEIGHT, EXCHANGES = 0.1, 6


class Residual(PgM):
    """Rows count in the paired loss by what is left to know."""

    def _losses(self, batch: Batch, block: BlockOutput, out: Output) -> dict[str, Tensor]:
        losses = super()._losses(batch, block, out)
        logits = {name: z.detach() for name, z in {**out.further, **_own(out)}.items()}
        known = self.calibration.information(logits, batch.labels)
        left = 1 - torch.stack([known[name] for name in _own(out)]).amax(0)
        if batch.presence:
            left = left * self._usable(batch.presence)["paired"]
        weight = batch.weight * left / (batch.weight * left).sum().clamp(min=1e-6)
        paired = task_loss(self.spec.task, out.further["paired"], batch.labels, weight)
        losses["total"] = losses["total"] + self.config.paired_weight * (paired - losses["paired"])
        losses["paired"] = paired
        return losses


class Permutation(PgM):
    """What each modality's decoded representation does to the task head's answer, played for greedily."""

    def _losses(self, batch: Batch, block: BlockOutput, out: Output) -> dict[str, Tensor]:
        losses = super()._losses(batch, block, out)
        if not self.training:
            return losses
        h, k = block.representations, GAMES["greedy"]
        draws = torch.rand(EXCHANGES, device=batch.weight.device)
        with _constant(self.head):
            before = self.head(fuse({m: x.detach() for m, x in h.items()})).detach().repeat(EXCHANGES, 1)
            for m in h:
                counted = (batch.index >= 0) & batch.presence.get(m, batch.index >= 0)
                rows = exchange(counted, draws)
                played = {n: x if n == m else k * x + (1 - k) * x.detach() for n, x in h.items()}
                moved = {n: x[rows] if n == m else x.repeat(EXCHANGES, 1) for n, x in played.items()}
                distance = divergence(self.spec.task, before, self.head(fuse(moved))).view(EXCHANGES, -1).mean(0)
                losses["total"] = losses["total"] - GAME_WEIGHT * (distance * batch.weight_of(m)).sum()
        return losses


class Taught(PgM):
    """Every modality alone at first; then all together, near to what the encoders were."""

    _together = False

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.teachers = copy.deepcopy(self.encoders).requires_grad_(False)

    def stages(self, lr: float) -> list[Stage]:
        (whole,) = super().stages(lr)
        groups = [{**g, "params": [p for p in g["params"] if id(p) not in self._taught()]} for g in whole.groups]
        groups = [g for g in groups if g["params"]]
        first = [g for g in groups if not g["name"].startswith("shared")]
        epochs = RUN["train.epochs"]
        return [
            Stage("alone", first, epochs=epochs - epochs // 2),
            replace(whole, groups=groups, epochs=epochs // 2),
        ]

    def _taught(self) -> set[int]:
        return {id(p) for p in self.teachers.parameters()}

    def begin_stage(self, index: int) -> None:
        self._together = index == 1
        if self._together:
            self.teachers.load_state_dict(self.encoders.state_dict())

    def forward(self, batch: Batch, report: bool = False) -> Output:
        out = super().forward(batch, report)
        if not self.training:
            return out
        if not self._together:
            total = torch.stack([out.losses[name] for name in _own(out)]).mean() * self.config.uni_weight
            out.losses["total"] = total + 0.0 * out.losses["total"]
            return out
        self.teachers.eval()
        with torch.no_grad():
            taught = encode(self.teachers, batch, self.spec, self.model_config)
        h = encode(self.encoders, batch, self.spec, self.model_config)
        far = [((h[m] - taught[m]).square().mean(-1) * batch.weight_of(m)).sum() for m in h]
        out.losses["total"] = out.losses["total"] + torch.stack(far).sum()
        return out


def _own(out: Output) -> dict[str, Tensor]:
    return {f"uni/{m}": z for m, z in out.unimodal.items()}


class AutoRates(Training):
    """Rates of each modality by its own validation loss."""

    def _validate(self) -> dict[str, Any]:
        result = super()._validate()
        self._said = result["held_out"]
        return result

    def _end_epoch(self) -> None:
        super()._end_epoch()
        if self.position.epoch == 1:
            self._factor = dict.fromkeys(self.method.spec.modalities, 1.0)
            self._least = dict.fromkeys(self._factor, float("inf"))
            self._base = [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups]
        task, labels = self.method.spec.task, self._said.labels
        for m in self._factor:
            z = self._said.logits[f"uni/{m}"]
            loss = -float(label_log_likelihood(task, z, labels, fit_temperature(task, z, labels)).mean())
            better = loss < self._least[m] * (1 - LEAST_GAIN)
            self._least[m] = min(loss, self._least[m])
            self._factor[m] = min(WIDEST, max(1 / WIDEST, self._factor[m] * (FASTER if better else SLOWER)))
        per_step = self.schedule._per_step
        for k, group in enumerate(self.optimizer.param_groups):
            rate = self._base[k] * self._factor.get(group["name"].rsplit(".", 1)[0], 1.0)
            if per_step is None:
                group["lr"] = rate
            else:
                per_step.base_lrs[k] = rate


def _partitioner(factor: float) -> dict[str, Any]:
    return {"pgm.rates": {"*": {"partitioner": factor}}}


# name -> method, its settings, and what stands in for the method's class and for the training loop
VARIANTS: dict[str, tuple[str, Mapping[str, Any], type | None, type]] = {
    "pgm": ("pgm", {}, None, Training),
    "pgm, partitioner x1": ("pgm", _partitioner(1.0), None, Training),
    "pgm, partitioner x3": ("pgm", _partitioner(3.0), None, Training),
    "pgm, partitioner x30": ("pgm", _partitioner(30.0), None, Training),
    "pgm, auto rates": ("pgm", {}, None, AutoRates),
    "pgm, teachers": ("pgm", {}, Taught, Training),
    "pgm, residual": ("pgm", {}, Residual, Training),
    "pgm, permutation": ("pgm", {}, Permutation, Training),
    "joint": ("joint", {}, None, Training),
    "joint, auto rates": ("joint", {}, None, AutoRates),
}


def settings_of(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The data of a set, and what a run on it has in place of :data:`RUN`."""
    if name in MADE:
        options, settings = MADE[name]
        return {**settings, "data": "synthetic", "data.options": {**options, "seed": seed}}
    return {"data": str(deal(name, seed, folder)), "data.modalities": SETS[name][1]}


def deal(name: str, seed: int, folder: Path) -> Path:
    """A file of a set's train and valid rows in splits dealt anew, each with every class in proportion."""
    file, _, valid, held_out = SETS[name]
    rows = dict(np.load(DATA / file))
    known = rows["split"] != "test"
    rows = {key: values[known] for key, values in rows.items()}
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows["label"]))
    order = order[np.argsort(rows["label"][order], kind="stable")]
    # neighbours in the order of classes lie far apart on the golden ratio's multiples
    place = np.empty(len(order))
    place[order] = (np.arange(len(order)) * (np.sqrt(5) - 1) / 2 + rng.random()) % 1
    rank = place.argsort().argsort()
    rows["split"] = np.where(rank < held_out, "test", np.where(rank < held_out + valid, "valid", "train"))
    path = folder / f"{name}-{seed}.npz"
    np.savez(path, **rows)
    return path


@contextmanager
def standing_in(method: str, model: type | None, training: type) -> Iterator[None]:
    """The engine with another class for a method and another training loop."""
    kept = METHODS[method], jobs.Training
    METHODS[method], jobs.Training = model or METHODS[method], training
    try:
        yield
    finally:
        METHODS[method], jobs.Training = kept


def run(variant: str, seed: int, out: Path, **settings: Any) -> dict[str, Any]:
    """Train once: accuracy and likelihood on validation and held-out rows, and the shares."""
    method, own, model, training = VARIANTS[variant]
    with standing_in(method, model, training):
        report = fit(method=method, out=str(out), **{**RUN, **own, "train.seed": seed, **settings})
    scores = {split: {key: report[split]["fused"][key] for key in ("accuracy", "nll")} for split in ("valid", "test")}
    return {"valid": scores["valid"], "held_out": scores["test"], "shares": report["shares"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sets", nargs="+", choices=[*SETS, *MADE], default=list(SETS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    runs = read_json(JSON)["runs"] if JSON.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for name in options.sets:
                settings = settings_of(name, seed, Path(folder))
                for variant in options.variants:
                    at = {"set": name, "variant": variant, "seed": seed}
                    out = Path(folder) / variant / name / str(seed)
                    found = run(variant, seed, out, **settings)
                    runs = [r for r in runs if any(r[key] != at[key] for key in at)] + [{**at, **found}]
                    print(*at.values(), found["valid"]["accuracy"], found["held_out"]["accuracy"], flush=True)
                    _write(runs)


def _write(runs: list[dict[str, Any]]) -> None:
    runs.sort(key=lambda r: ([*SETS, *MADE].index(r["set"]), list(VARIANTS).index(r["variant"]), r["seed"]))
    facts = {"date": date.today().isoformat(), "versions": versions(), "processor": processor_name()}
    write_json(JSON, {**facts, "commit": git_commit(RESULTS.parent), "run": RUN, "runs": runs})
    with atomic_write(TABLE, "w") as file:
        file.write(f"# Trials\n\n{table(runs)}\n{facts['processor']}.\n")


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Scores of every variant, and its paired difference from the method as it is."""
    lines = [
        "Accuracy in percent, mean ± sample standard deviation over deals of train and valid rows; in brackets the",
        "difference from the method as it is, paired by deal, with its 95 % t-interval. No test row was read. Made by",
        "`python benchmarks/trials.py`, whose head says what the variants are.",
        "",
        "| set | variant | validation | held-out rows | n | difference, validation | difference, held-out |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["set"] for r in runs):
        for variant in VARIANTS:
            of = {r["seed"]: r for r in runs if r["set"] == name and r["variant"] == variant}
            plain = variant.split(",")[0]
            base = {r["seed"]: r for r in runs if r["set"] == name and r["variant"] == plain}
            if not of:
                continue
            cells = [_spread([r[split]["accuracy"] for r in of.values()]) for split in ("valid", "held_out")]
            both = [seed for seed in of if seed in base and variant != plain]
            differences = [
                _interval([of[s][split]["accuracy"] - base[s][split]["accuracy"] for s in both])
                for split in ("valid", "held_out")
            ]
            lines.append(f"| {name} | {variant} | {' | '.join([*cells, str(len(of)), *differences])} |")
    errors = {v: [_far(r) for r in runs if (r["set"], r["variant"]) == ("thirds", v)] for v in VARIANTS}
    if any(errors.values()):
        lines += ["", "Mean distance of the shares of `thirds` from the known truth, in points of mass:", ""]
        lines += [f"- {variant}: {_spread(values)}" for variant, values in errors.items() if values]
    return "\n".join(lines) + "\n"


def _far(run: Mapping[str, Any]) -> float:
    """Mean distance of a run's shares from :data:`TRUTH`."""
    return statistics.fmean(abs(of[name] - TRUTH[name]) for of in run["shares"].values() for name in TRUTH)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def _interval(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return "–"
    found = paired_interval([100 * x for x in differences])
    return f"{found['mean']:+.1f} [{found['low']:.1f}, {found['high']:.1f}]"


if __name__ == "__main__":
    main()
