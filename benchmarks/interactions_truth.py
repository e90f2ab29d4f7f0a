"""Does the estimate find what is known? Synthetic sets with one interaction each, and one that mixes them by sample.

    python benchmarks/interactions_truth.py [--seeds 0 1 2 3 4]

The truth is that of the noisy vectors: information about the label of the best detector of every bit, in the mean over
the measured rows. Writes ``results/methods/interactions_truth.json`` and, from it alone, ``interactions_truth.md``.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import date
from pathlib import Path

import numpy as np
import torch

from pgm_fast.data import draw
from pgm_fast.env import git_commit, versions
from pgm_fast.interactions import Settings, estimate
from pgm_fast.interactions.estimates import COMPONENTS
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "interactions_truth.json", RESULTS / "interactions_truth.md"
CASES = {
    "xor": {"kind": "xor"},
    "copy": {"kind": "copy"},
    "private to a": {"kind": "private"},
    "private to b": {"kind": "private", "private": 1},
    "xor, 64 dimensions": {"kind": "xor", "dim": 64},
    "xor, noise 0.5": {"kind": "xor", "noise": 0.5},
    "copy, noise 0.5": {"kind": "copy", "noise": 0.5},
    "mixed by sample": {"kind": "mixture"},
    "mixed by sample, rule=information": {"kind": "mixture"},
}

WHY = """
Where one interaction rules the whole set the published rule finds it with the defaults. In noise the truth is less than
log 2, and so is the estimate. Where the samples of one set are of different kinds the published rule does not find it:
a bit that one modality holds alone counts as redundant in every sample in which that modality happens to be the denser
one, and the constant that mends this in a set of one kind is one for all samples. `rule=information`, which is ours,
has no such chance in it and gives uniqueness its own, but errs the other way: the lesser of two uncertain classifiers'
answers is low, so redundancy is counted as uniqueness. Both also miss what the classifiers have not learned from 1200
rows. With private bits the published redundancy is spread around its mean by that same chance, which the last column
shows: right in the mean is not right in every row.
"""


def truth(drawn, rows: np.ndarray, noise: float) -> list[float]:
    """Redundancy, both uniquenesses and synergy in the mean over rows, nats: the bits seen through their noise.

    Every bit has its own direction and the detector knows it: the information of a bit b in {-1, 1} seen as b + noise
    is found from its log-odds 2 / noise^2 * (b + noise * normal), by many draws; that of a parity from the product of
    the two bits' tanh of half the log-odds.
    """
    rng = np.random.default_rng(0)
    half_odds = (1 + noise * rng.standard_normal((2, 1_000_000))) / noise**2
    seen = np.tanh(half_odds)
    one = float(np.log1p(np.clip(seen[0], -1 + 1e-15, 1)).mean())
    parity = float(np.log1p(np.clip(seen[0] * seen[1], -1 + 1e-15, 1)).mean())
    both = float(np.log1p(np.clip(np.tanh(half_odds.sum(0)), -1 + 1e-15, 1)).mean())
    kinds = drawn.interaction[rows]
    copied = float((kinds == "copy").mean())
    unique = [float((kinds == f"private_{name}").mean()) for name in drawn.features.modalities]
    # what two noisy copies say together beyond one of them is found by neither alone
    synergy = float((kinds == "xor").mean()) * parity + copied * (both - one)
    return [copied * one, *(share * one for share in unique), synergy]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = []
    for case, options in CASES.items():
        rule = "information" if case.endswith("rule=information") else "entropy"
        for seed in arguments.seeds:
            drawn = draw(**options, seed=seed)
            found = estimate(drawn.features, split="test", settings=Settings(seed=seed, rule=rule), device="cpu")
            pair = found.pairs["a+b"]
            named = np.stack(pair.values).argmax(axis=0) == _largest(drawn)[found.index]
            run = {
                "case": case,
                "options": options,
                "rule": rule,
                "seed": seed,
                "truth": truth(drawn, found.index, options.get("noise", 0.25)),
                "found": list(pair.means),
                "shift": pair.shift,
                "largest_is_right": float(named.mean()),
                "seconds": found.seconds,
            }
            runs.append(run)
            print(case, seed, *(f"{value:.3f}" for value in pair.means), f"{found.seconds:.1f} s", flush=True)
    facts = {"date": date.today().isoformat(), "versions": versions(), "commit": git_commit(RESULTS.parent)}
    write_json(JSON, {**facts, "split": "test", "settings": Settings().to_dict(), "runs": runs})
    with atomic_write(TABLE, "w") as file:
        file.write(table())


def _largest(drawn) -> np.ndarray:
    """Which of the four quantities each sample holds, int64 ``[N]``."""
    return np.stack([drawn.redundancy, *drawn.uniqueness.T, drawn.synergy]).argmax(axis=0)


def table() -> str:
    """The content of ``interactions_truth.md``."""
    runs = read_json(JSON)["runs"]
    lines = [
        "# Known interactions and what is measured",
        "",
        "Nats (log 2 = 0.693), 400 test rows measured by models of 1200 training rows, defaults; mean ± sample",
        "standard deviation over seeds, the truth of the same rows in parentheses. The last column says in how many",
        "rows the largest value is the right one. Made by `python benchmarks/interactions_truth.py`.",
        "",
        "| set | " + " | ".join(name.replace("_", " ") for name in COMPONENTS) + " | largest is right |",
        "|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(run["case"] for run in runs):
        of = [run for run in runs if run["case"] == case]
        cells = [_cell([run["found"][k] for run in of], [run["truth"][k] for run in of]) for k in range(4)]
        right = statistics.mean(run["largest_is_right"] for run in of)
        lines.append(f"| {case} | {' | '.join(cells)} | {right:.0%} |")
    return "\n".join(lines) + "\n" + WHY


def _cell(found: list[float], truth: list[float]) -> str:
    deviation = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    # adding 0 makes a rounded -0 a 0
    return f"{round(statistics.mean(found), 3) + 0:.3f}{deviation} ({round(statistics.mean(truth), 3) + 0:.3f})"


if __name__ == "__main__":
    main()
