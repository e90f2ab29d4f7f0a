"""Do PgM's shares say what is true? Twelve synthetic families whose unique, redundant and synergistic parts are known.

    python benchmarks/synthetic_shares.py [--seeds 0 1 2] [--families xor copy]

Every row's label is told by both modalities alike (``copy``), by one (``private``) or only by both together (``xor``).
The true masses of a modality are the parts of rows of each sort. The shares are those of the default configuration on
the test split. Writes ``results/methods/synthetic_shares.json``, where runs that are not made again stay, and, from it
alone, ``synthetic_shares.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from pgm_fast.data.synthetic import draw
from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.train import fit, predict
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "synthetic_shares.json", RESULTS / "synthetic_shares.md"
MASSES = ("uni_only", "paired_only", "shared", "unused")  # unique, synergistic, redundant, what the task does not need
N = 2000
FAMILIES: dict[str, dict[str, Any]] = {
    "xor": {"kind": "xor"},
    "copy": {"kind": "copy"},
    "private a": {"kind": "private", "private": 0},
    "private b": {"kind": "private", "private": 1},
    "thirds": {"kind": "mixture"},
    "copy and xor": {"kind": "mixture", "proportions": {"copy": 1.0, "xor": 1.0}},
    "copy and private": {"kind": "mixture", "proportions": {"copy": 1.0, "private": 1.0}},
    "private and xor": {"kind": "mixture", "proportions": {"private": 1.0, "xor": 1.0}},
    "mostly copy": {"kind": "mixture", "proportions": {"copy": 6.0, "private": 2.0, "xor": 2.0}},
    "mostly private": {"kind": "mixture", "proportions": {"copy": 2.0, "private": 6.0, "xor": 2.0}},
    "mostly xor": {"kind": "mixture", "proportions": {"copy": 2.0, "private": 2.0, "xor": 6.0}},
    "three modalities": {"kind": "mixture", "modalities": 3, "proportions": {"copy": 1.0, "private": 3.0}},
}
RUN = {"train.plots": False, "train.logger": []}


def true_mass(interaction: np.ndarray, modality: str) -> np.ndarray:
    """int ``[n]``: the place in :data:`MASSES` where all that ``modality`` tells of a row's label belongs."""
    places = {"copy": 2, "xor": 1, f"private_{modality}": 0}
    return np.array([places.get(kind, 3) for kind in interaction])


def measure(family: str, seed: int, folder: Path, settings: Mapping[str, Any] = RUN) -> dict[str, Any]:
    """Train once: mean shares beside the truth, and how well single rows are told apart, on the test split."""
    truth = draw(n=N, seed=seed, **FAMILIES[family])
    report = fit(method="pgm", data=truth.features, out=str(folder), **{**settings, "train.seed": seed})
    predictions = predict(folder, data=truth.features, split="test")
    interaction = truth.interaction[predictions.index]
    found = {}
    for m, shares in predictions.shares.items():
        mass = true_mass(interaction, m)
        found[m] = {
            "truth": {name: float((mass == k).mean()) for k, name in enumerate(MASSES)},
            "share": {name: float(shares[:, k].mean()) for k, name in enumerate(MASSES)},
            "auc": {name: auc(shares[:, k], mass == k) for k, name in enumerate(MASSES)},
        }
    return {
        "family": family,
        "seed": seed,
        "accuracy": report["test"]["fused"]["accuracy"],
        "modalities": found,
    }


def auc(score: np.ndarray, wanted: np.ndarray) -> float | None:
    """How often a wanted row scores above another, ties half; None where all rows are of one sort."""
    count = int(wanted.sum())
    if count in (0, len(wanted)):
        return None
    above = rankdata(score)[wanted].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wanted) - count)))


def rank_correlation(runs: Sequence[Mapping[str, Any]]) -> float:
    """Spearman's, of every mass of every modality and family, mean over seeds, with the truth."""
    places: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for run in runs:
        for m, found in run["modalities"].items():
            for name in MASSES:
                pair = found["truth"][name], found["share"][name]
                places.setdefault((run["family"], m, name), []).append(pair)
    truth, share = np.array([np.mean(pairs, axis=0) for pairs in places.values()]).T
    return float(spearmanr(truth, share).statistic)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    options = parser.parse_args(arguments)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            for seed in options.seeds:
                runs.append(measure(family, seed, Path(folder) / str(len(runs))))
                print(_line(runs[-1]), flush=True)
    if options.dry:
        return
    again = {(run["family"], run["seed"]) for run in runs}
    kept = read_json(JSON)["runs"] if JSON.exists() else []
    runs += [run for run in kept if (run["family"], run["seed"]) not in again]
    runs.sort(key=lambda run: (list(FAMILIES).index(run["family"]), run["seed"]))
    facts = {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "versions": versions(),
        "commit": git_commit(RESULTS.parent),
        "run": {**RUN, "n": N},
        "families": FAMILIES,
    }
    write_json(JSON, {**facts, "runs": runs})
    with atomic_write(TABLE, "w") as file:
        file.write(table())


def _line(run: Mapping[str, Any]) -> str:
    shares = "; ".join(
        f"{m} " + " ".join(f"{share:.2f}/{found['truth'][name]:.2f}" for name, share in found["share"].items())
        for m, found in run["modalities"].items()
    )
    return f"{run['family']} {run['seed']} accuracy {run['accuracy']:.3f} share/truth {shares}"


def table() -> str:
    """The content of ``synthetic_shares.md``."""
    runs = read_json(JSON)["runs"]
    lines = [
        "# PgM's shares on synthetic sets",
        "",
        "Mean ± sample standard deviation over seeds, test split, default configuration; in brackets the true part of",
        "rows. AUC: how often a row of that sort has more of the mass than a row of another sort, mean over seeds and",
        "over the masses that some rows have. Made by `python benchmarks/synthetic_shares.py`.",
        "",
        "| family | modality | uni-only: unique | paired-only: synergy | shared: redundant | unused | AUC | accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in dict.fromkeys(run["family"] for run in runs):
        of = [run for run in runs if run["family"] == family]
        accuracy = _cell([run["accuracy"] for run in of])
        for m in of[0]["modalities"]:
            found = [run["modalities"][m] for run in of]
            cells = [
                f"{_cell([f['share'][name] for f in found])} ({statistics.mean(f['truth'][name] for f in found):.2f})"
                for name in MASSES
            ]
            areas = _areas(found)
            cells.append(f"{statistics.mean(areas):.2f}" if areas else "–")
            lines.append(f"| {family} | {m} | {' | '.join(cells)} | {accuracy} |")
    areas = _areas([found for run in runs for found in run["modalities"].values()])
    pure = [
        found["share"][name]
        for run in runs
        for found in run["modalities"].values()
        for name in MASSES
        if found["truth"][name] == 1
    ]
    lines += [
        "",
        f"Rank correlation of shares with the truth, over {len(FAMILIES)} families, their modalities and the four"
        f" masses: **{rank_correlation(runs):.2f}**.",
        f"Mass in the right place where all rows are of one sort: **{_cell(pure)}**, least {min(pure):.2f}.",
        f"AUC of single rows in the mixtures: **{statistics.mean(areas):.2f}**, least {min(areas):.2f}.",
    ]
    return "\n".join(lines) + "\n"


def _areas(found: Sequence[Mapping[str, Any]]) -> list[float]:
    return [area for of in found for area in of["auc"].values() if area is not None]


def _cell(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
