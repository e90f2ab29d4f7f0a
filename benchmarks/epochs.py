"""Which epoch, and which pool? What choosing on few validation rows costs a method whose heads answer together.

    python benchmarks/epochs.py [--seeds 0 1 2 3] [--sets wiki] [--logits FOLDER]

PgM and the ensemble, both answering by ``pool``, train for 25 epochs without stopping; the logits of every head on
validation and held-out rows are kept after each (in ``--logits``, where those of an earlier call are taken from). Then
the same trainings are judged by different rules. Rows are dealt as in ``trials.py``, so that no test row is read; with
``--official`` wiki's own splits with the settings that its study chose, to see where the difference there comes from.
Writes ``results/methods/epochs.json``, where cells that are not made again stay, and, from it alone, ``epochs.md``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from trials import DATA, RESULTS, SETS, deal, standing_in

from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.nn import calibration
from pgm_fast.nn.calibration import fit_temperature, pool_weights
from pgm_fast.study.intervals import paired_interval
from pgm_fast.train import fit
from pgm_fast.train.evaluation import collect
from pgm_fast.train.loop import Training
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json
from pgm_fast.train.run.position import Best

JSON, TABLE = RESULTS / "epochs.json", RESULTS / "epochs.md"
RUN = {"train.epochs": 25, "train.patience": 0, "train.device": "cpu", "train.threads": 1}
RUN |= {"train.plots": False, "train.logger": []}
SETTINGS = {
    "A": {"train.lr": 0.004, "model.dropout": 0.1, "data.modality_dropout": 0.2},
    "B": {"train.lr": 0.001, "model.dropout": 0.1, "data.modality_dropout": 0.0},
}
METHODS = ("ensemble", "pgm")
OFFICIAL = "wiki, its own splits"
CHOSEN = {"ensemble": "A", "pgm": "B"}  # by the study of the official splits
PATIENCE = 8
POOLS = {"prior 64": 64.0, "equal weights": None}  # beside the pool as it is, at the epoch of its least loss
RULES = ("accuracy", "loss", "last")


class Kept(Training):
    """What every head says of validation and held-out rows, after every epoch."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.loaders = {"valid": self.valid, "held_out": self.train_in_order.__self__.loader("test")}
        self.kept: dict[str, list[np.ndarray] | np.ndarray] = {}
        Kept.latest = self

    def _end_epoch(self) -> None:
        super()._end_epoch()
        for split, loader in self.loaders.items():
            said = collect(self.method, loader, self.ranks)
            heads = {**said.further, **{f"uni/{m}": z for m, z in said.unimodal.items()}}
            for name, z in heads.items():
                self.kept.setdefault(f"{split}|{name}", []).append(z)
            self.kept[f"{split}|y"] = said.labels


def train(method: str, file: Path, settings: Mapping[str, Any]) -> None:
    """Train, and keep the logits in ``file``."""
    with tempfile.TemporaryDirectory() as folder, standing_in(method, None, Kept):
        fit(method=method, out=folder, overwrite=True, **RUN, **settings)
    np.savez(file, **{key: np.stack(v) if isinstance(v, list) else v for key, v in Kept.latest.kept.items()})


def judge(file: Path) -> dict[str, Any]:
    """Accuracy on held-out rows by every rule and pool; which rows are right as it is done (by ``accuracy``)."""
    content = np.load(file)
    heads = [key[6:] for key in content.files if key.startswith("valid|") and not key.endswith(("|y", "|fused"))]
    z, y = {}, {}
    for split in ("valid", "held_out"):
        z[split] = torch.from_numpy(np.stack([content[f"{split}|{head}"] for head in heads], axis=2)).double()
        y[split] = torch.from_numpy(content[f"{split}|y"])
    valid, loss, test, right = [], [], [], []
    for epoch in range(len(z["valid"])):
        answer = _pool(z["valid"][epoch], y["valid"], calibration.PSEUDO_COUNTS)
        said = answer(z["valid"][epoch])
        valid.append(_accuracy(said, y["valid"]))
        loss.append(float(F.cross_entropy(said, y["valid"])))
        right.append(answer(z["held_out"][epoch]).argmax(1) == y["held_out"])
        test.append(float(right[-1].double().mean()))
    rules = {"accuracy": _chosen(valid, loss), "loss": _chosen([-x for x in loss], loss), "last": len(valid) - 1}
    at = rules["loss"]
    pools = {name: _pool(z["valid"][at], y["valid"], prior) for name, prior in POOLS.items()}
    return {
        **{
            rule: {"epoch": e + 1, "valid": valid[e], "loss": loss[e], "held_out": test[e]} for rule, e in rules.items()
        },
        **{name: {"held_out": _accuracy(answer(z["held_out"][at]), y["held_out"])} for name, answer in pools.items()},
        "right": "".join(str(int(x)) for x in right[rules["accuracy"]]),
    }


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _chosen(score: Sequence[float], loss: Sequence[float]) -> int:
    """The epoch that training would keep, from 0."""
    best = Best()
    for epoch, values in enumerate(zip(score, loss, strict=True), start=1):
        best.offer(epoch, *values)
        if best.since >= PATIENCE:
            break
    return best.epoch - 1


def _pool(z: Tensor, y: Tensor, prior: float | None) -> Callable[[Tensor], Tensor]:
    """The product of calibrated heads ``[n, K, C]``; without a prior all weigh the same, at one more temperature."""
    heads = z.shape[1]
    temperature = torch.tensor([fit_temperature("classification", z[:, k], y) for k in range(heads)]).double()
    calibrated = z / temperature[:, None]
    if prior is None:
        weight = torch.full((heads,), 1 / heads).double()
        weight = weight / fit_temperature("classification", torch.einsum("nkc,k->nc", calibrated, weight), y)
    else:
        kept, calibration.PSEUDO_COUNTS = calibration.PSEUDO_COUNTS, prior
        try:
            weight = pool_weights("classification", calibrated, y, torch.ones(z.shape[:2], dtype=torch.bool))
        finally:
            calibration.PSEUDO_COUNTS = kept
    return lambda logits: torch.einsum("nkc,k->nc", logits, weight / temperature)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--official", action="store_true", help="wiki's own splits instead")
    parser.add_argument("--logits", type=Path, help="folder in which logits stay")
    options = parser.parse_args()
    runs = read_json(JSON)["runs"] if JSON.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        logits = options.logits or Path(folder)
        for seed in options.seeds:
            for name in [OFFICIAL] if options.official else options.sets:
                for method in METHODS:
                    for setting in CHOSEN[method] if options.official else SETTINGS:
                        at = {"set": name, "method": method, "setting": setting, "seed": seed}
                        file = logits / f"{'-'.join(map(str, at.values()))}.npz"
                        if not file.exists():
                            known = "wiki" if options.official else name
                            source = DATA / SETS[known][0] if options.official else deal(name, seed, Path(folder))
                            more = {"data": str(source), "data.modalities": SETS[known][1], "train.seed": seed}
                            train(method, file, {**more, **SETTINGS[setting]})
                        runs = [r for r in runs if any(r[key] != at[key] for key in at)] + [{**at, **judge(file)}]
                        print(*at.values(), runs[-1]["accuracy"], flush=True)
                        _write(runs)


def _write(runs: list[dict[str, Any]]) -> None:
    order = [*SETS, OFFICIAL]
    runs.sort(key=lambda r: (order.index(r["set"]), r["method"], r["setting"], r["seed"]))
    facts = {"date": date.today().isoformat(), "versions": versions(), "processor": processor_name()}
    write_json(JSON, {**facts, "commit": git_commit(RESULTS.parent), "run": RUN, "settings": SETTINGS, "runs": runs})
    with atomic_write(TABLE, "w") as file:
        file.write(f"# Epochs and pools\n\n{table(runs)}\n{facts['processor']}.\n")


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Every pool and rule for every set, method and setting; then the differences that matter."""
    lines = [
        "Accuracy in percent on rows that nothing was chosen on, mean over deals of the train and valid rows (the",
        "last set: over seeds, on its test split). The epoch is that of the best validation accuracy, of the least",
        "validation loss of the pooled answer, or the last. Priors are the precision of the pool's weights around",
        "their mean; 4 is what `pool` has. Made by `python benchmarks/epochs.py`.",
        "",
        "| set | method | setting | n | validation | accuracy | loss | last | loss, prior 64 | loss, equal weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, method, setting in dict.fromkeys((r["set"], r["method"], r["setting"]) for r in runs):
        of = [r for r in runs if (r["set"], r["method"], r["setting"]) == (name, method, setting)]
        cells = [f"{100 * statistics.fmean(r[rule]['held_out'] for r in of):.1f}" for rule in (*RULES, *POOLS)]
        valid = f"{100 * statistics.fmean(r['accuracy']['valid'] for r in of):.1f}"
        lines.append(f"| {name} | {method} | {setting} | {len(of)} | {valid} | {' | '.join(cells)} |")
    lines += ["", "Differences in points with 95 % t-intervals over trainings on dealt rows:", ""]
    dealt = [r for r in runs if r["set"] != OFFICIAL]
    for method in METHODS:
        for rule in ("loss", "last"):
            lines.append(f"- {method}, {rule} against accuracy: {_of_rules(dealt, method, rule)}")
    for name in dict.fromkeys(r["set"] for r in dealt):
        lines.append(
            f"- {name}, pgm against ensemble, pool, each at its better setting by validation: {_best(dealt, name)}"
        )
    right = {m: [list(map(int, r["right"])) for r in runs if (r["set"], r["method"]) == (OFFICIAL, m)] for m in METHODS}
    if all(right.values()):
        rows = np.mean(right["pgm"], axis=0) - np.mean(right["ensemble"], axis=0)
        half = 1.96 * rows.std(ddof=1) / math.sqrt(len(rows))
        low, high = 100 * (rows.mean() - half), 100 * (rows.mean() + half)
        lines.append(
            f"- {OFFICIAL}, pgm against ensemble, pool, mean of {len(right['pgm'])} seeds: {100 * rows.mean():+.2f}, "
            f"with a 95 % interval over its {len(rows)} test rows of [{low:.2f}, {high:.2f}]"
        )
    return "\n".join(lines) + "\n"


def _of_rules(runs: Sequence[Mapping[str, Any]], method: str, rule: str) -> str:
    pairs = [r[rule]["held_out"] - r["accuracy"]["held_out"] for r in runs if r["method"] == method]
    return _interval(pairs)


def _best(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    of: dict[str, dict[int, float]] = {}
    for method in METHODS:
        by_setting: dict[str, list[Mapping[str, Any]]] = {}
        for r in runs:
            if (r["set"], r["method"]) == (name, method):
                by_setting.setdefault(r["setting"], []).append(r)
        if not by_setting:
            return "–"
        best = max(by_setting.values(), key=lambda of: statistics.fmean(r["accuracy"]["valid"] for r in of))
        of[method] = {r["seed"]: r["accuracy"]["held_out"] for r in best}
    return _interval([of["pgm"][seed] - of["ensemble"][seed] for seed in of["pgm"] if seed in of["ensemble"]])


def _interval(differences: Sequence[float]) -> str:
    if not differences:
        return "–"
    found = paired_interval([100 * x for x in differences])
    if found["low"] is None:
        return f"{found['mean']:+.2f}"
    return f"{found['mean']:+.2f} [{found['low']:.2f}, {found['high']:.2f}], n = {found['n']}"


if __name__ == "__main__":
    main()
