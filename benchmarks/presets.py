"""Do the presets reach what the released recipes reach on the same small sets?

    python benchmarks/presets.py [--data data] [--cases dimml-mfeat ...] [--seeds 0 1 2]

The released figures were measured by running the released code on the same rows of mfeat (views ``fou`` and ``mor``)
and digits (left and right half), its picture and sound networks replaced by networks for vectors. LSMI's demo set is
drawn anew by its formulas: two classes, x_1 = onehot(y) + u, x_2 = onehot(y) + u / 2 + sqrt(3/4) v, with u and v of
deviation 1/2, 1600 rows to fit and 400 to measure. Failures are among the figures: DMIL's newest schedule counts
epochs, and here their steps are too few. Writes ``results/methods/presets.json``, where cells not measured again
stay, and ``presets.md`` from it alone. ``mfeat.npz`` is looked for in ``--data``; without it its cases are skipped.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from pgm_fast import presets
from pgm_fast.data import FeatureSet
from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.interactions import Settings, estimate
from pgm_fast.train import fit
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "methods"
JSON, TABLE = RESULTS / "presets.json", RESULTS / "presets.md"
PERCENT = ("accuracy",)
NATS = ("redundancy r", "uniqueness u1", "uniqueness u2", "synergy s")


@dataclass(frozen=True)
class Case:
    """A preset on a set.

    Attributes:
        preset: which.
        set: as tables call it.
        figures: names of what is measured.
        released: figure -> mean and sample standard deviation (None: of one run) of the released code.
        runs: how many runs the released figures are of.
        seeds: of ours.
        settings: besides the preset.
        truth: figure -> what it is by the set's formulas.
    """

    preset: str
    set: str
    figures: Sequence[str]
    released: Sequence[tuple[float, float | None]]
    runs: int
    seeds: Sequence[int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    truth: Sequence[float] = ()


VIEWS = {"data.source": "mfeat.npz", "data.modalities": ["fou", "mor"]}
CASES = {
    "dimml-mfeat": Case("dimml/crema-d", "mfeat fou+mor", PERCENT, [(85.7, 0.9)], 3, range(3), VIEWS),
    "dmil-mfeat": Case(
        "dmil/crema-d",
        "mfeat fou+mor",
        PERCENT,
        [(59.9, 8.0)],
        6,
        range(6),
        {**VIEWS, "dmil.modality_weight": {"fou": 0.4, "mor": 2.0}},
    ),
    "dmil-digits": Case(
        "dmil/crema-d",
        "digits",
        PERCENT,
        [(50.2, 9.5)],
        6,
        range(6),
        {"data.source": "digits", "dmil.modality_weight": {"left": 0.4, "right": 2.0}},
    ),
    "lsmi-demo": Case(
        "lsmi",
        "LSMI's demo",
        NATS,
        [(0.481, None), (0.005, None), (0.029, None), (0.045, None)],
        1,
        range(6),
        truth=(0.498, 0.001, 0.000, 0.064),
    ),
}


def demo(seed: int) -> FeatureSet:
    """LSMI's demo set, see the head of this file, and some validation rows, which change nothing with this preset."""
    rng = np.random.default_rng(seed)
    split = np.repeat(["train", "valid", "test"], [1600, 100, 400])
    label = rng.integers(0, 2, len(split))
    u, v = 0.5 * rng.standard_normal((2, len(split), 2))
    first = np.eye(2)[label] + u
    second = np.eye(2)[label] + 0.5 * u + math.sqrt(0.75) * v
    modalities = {"x1": first.astype(np.float32), "x2": second.astype(np.float32)}
    return FeatureSet("demo", modalities, "classification", label, split, num_classes=2)


def interactions(case: Case, seed: int, data: Path) -> list[float]:
    """Mean r, u1, u2 and s of the rows that nothing was fitted on."""
    settings = Settings(**presets.read(case.preset, "interactions"), seed=seed)
    found = estimate(demo(seed), split="test", settings=settings, device="cpu")
    means = found.pairs["x1+x2"].means
    return [float(x) for x in means]


def accuracy(case: Case, seed: int, data: Path) -> list[float]:
    """Percent of the test rows."""
    settings = dict(case.settings)
    if settings["data.source"] != "digits":
        settings["data.source"] = str(data / settings["data.source"])
    quiet = {"train.plots": False, "train.logger": [], "train.threads": 1, "train.device": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        report = fit(out=f"{folder}/run", preset=case.preset, **settings, **quiet, **{"train.seed": seed})
    return [100 * report["test"]["fused"]["accuracy"]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of a case's own")
    args = parser.parse_args(arguments)
    content = read_json(JSON) if JSON.exists() else {"cells": {}}
    for name in args.cases:
        case = CASES[name]
        if case.settings.get("data.source", "digits") != "digits" and not (args.data / "mfeat.npz").exists():
            print(f"{name}: skipped, {args.data} holds no mfeat.npz")
            continue
        measure: Callable[[Case, int, Path], list[float]] = interactions if case.preset == "lsmi" else accuracy
        for seed in args.seeds or case.seeds:
            values = measure(case, seed, args.data)
            print(f"{name}, seed {seed}: {', '.join(f'{value:.3f}' for value in values)}", flush=True)
            content["cells"].setdefault(name, {})[str(seed)] = {
                "values": values,
                "processor": processor_name(),
                "versions": versions(),
                "commit": git_commit(),
                "date": date.today().isoformat(),
            }
            write_json(JSON, content)
    with atomic_write(TABLE, "w") as file:
        file.write(f"# Presets and the released recipes\n\n{table(CASES)}\n")


def table(cases: Sequence[str]) -> str:
    """Of these cases, from the result file."""
    cells = read_json(JSON)["cells"]
    known = [name for name in cases if name in cells]
    made = {cell["processor"] for name in known for cell in cells[name].values()}
    lines = [
        "Mean ± sample standard deviation over seeds; accuracy on the test split in percent, the others in nats.",
        "Released: the released code on the same rows. The difference is given with its standard error. Made by",
        f"`python benchmarks/presets.py` on {', '.join(sorted(made))}.",
        "",
        "| preset | set | | preset here | n | released code | n | difference | truth |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in known:
        case, rows = CASES[name], [cell["values"] for cell in cells[name].values()]
        for k, figure in enumerate(case.figures):
            ours = [values[k] for values in rows]
            lines.append(f"| {' | '.join(_row(case, k, figure, ours))} |")
    return "\n".join(lines)


def _row(case: Case, k: int, figure: str, ours: Sequence[float]) -> list[str]:
    digits = 1 if case.figures is PERCENT else 3
    mean, spread = statistics.fmean(ours), statistics.stdev(ours) if len(ours) > 1 else None
    theirs, their_spread = case.released[k]
    difference = f"{mean - theirs:+.{digits}f}"
    if spread is not None:
        # of one run the spread is taken to be ours
        error = math.sqrt(spread**2 / len(ours) + (spread if their_spread is None else their_spread) ** 2 / case.runs)
        difference += f" ± {error:.{digits}f}"
    truth = f"{case.truth[k]:.{digits}f}" if case.truth else "–"
    first = [f"`{case.preset}`", case.set] if k == 0 else ["", ""]
    here, there = _figure(mean, spread, digits), _figure(theirs, their_spread, digits)
    return [*first, figure, here, str(len(ours)), there, str(case.runs), difference, truth]


def _figure(mean: float, spread: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main()
