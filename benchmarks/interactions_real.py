"""Measured interactions of real data, and whether DMIL's gate goes with them.

    python benchmarks/interactions_real.py [--seed 0] [--cases digits ...]

In every case DMIL is trained, then its test rows are measured twice: on the features themselves, and on what the model
made of each modality. Writes ``results/methods/interactions_real.json``, where cases that are not measured again stay,
and, from it alone, ``interactions_real.md``. Data files are looked for in
``PGM_FAST_DATA``, else in ``data/``; a case whose file is missing is skipped.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from pgm_fast.env import git_commit, versions
from pgm_fast.interactions import Settings, estimate_run
from pgm_fast.interactions.estimates import COMPONENTS
from pgm_fast.interactions.output import summary
from pgm_fast.train import fit
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "interactions_real.json", RESULTS / "interactions_real.md"
CASES = {
    "digits": ("digits, left and right half", "digits", {}),
    "mfeat-fou-mor": ("mfeat, `fou` and `mor`", "mfeat.npz", {"data.modalities": ["fou", "mor"]}),
    "mosi-text-vision": ("MOSI, text and vision", "mosi.npz", {"data.modalities": ["text", "vision"]}),
    "mosi-text-audio": ("MOSI, text and audio", "mosi.npz", {"data.modalities": ["text", "audio"]}),
}
MEASURED_ON = {"inputs": "the features", "learned": "what DMIL made of them"}
WHY = """
Where one modality holds little, as MOSI's vision and audio do, its estimate may fall below zero: a classifier that is
confident and wrong on the test videos has negative information. Its temperature is fitted on validation rows, and
MOSI's validation videos are recognised almost without error by every method, so it is too low for the test videos.
"""
OWN = {"redundant": "redundancy", "synergistic": "synergy"}


def measure(case: str, source: str, seed: int, folder: Path) -> dict:
    """Train once, measure twice."""
    _, _, settings = CASES[case]
    quiet = {"train.plots": False, "train.logger": [], "train.seed": seed}
    report = fit(method="dmil", data=source, out=str(folder), **settings, **quiet)
    found = {
        where: summary(estimate_run(folder, measured_on=where, split="test", settings=Settings(seed=seed)))
        for where in MEASURED_ON
    }
    for content in found.values():
        del content["run"], content["versions"]
    return {
        "accuracy": report["test"]["fused"]["accuracy"],
        "unimodal": {m: scores["accuracy"] for m, scores in report["test"]["unimodal"].items()},
        "synergy_score": report["test"]["synergy_score"],
        "gates": report["gates"]["all"],
        "seed": seed,
        "threads": torch.get_num_threads(),
        "measured": found,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args(arguments)
    for case in options.cases:
        source = CASES[case][1]
        if source.endswith(".npz"):
            folder = Path(os.environ.get("PGM_FAST_DATA", "data"))
            if not (folder / source).exists():
                print(f"{case}: skipped, {source} is not in {folder}; set PGM_FAST_DATA to its folder")
                continue
            source = str(folder / source)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(case, source, options.seed, Path(folder) / "run")
        known = read_json(JSON)["cases"] if JSON.exists() else {}
        facts = {"date": date.today().isoformat(), "versions": versions(), "commit": git_commit(RESULTS.parent)}
        cases = {name: known[name] for name in CASES if name in known} | {case: result}
        write_json(JSON, {**facts, "cases": {name: cases[name] for name in CASES if name in cases}})
        with atomic_write(TABLE, "w") as file:
            file.write(table())
        print(case, {name: pair["mean"] for name, pair in result["measured"]["inputs"]["pairs"].items()}, flush=True)


def table() -> str:
    """The content of ``interactions_real.md``."""
    cases = read_json(JSON)["cases"]
    lines = [
        "# Interactions of real data",
        "",
        "Nats, mean over the test rows and 95 % bootstrap interval, published rule, defaults. Made by",
        "`python benchmarks/interactions_real.py`.",
        "",
        "| data | measured on | redundancy | uniqueness of the first | of the second | synergy |",
        "|---|---|---|---|---|---|",
    ]
    for case, result in cases.items():
        for where, called in MEASURED_ON.items():
            (pair,) = result["measured"][where]["pairs"].values()
            cells = []
            for name in COMPONENTS:
                low, high = pair["interval"][name]
                cells.append(f"{pair['mean'][name]:.3f} ({low:.3f} to {high:.3f})")
            lines.append(f"| {CASES[case][0]} | {called} | {' | '.join(cells)} |")
    lines += [
        "",
        "Accuracy of DMIL and of each M alone, mean gate weights, and how each weight goes with the quantity of its",
        "name, row by row (rank correlation, Spearman), measured on the features:",
        "",
        "| data | fused | alone | synergy score | component | mean weight | correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, result in cases.items():
        alone = ", ".join(f"{m} {score:.3f}" for m, score in result["unimodal"].items())
        scores = f"{CASES[case][0]} | {result['accuracy']:.3f} | {alone} | {result['synergy_score']:.3f}"
        inputs = result["measured"]["inputs"]
        (pair,) = inputs["pairs"]
        for component, weight in result["gates"].items():
            quantity = OWN.get(component) or _uniqueness(component, inputs["pairs"][pair]["modalities"])
            value = inputs["association"][f"gate.{component}"][pair][quantity]["spearman"]
            shown = "–" if value is None else f"{value:.2f}"
            lines.append(f"| {scores} | {component} | {weight:.3f} | {shown} |")
            scores = " | | | "
    return "\n".join(lines) + "\n" + WHY


def _uniqueness(component: str, modalities: Sequence[str]) -> str:
    return f"uniqueness_{1 + list(modalities).index(component.removeprefix('unique/'))}"


if __name__ == "__main__":
    main()
