"""Does joint training starve the weak modality, and does DI-MML not? A set made so that the answer is known.

    python benchmarks/competition.py [--seeds 0 1 2 3 4] [--variants ogm umt]

Both modalities carry the label, each with noise of its own: `a` is strong and learned at once, `b` is weaker, at a
fifth of the scale and learned slowly. What is wrong in one is mostly right in the other, so both are needed. Plain
gradient descent on the features as they are, nothing normalised behind the encoders, the same for every method; each
modality alone is a run of `unimodal` that sees nothing else.

Writes ``results/methods/competition.json`` and ``competition.md``; ``competition.png`` shows the first seed. With
``--variants`` the results of the others stay as they are, and so does the picture.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import date
from pathlib import Path

from pgm_fast.env import git_commit, versions
from pgm_fast.train import fit
from pgm_fast.train.report.plots import draw_competition
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE, PICTURE = (RESULTS / f"competition.{kind}" for kind in ("json", "md", "png"))
SET = {"kind": "copy", "n": 2000, "dim": 32, "noise": 1.0, "imbalance": [1.5, 1.2], "scales": [1.0, 0.2]}
RUN = {
    "data.standardize": False,
    "model.normalize": False,
    "train.optimizer": "sgd",
    "train.lr": 0.1,
    "train.schedule": "constant",
    "train.epochs": 30,
    "train.patience": 0,
    "train.plots": False,
    "train.logger": [],
    "dimml.warmup": 10,
}
# name -> method and settings of its own
VARIANTS = {
    "alone a": ("unimodal", {"data.modalities": ["a"]}),
    "alone b": ("unimodal", {"data.modalities": ["b"]}),
    "unimodal": ("unimodal", {}),
    "joint": ("joint", {}),
    "ensemble": ("ensemble", {}),
    "pgm": ("pgm", {}),
    "dimml": ("dimml", {}),
    "pretrained": ("pretrained", {}),
    "umt": ("umt", {}),
    "ogm": ("ogm", {}),
    "mla": ("mla", {}),
    "mmpareto": ("mmpareto", {}),
    "mcr": ("mcr", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    seeds, variants = (options := parser.parse_args()).seeds, options.variants
    runs = [r for r in read_json(JSON)["runs"] if r["variant"] not in variants] if JSON.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name in variants:
                out = Path(folder) / name / str(seed)
                runs.append({"variant": name, "seed": seed, **run(name, seed, out)})
                print(name, seed, runs[-1]["test"], flush=True)
        if len(variants) == len(VARIANTS):
            first = [Path(folder) / name / str(seeds[0]) for name in ("unimodal", "joint", "dimml")]
            draw_competition(first[1:], first[0], PICTURE)
    runs.sort(key=lambda r: (r["seed"], list(VARIANTS).index(r["variant"])))
    facts = {"date": date.today().isoformat(), "versions": versions(), "commit": git_commit(RESULTS.parent)}
    write_json(JSON, {**facts, "set": SET, "run": RUN, "runs": runs})
    with atomic_write(TABLE, "w") as file:
        file.write(table(runs))


def run(name: str, seed: int, out: Path, **more) -> dict:
    """Train a variant once: accuracy on the test split, fused and per modality, and the number of epochs."""
    method, own = VARIANTS[name]
    settings = {**RUN, **own, "train.seed": seed, "data.options": {**SET, "seed": seed}, **more}
    report = fit(method=method, data="synthetic", out=str(out), **settings)
    scores = {"fused": report["test"]["fused"], **report["test"]["unimodal"]}
    return {"test": {key: score["accuracy"] for key, score in scores.items()}, "epochs": report["epochs"]}


def table(runs: list[dict]) -> str:
    """The content of ``competition.md``."""
    lines = [
        "# Modality competition on a made set",
        "",
        f"Test accuracy in percent, mean ± sample standard deviation over {len({r['seed'] for r in runs})} seeds;",
        "`b` is the weak modality. Made by `python benchmarks/competition.py`.",
        "",
        "| | fused | a | b |",
        "|---|---|---|---|",
    ]
    for name in VARIANTS:
        of = [r["test"] for r in runs if r["variant"] == name]
        lines.append(f"| {name} | {' | '.join(_cell([test.get(key) for test in of]) for key in ('fused', 'a', 'b'))} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None]) -> str:
    if not values or None in values:
        return "–"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
