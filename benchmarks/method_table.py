"""What the methods reach on real data at default settings: mean and standard deviation over seeds, on the test split.

    python benchmarks/method_table.py [--seeds 0 1 2] [--tasks digits ...] [--methods pgm-single ...]
    python benchmarks/method_table.py --check

Every finished run is kept in ``<out>/<task>.json`` with its configuration and versions, and is not repeated while its
configuration is the same, so an interrupted table is completed by the same command. ``<out>/table.md`` is made from
those files alone. Data files are looked for in ``PGM_FAST_DATA``, else in ``../shared/data`` beside the repository; a
task whose file is missing is skipped.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from pgm_fast.env import git_commit, versions
from pgm_fast.errors import ConfigError, PgmFastError
from pgm_fast.train import fit
from pgm_fast.train.configure import make_config, to_dict
from pgm_fast.train.files import atomic_write
from pgm_fast.train.metrics import primary_metric
from pgm_fast.train.reports import read_json, write_json

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "methods"
TABLE = "table.md"
# Files that a run writes besides its numbers; they change no number and are not needed here.
QUIET = ("train.plots=false", "train.tensorboard=false")


@dataclass(frozen=True)
class Task:
    """A data set and how it is read."""

    title: str
    source: str
    settings: tuple[str, ...] = ()

    @property
    def retrieval(self) -> bool:
        return "data.task=retrieval" in self.settings


TASKS = {
    "digits": Task("digits, left and right half", "digits"),
    "mfeat-fou-mor": Task("mfeat, `fou` and `mor`", "mfeat.npz", ("data.modalities=[fou,mor]",)),
    "mosi": Task("MOSI per utterance", "mosi.npz", ("data.modalities=[text,audio,vision]",)),
    "mosi-text-vision": Task("MOSI, text and vision", "mosi.npz", ("data.modalities=[text,vision]",)),
    "mosi-text-audio": Task("MOSI, text and audio", "mosi.npz", ("data.modalities=[text,audio]",)),
    "mosi-context": Task(
        "MOSI in context (one sequence per video)",
        "mosi.npz",
        ("data.modalities=[text,audio,vision]", "data.group_by=video", "data.order_by=utterance"),
    ),
    "mfeat-retrieval": Task(
        "mfeat, retrieval `pix` ↔ `zer`", "mfeat.npz", ("data.modalities=[pix,zer]", "data.task=retrieval")
    ),
}

EARLIER = ("pgm.identity_start=false", "pgm.interaction=attention", "pgm.uni_weight=1", "model.normalize=false")
METHODS = {
    "unimodal": ("unimodal", ()),
    "joint": ("joint", ()),
    "ensemble": ("ensemble", ()),
    "pgm-single": ("pgm", ("pgm.gate=single", *EARLIER)),
    "pgm-dual": ("pgm", ("pgm.gate=dual", *EARLIER)),
    "dimml": ("dimml", ()),
    "dmil": ("dmil", ()),
}
NEEDS_LABELS = ("unimodal", "ensemble", "dimml", "dmil")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where everything asked for is there (and, with ``--check``, right)."""
    options = _parser().parse_args(arguments)
    if options.check:
        return check(options.out)
    failed = []
    for task in options.tasks:
        source = find_source(TASKS[task].source)
        if source is None:
            print(f"{task}: skipped, {TASKS[task].source} is not in {data_folder()}; set PGM_FAST_DATA to its folder")
            continue
        for method in options.methods:
            if TASKS[task].retrieval and method in NEEDS_LABELS:
                continue
            for seed in options.seeds:
                try:
                    run(options.out, task, method, seed, source, options.set, options.again)
                except PgmFastError as error:
                    failed.append(f"{task} {method} seed {seed}: {error}")
                    print(failed[-1], file=sys.stderr)
    write_table(options.out)
    print(f"{options.out / TABLE}")
    return 1 if failed else 0


def run(
    out: Path, task: str, method: str, seed: int, source: str, extra: Sequence[str] = (), again: bool = False
) -> None:
    """Train once and add the result to the task's file; nothing where it is there with the same configuration."""
    path = out / f"{task}.json"
    content = read_json(path) if path.exists() else {"benchmark": "method_table", "task": task, "runs": []}
    settings = [*settings_of(task, method), *extra]
    config = make_config(None, [*settings, *QUIET, f"data.source={source}", f"train.seed={seed}"])
    # Neither where data lies nor where the run folder is says anything about the run.
    used = to_dict(config)
    used["data"]["source"] = TASKS[task].source
    del used["out"]
    known = next((known for known in content["runs"] if (known["method"], known["seed"]) == (method, seed)), None)
    if known is not None and known["config"] == used and not again:
        return
    with tempfile.TemporaryDirectory() as folder:
        config.out = str(Path(folder) / "run")
        report = fit(config)
    result = {
        "method": method,
        "seed": seed,
        "settings": settings,
        "report": {key: report[key] for key in report if key != "data"},
        "config": used,
        "versions": versions(),
        "commit": git_commit(REPOSITORY),
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
    }
    order = list(METHODS)
    runs = [known for known in content["runs"] if (known["method"], known["seed"]) != (method, seed)] + [result]
    content["runs"] = sorted(runs, key=lambda known: (order.index(known["method"]), known["seed"]))
    write_json(path, content)
    name, _ = primary_metric(report["task"])
    print(f"{task} {method} seed {seed}: {name} {report['test']['fused'][name]:.4f}", flush=True)


def settings_of(task: str, method: str) -> list[str]:
    """In what a run's configuration differs from the defaults, but for its data source, its seed and its folder."""
    name, settings = METHODS[method]
    return [f"method={name}", *TASKS[task].settings, *settings]


def command_of(task: str, method: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The command that makes these runs."""
    source = TASKS[task].source
    source = source if Path(source).suffix == "" else f'"$PGM_FAST_DATA/{source}"'
    name, *settings = runs[0]["settings"]
    quoted = [f"'{setting}'" if "[" in setting else setting for setting in settings]
    seeds = " ".join(str(known["seed"]) for known in runs)
    command = ["pgm-fast train", f"--method {name.removeprefix('method=')}", f"--data {source}", *quoted]
    return " ".join([*command, f"--out runs/{task}/{method}", f"--seeds {seeds}"])


def write_table(out: Path) -> None:
    """Make ``table.md`` anew from the result files."""
    with atomic_write(out / TABLE, "w") as file:
        file.write(table(out))


def table(out: Path) -> str:
    """The content of ``table.md``, from the result files in ``out`` and nothing else."""
    results = {task: read_json(out / f"{task}.json") for task in TASKS if (out / f"{task}.json").exists()}
    lines = ["# Methods at default settings", ""]
    if not results:
        return "\n".join([*lines, "No results yet.", ""])
    lines += [
        "Test split; mean ± sample standard deviation over seeds, in percent. The epoch is chosen on the",
        "validation split. Made by `python benchmarks/method_table.py` from the JSON files beside this one, which hold",
        "every run with its configuration and versions.",
        "",
        f"| data | metric | {' | '.join(METHODS)} |",
        f"|---|---|{'---|' * len(METHODS)}",
    ]
    for task, content in results.items():
        groups = _by_method(content)
        metric, _ = primary_metric(content["runs"][0]["report"]["task"])
        cells = [
            _cell([known["report"]["test"]["fused"].get(metric) for known in groups.get(method, [])])
            for method in METHODS
        ]
        lines.append(f"| {TASKS[task].title} | {metric} | {' | '.join(cells)} |")
    lines += [
        "",
        "`unimodal` answers with the modality that is best on the validation split. Without labels, it, `ensemble`,",
        "`dimml` and `dmil` are not defined.",
    ]
    for task, content in results.items():
        lines += ["", f"## {TASKS[task].title}", "", *_details(task, content)]
    return "\n".join([*lines, ""])


def check(out: Path) -> int:
    """0 where ``table.md`` is what its result files make, else 1 and what to do."""
    path = out / TABLE
    if path.exists() and path.read_text(encoding="utf-8") == table(out):
        print(f"{path} agrees with its result files")
        return 0
    print(
        f"{path} does not agree with its result files; run python benchmarks/method_table.py --tasks", file=sys.stderr
    )
    return 1


def data_folder() -> Path:
    """Where the data files are looked for."""
    return Path(os.environ.get("PGM_FAST_DATA", REPOSITORY.parent / "shared" / "data"))


def find_source(source: str) -> str | None:
    """What to give as ``data.source``; None where the file is missing."""
    if Path(source).suffix == "":
        return source
    path = data_folder() / source
    return str(path) if path.exists() else None


def _details(task: str, content: Mapping[str, Any]) -> list[str]:
    """A task's own table: each modality alone (retrieval: each direction), the paired share, the size, the commands."""
    groups = _by_method(content)
    first = content["runs"][0]["report"]
    metric, _ = primary_metric(first["task"])
    kind = "pairs" if TASKS[task].retrieval else "unimodal"
    outputs = list(first["test"][kind])
    shared = list(next((known["report"]["shares"] for known in content["runs"] if known["report"]["shares"]), {}))
    head = [
        "method",
        "fused",
        *outputs,
        *(f"paired share of {modality}" for modality in shared),
        "epochs",
        "parameters",
    ]
    lines = [
        f"{metric} of the fused output and of {'each direction' if kind == 'pairs' else 'each modality alone'}:",
        "",
    ]
    lines += [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    for method, runs in groups.items():
        reports = [known["report"] for known in runs]
        cells = [_cell([report["test"]["fused"].get(metric) for report in reports])]
        cells += [_cell([report["test"][kind].get(output, {}).get(metric) for report in reports]) for output in outputs]
        cells += [_cell([_paired(report["shares"].get(modality)) for report in reports]) for modality in shared]
        epochs = statistics.mean(report["epochs"] for report in reports)
        lines.append(f"| {method} | {' | '.join(cells)} | {epochs:.0f} | {reports[0]['parameters']:,} |")
    return [*lines, "", "```sh", *(command_of(task, method, runs) for method, runs in groups.items()), "```"]


def _paired(shares: Mapping[str, float] | None) -> float | None:
    """The share of a representation that reaches the paired learner."""
    return sum(shares[name] for name in ("paired", "paired_only", "shared") if name in shares) if shares else None


def _by_method(content: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for known in content["runs"]:
        groups.setdefault(known["method"], []).append(known)
    return groups


def _cell(values: Sequence[float | None]) -> str:
    """Percent, mean ± sample standard deviation; a dash where a run lacks the value."""
    if not values or any(value is None for value in values):
        return "–"
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean} (one seed)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--tasks", nargs="*", choices=list(TASKS), default=list(TASKS), help="none: make the table anew, train nothing"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of every run")
    parser.add_argument("--again", action="store_true", help="repeat runs that are there")
    parser.add_argument("--check", action="store_true", help="only compare table.md with the result files")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(f"error: {error}")
