"""Writes the result tables of README.md and docs/ from the result files, so that no number there is without one.

    python benchmarks/pages.py [--check]

Each table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attached
import competition
import epochs
import kernel_goals
import kernel_model
import media_input
import presets
import recorded
import scaling_page
import shares_real
import synthetic_shares
import trials
from bench_jobs import BARE, COMPILED, EAGER
from plots import JOBS

from pgm_fast.errors import CheckpointError
from pgm_fast.ops.routes import ROUTES
from pgm_fast.study.intervals import paired_interval
from pgm_fast.study.page import COLUMNS, condition_cell, overview_cell, set_rows
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = REPOSITORY / "benchmarks" / "results" / "cpu"
STUDIES = REPOSITORY / "benchmarks" / "results" / "studies"
# op, result file, sizes; the last one is lost
OPS_IN_SUMMARY = (
    ("partition_dual", "partition", {"rows": 8192, "d": 768}),
    ("gaussian_sample_kl", "gaussian_sample_kl", {"rows": 4096, "d": 512}),
    ("gated_mixture_loss", "gated_mixture", {"rows": 4096, "classes": 101}),
)
OF_METHODS = "baselines"  # the study of every method, which has a table of its own
ASIDE = ("classical", "conditions")  # further rows and conditions on sets of the other studies


def results() -> str:
    """Test scores of every set and method, the studies beside each other."""
    studies = [read_json(path) for path in _comparisons()]
    if not studies:
        return "Not measured yet."
    # in the order of the study that has most of them
    most = sorted((list(content["study"]["methods"]) for content in studies), key=len, reverse=True)
    methods = list(dict.fromkeys(name for names in most for name in names))
    lines = [f"| set | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for content in studies:
        for name, of in content["sets"].items():
            if of:
                cells = [overview_cell(of, row) for row in methods]
                lines.append(f"| {name}, {of['metric']} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "Test split, percent, mean ± standard deviation. Settings and epochs are chosen on validation splits, with",
            "the same search for every method. ▲ better than the best baseline (by validation, marked =) with a 95 %",
            "interval of the paired difference that is clear of zero, ▼ worse.",
            "",
            *lines,
        ]
    )


def _findings() -> list[Path]:
    """All studies but that one."""
    return [path for path in sorted(STUDIES.glob("*/study.json")) if path.parent.name != OF_METHODS]


def _comparisons() -> list[Path]:
    """Those that have each set once, and PgM on it."""
    return [path for path in _findings() if path.parent.name not in ASIDE]


def studies() -> str:
    """Every set of every study: scores and differences from the baseline, with their intervals."""
    lines = []
    for path in _findings():
        content = read_json(path)
        made = content["made_by"]
        lines += [
            f"### {path.parent.name}",
            "",
            f"`pgm-fast study benchmarks/studies/{path.parent.name}.yaml`; {'; '.join(made['processors'])}; "
            f"{'; '.join(made['versions'])}.",
            "",
            "| set | rows | " + " | ".join(COLUMNS) + " |",
            "|---|---|" + "---|" * len(COLUMNS),
        ]
        for name, of in content["sets"].items():
            if of:
                rows = ", ".join(f"{count} {split}" for split, count in of["rows"].items())
                for k, row in enumerate(set_rows(of)):
                    first = f"{name}, {of['metric']} | {rows}" if k == 0 else " | "
                    lines.append(f"| {first} | {' | '.join(row)} |")
        methods = list(content["study"]["methods"])
        under = [
            f"| {name}, {condition} | {' | '.join(condition_cell(by_row.get(row), of['metric']) for row in methods)} |"
            for name, of in content["sets"].items()
            for condition, by_row in (of.get("conditions") or {}).items()
        ]
        if under:
            lines += [
                "",
                "Under conditions (missing: each modality of a test row is hidden with that probability, never all of",
                "them; noise: on that modality, of so many deviations of its training rows):",
                "",
                f"| set, condition | {' | '.join(methods)} |",
                "|---|" + "---|" * len(methods),
                *under,
            ]
        lines.append("")
    return "\n".join(lines).rstrip() or "Not measured yet."


def against() -> str:
    """PgM against each baseline by itself, paired by split and seed."""
    rows = ("unimodal", "joint", "ensemble", "ensemble, pool")
    lines = [f"| set | {' | '.join(rows)} | n |", "|---|" + "---|" * (len(rows) + 1)]
    for path in _comparisons():
        content = read_json(path)
        for name, of in content["sets"].items():
            apart = _apart(content, name, of["metric"], rows)
            count = of["methods"]["pgm"]["test"]["n"]
            lines.append(f"| {name}, {of['metric']} | {' | '.join(apart.values())} | {count} |")
    return "\n".join(lines)


def _apart(content: dict[str, Any], name: str, metric: str, rows: Sequence[str]) -> dict[str, str]:
    """Row -> PgM's test score minus its own, paired by split and seed."""
    found: dict[str, dict[tuple, float]] = {}
    for cell in content["cells"]:
        if cell["set"] == name:
            score = 100 * cell["test"]["fused"][metric]
            found.setdefault(cell["method"], {})[cell["split"], cell["seed"]] = score
    ours = found.get("pgm", {})
    pairs = {row: [ours[k] - x for k, x in found.get(row, {}).items() if k in ours] for row in rows}
    return {row: _difference(of) if of else "–" for row, of in pairs.items()}


def every_method() -> str:
    """Every method on the same sets, and how far PgM is from it."""
    content = read_json(STUDIES / OF_METHODS / "study.json")
    sets, made = content["sets"], content["made_by"]
    methods = list(content["study"]["methods"])
    apart = {name: _apart(content, name, of["metric"], methods) for name, of in sets.items()}
    head = " | ".join(f"{name}, validation | {name}, test | PgM minus it" for name in sets)
    lines = [
        f"`pgm-fast study benchmarks/studies/{OF_METHODS}.yaml`; {'; '.join(made['processors'])}; "
        f"{'; '.join(made['versions'])}.",
        "",
        f"| method | {head} |",
        "|---|" + "---|" * (3 * len(sets)),
    ]
    for row in methods:
        cells = []
        for name, of in sets.items():
            scores = [of["methods"][row][split] for split in ("valid", "test")]
            cells += [f"{100 * score['mean']:.1f} ± {100 * score['sd']:.1f}" for score in scores]
            cells.append("–" if row == "pgm" else apart[name][row])
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(pairs: Sequence[float]) -> str:
    found = paired_interval(pairs)
    interval = "" if found["low"] is None else f" [{found['low']:.1f}, {found['high']:.1f}]"
    return f"{found['mean']:+.1f}{interval}"


def summary() -> str:
    """Whole jobs first, then steps, then ops: the best form of PyTorch against ours."""
    lines = ["| work | PyTorch's best | ours | |", "|---|---|---|---|"]

    def row(name: str, theirs: float, ours: float) -> None:
        lines.append(f"| {name} | {theirs:.3g} ms | {ours:.3g} ms | {theirs / ours:.1f}× |")

    for (method, batch, d), rates in _jobs().items():
        if batch == 64:
            theirs, ours = rates[BARE], max(rates[EAGER], rates[COMPILED])
            lines.append(
                f"| job: `{method}`, batch 64, 3 modalities, d {d} | {theirs:.0f} samples/s | {ours:.0f} samples/s "
                f"| {ours / theirs:.1f}× |"
            )
    for (op, shape), forms in _steps().items():
        if shape.startswith("64 "):
            row(f"step: {op}, batch × modalities × d = {shape}", *_best_step(forms))
    optimizer = [r for r in read_json(CPU / "multi_rate.json")["rows"] if r["case"] == "480 tensors, 48 groups"]
    ms = {r["optimizer"]: r["ms"]["median"] for r in optimizer}
    row("step of AdamW, 480 tensors in 48 groups", min(ms["torch fused"], ms["torch foreach"]), ms["ours"])
    for name, file, shape in OPS_IN_SUMMARY:
        rows = [
            r
            for r in read_json(CPU / f"{file}.json")["rows"]
            if r["op"] == name and r["kind"] == "forward+backward" and shape.items() <= r["shape"].items()
        ]
        ms = {r["variant"]: r["ms"]["median"] for r in rows if r.get("prior") in (None, "given")}
        sizes = " × ".join(str(size) for size in shape.values())
        row(f"op: `{name}`, {sizes}", min(ms["eager"], ms["torch.compile"]), ms["native"])
    for name, sizes in recorded.by_case(read_json(CPU / "compiled.json")["rows"]).items():
        shape, ms = next(iter(sizes.items()))
        if any(route.op == name for route in ROUTES):
            sizes = " × ".join(str(size) for _, size in shape)
            row(f"op inside of compiled code: `{name}`, {sizes}", ms[recorded.PLAIN], _recorded(name, shape[0][1], ms))
    return "\n".join(lines)


def attached_table() -> str:
    """A trained model that goes on with PgM and without."""
    return attached.table().split("\n\n", 1)[1].rstrip()


def epochs_table() -> str:
    """What choosing the epoch and the pool's weights on validation costs."""
    content = read_json(epochs.JSON)
    return f"{epochs.table(content['runs'])}\n{_processor(content)}."


def trials_table() -> str:
    """What was tried on PgM, on rows that no test split holds."""
    content = read_json(trials.JSON)
    return f"{trials.table(content['runs'])}\n{_processor(content)}."


def shares() -> str:
    """How PgM's shares go with a known truth."""
    return synthetic_shares.table().split("\n\n", 1)[1].rstrip()


def shares_on_real_sets() -> str:
    """PgM's shares beside LSMI's estimates."""
    return shares_real.table().split("\n\n", 1)[1].rstrip()


def partition() -> str:
    """Forward and backward of the partitions against eager and compiled PyTorch, every size that was measured."""
    content = read_json(CPU / "partition.json")
    rows = [row for row in content["rows"] if row["kind"] == "forward+backward"]
    lines = [
        f"{_circumstances(content)}{_against(content, 'bandwidth_gb_s')}.",
        "",
        "| op, forward + backward | rows × d | eager ms | torch.compile ms | native ms | against eager "
        "| against compile | of the floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for op, shape in dict.fromkeys((row["op"], tuple(row["shape"].values())) for row in rows):
        of = {r["variant"]: r for r in rows if r["op"] == op and tuple(r["shape"].values()) == shape}
        ms = [f"{of[name]['ms']['median']:.3g}" for name in ("eager", "torch.compile", "native")]
        native = of["native"]
        lines.append(
            f"| {op} | {shape[0]} × {shape[1]} | {' | '.join(ms)} | {native['times_eager']:.1f}× "
            f"| {native['times_compile']:.1f}× | {_of_floor(native)} |"
        )
    return "\n".join(lines)


def products() -> str:
    """Forward and backward of the ops that are mostly matrix products, beside the bare products."""
    lines = [
        _circumstances(read_json(CPU / "partitioned_linear.json")) + ".",
        "",
        "| op, forward + backward | shape | eager ms | torch.compile ms | bare products ms | native ms | against eager "
        "| against compile | of bare |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("partitioned_linear", "reconstruction", "mlp"):
        rows = [row for row in read_json(CPU / f"{name}.json")["rows"] if row["kind"] == "forward+backward"]
        for shape in dict.fromkeys(tuple(row["shape"].items()) for row in rows):
            of = {row["variant"]: row for row in rows if tuple(row["shape"].items()) == shape}
            ms = [f"{of[kind]['ms']['median']:.3g}" for kind in ("eager", "torch.compile", "bare", "native")]
            native, sizes = of["native"], ", ".join(f"{key} {size}" for key, size in shape)
            lines.append(
                f"| {name} | {sizes} | {' | '.join(ms)} | {native['times_eager']:.2f}× "
                f"| {native['times_compile']:.2f}× | {native['of_bare']:.2f}× |"
            )
    return "\n".join(lines)


def dimml() -> str:
    """The ops of DI-MML beside the forms that they take the place of."""
    content = read_json(CPU / "duc_loss.json")
    lines = [
        _circumstances(content) + ".",
        "",
        "| duc_loss, forward + backward | rows | loop ms | eager ms | torch.compile ms | native ms | against the loop "
        "| against eager | memory, eager | memory, native |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, rows in dict.fromkeys((row["kind"], row["shape"]["rows"]) for row in content["rows"]):
        of = {r["variant"]: r for r in content["rows"] if (r["kind"], r["shape"]["rows"]) == (kind, rows)}
        times = [of[k]["ms"]["median"] if k in of else None for k in ("loop", "eager", "torch.compile", "native")]
        ms = ["–" if x is None else f"{x:.3g}" if x < 1000 else f"{x:.0f}" for x in times]
        native = of["native"]
        loop = f"{native['times_loop']:.0f}×" if "loop" in of else "–"
        lines.append(
            f"| {kind.partition(', ')[2]} | {rows} | {' | '.join(ms)} | {loop} | {native['times_eager']:.2f}× "
            f"| {of['eager']['percent_of_products']:.0f} % | {native['percent_of_products']:.0f} % |"
        )
    content = read_json(CPU / "effective_dimensions.json")
    lines += [
        "",
        "| effective_dimensions | every pair ms | ours ms | against every pair | memory, every pair | memory, ours |",
        "|---|---|---|---|---|---|",
    ]
    for shape in dict.fromkeys(tuple(row["shape"].items()) for row in content["rows"]):
        of = {row["variant"]: row for row in content["rows"] if tuple(row["shape"].items()) == shape}
        ours, pairs, size = of["torch"], of.get("broadcast"), dict(shape)
        ms, memory, times = "–", "–", "–"
        if pairs:
            ms, memory = f"{pairs['ms']['median']:.0f}", f"{pairs['peak_bytes'] / 1e6:.0f} MB"
            times = f"{ours['times_broadcast']:.1f}×"
        lines.append(
            f"| {size['rows']} × {size['d']}, {size['classes']} classes | {ms} | {ours['ms']['median']:.0f} | {times} "
            f"| {memory} | {ours['peak_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def competition_table() -> str:
    """Modality competition: test accuracies on the set made for it."""
    return competition.table(read_json(competition.JSON)["runs"]).split("\n", 2)[2].rstrip()


def published(method: str) -> Callable[[], str]:
    """What a method's presets reach, beside the released recipes."""
    return lambda: presets.table([name for name in presets.CASES if name.startswith(method)])


def optimizers() -> str:
    """Steps of the multi-rate optimizer beside torch's with the same param groups."""
    content = read_json(CPU / "multi_rate.json")
    lines = [
        f"{_circumstances(content)}; the floor is 28 bytes per parameter{_against(content, 'stream_gb_per_s')}.",
        "",
        "| step of AdamW | tensors, groups, parameters | ours ms | torch fused ms | torch foreach ms | launches "
        "| host µs | of the floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(row["case"] for row in content["rows"]):
        of = {row["optimizer"]: row for row in content["rows"] if row["case"] == case}
        ours, ms = of["ours"], {kind: row["ms"]["median"] for kind, row in of.items()}
        others = [f"{ms[k]:.3g} ({ms[k] / ms['ours']:.1f}×)" for k in ("torch fused", "torch foreach")]
        lines.append(
            f"| {case} | {ours['tensors']}, {ours['groups']}, {ours['parameters'] / 1e6:.3g} M | {ms['ours']:.3g} "
            f"| {' | '.join(others)} | {ours['launches']} | {ours['host_us']:.0f} | {_of_floor(ours)} |"
        )
    return "\n".join(lines)


def step() -> str:
    """A whole training step of each method in every form and with every optimizer."""
    content = read_json(CPU / "step.json")
    lines = [
        f"{_circumstances(content)}, {content.get('clock', 'wall')}.",
        "",
        "| training step | batch × modalities × d | form | torch's fused AdamW, ms | MultiRateAdamW, ms "
        "| best of ours against it | ops | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (op, shape), forms in _steps().items():
        _, ours = _best_step(forms)
        for name, by in forms.items():
            torchs, own = by.get("torch AdamW, fused"), by.get("MultiRateAdamW") or by.get("none")
            ms = [row["ms"]["median"] if row else None for row in (torchs, own)]
            cells = ["–" if x is None else f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in ms]
            fewest = own or torchs
            times = f"{torchs['ms']['median'] / ours:.2f}×" if torchs and not name.startswith("ours") else "–"
            memory = f"{fewest['peak_bytes'] / 2**20:.1f} MiB"
            lines.append(f"| {op} | {shape} | {name} | {' | '.join(cells)} | {times} | {fewest['ops']} | {memory} |")
    return "\n".join(lines)


def profile() -> str:
    """Where an eager step spends its time."""
    content = read_json(CPU / "step_shares.json")
    kinds = list(content["rows"][0]["percent"])
    lines = [
        _circumstances(content) + ".",
        "",
        f"| training step, percent of its time | {' | '.join(kinds)} |",
        "|---|" + "---|" * len(kinds),
    ]
    for row in content["rows"]:
        shape = " × ".join(str(size) for size in row["shape"].values())
        cells = [f"{row['percent'][kind]:.0f}" for kind in kinds]
        lines.append(f"| {row['op']}, {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _steps() -> dict[tuple[str, str], dict[str, dict[str, dict]]]:
    """(method and gate, shape) -> form -> optimizer -> row."""
    found: dict[tuple[str, str], dict[str, dict[str, dict]]] = {}
    for row in read_json(CPU / "step.json")["rows"]:
        case = row["op"], " × ".join(str(size) for size in row["shape"].values())
        found.setdefault(case, {}).setdefault(row["variant"], {})[row["optimizer"]] = row
    return found


def _best_step(forms: dict[str, dict[str, dict]]) -> tuple[float, float]:
    """Milliseconds of PyTorch's best form with PyTorch's optimizer, and of the best of ours."""
    medians = {(form, name): row["ms"]["median"] for form, by in forms.items() for name, row in by.items()}
    theirs = [x for (form, name), x in medians.items() if not form.startswith("ours") and name.startswith("torch")]
    return min(theirs), min(x for (form, _), x in medians.items() if form.startswith("ours"))


def _jobs() -> dict[tuple[str, int, int], dict[str, float]]:
    """Method, batch and d -> form -> samples per second of processor time."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in read_json(CPU / "jobs.json")["rows"]:
        if row["kind"] == "rate":
            of = found.setdefault((row["method"], row["shape"]["batch"], row["shape"]["d"]), {})
            of[row["form"]] = row["samples_per_processor_second"]
    return dict(sorted(found.items()))


def targets() -> str:
    """What was wanted of jobs and steps beside what is reached, the best of ours against PyTorch's best."""
    lines = ["| work, batch × modalities × d | wanted | reached |", "|---|---|---|"]
    for (method, batch, d), rates in _jobs().items():
        reached = max(rates[EAGER], rates[COMPILED]) / rates[BARE]
        wanted = 2.5 if batch == 64 else 1.1
        lines.append(f"| job, `{method}`, {batch} × 3 × {d} | {wanted}× of a bare compiled loop | {reached:.2f}× |")
    for (op, shape), forms in _steps().items():
        best, ours = _best_step(forms)
        wanted = 1.15 if not shape.startswith("64 ") else 2.5 if op.startswith("pgm") else 2
        lines.append(f"| step, {op}, {shape} | {wanted}× of `torch.compile` | {best / ours:.2f}× |")
    return "\n".join(lines)


def compiled() -> str:
    """Ops inside of compiled code, beside the plain formula compiled."""
    content = read_json(CPU / "compiled.json")
    lines = [
        f"{_circumstances(content)}, {content['clock']}.",
        "",
        "| op, forward + backward | size | plain, compiled, ms | as a call, ms | as its formula, ms | recorded as "
        "| against plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for op, sizes in recorded.by_case(content["rows"]).items():
        for shape, ms in sizes.items():
            ours, plain = _recorded(op, shape[0][1], ms), ms.get(recorded.PLAIN)
            cells = [
                f"{ms[name]:.3g}" if name in ms else "–" for name in (recorded.PLAIN, recorded.CALL, recorded.FORMULA)
            ]
            how = recorded.FORMULA if ours == ms.get(recorded.FORMULA) else recorded.CALL
            size = ", ".join(f"{key} {count}" for key, count in shape)
            times = f"{plain / ours:.2f}×" if plain else "plain is wrong"
            lines.append(f"| {op} | {size} | {' | '.join(cells)} | {how} | {times} |")
    return "\n".join(lines)


def _recorded(op: str, rows: int, ms: dict[str, float]) -> float:
    """Milliseconds of what torch.compile records of an op of so many rows."""
    route = next((route for route in ROUTES if route.op == op), None)
    formula = route is not None and rows <= route.rows
    return ms[recorded.FORMULA if formula else recorded.CALL]


def plots() -> str:
    """The plots of ops that ``plots.py`` has drawn."""
    return "\n".join(
        f"![{path.stem}](../{path.relative_to(REPOSITORY).as_posix()})"
        for path in sorted(CPU.glob("*.png"))
        if path.stem != JOBS
    )


def components() -> str:
    """DMIL's ops."""
    names = ("gaussian_sample_kl", "gated_mixture")
    lines = [
        ". ".join(dict.fromkeys(_circumstances(read_json(CPU / f"{name}.json")) for name in names)) + ".",
        "",
        "| op, forward + backward | shape | eager ms | torch.compile ms | native ms | against eager | against compile "
        "| peak memory, eager and native |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        rows = [row for row in read_json(CPU / f"{name}.json")["rows"] if row["kind"] == "forward+backward"]
        cases = dict.fromkeys((row.get("prior"), tuple(row["shape"].items())) for row in rows)
        for prior, shape in cases:
            of = {r["variant"]: r for r in rows if (r.get("prior"), tuple(r["shape"].items())) == (prior, shape)}
            ms = [f"{of[kind]['ms']['median']:.3g}" for kind in ("eager", "torch.compile", "native")]
            native = of["native"]
            sizes = " × ".join(str(size) for key, size in shape if key in ("rows", "d", "classes"))
            memory = ", ".join(f"{of[kind]['peak_bytes'] / 2**20:.3g}" for kind in ("eager", "native"))
            lines.append(
                f"| {native['op']}{f', prior {prior}' if prior else ''} | {sizes} | {' | '.join(ms)} "
                f"| {native['times_eager']:.1f}× | {native['times_compile']:.1f}× | {memory} MiB |"
            )
    return "\n".join(lines)


def densities() -> str:
    """KNIFE's log-density and gradient beside the form that copies the coupling per row."""
    content = read_json(CPU / "knife.json")
    lines = [
        _circumstances(content) + ".",
        "",
        "| log-density and gradient | copying ms | ours ms | against copying | peak memory, copying and ours |",
        "|---|---|---|---|---|",
    ]
    for rows, d in dict.fromkeys((row["shape"]["rows"], row["shape"]["d"]) for row in content["rows"]):
        of = {r["variant"]: r for r in content["rows"] if (r["shape"]["rows"], r["shape"]["d"]) == (rows, d)}
        ours, copying = of["batched product"], of.get("copying")
        cells = ["more than 4 GiB", f"{ours['ms']['median']:.3g}", "–", f"–, {ours['peak_bytes'] / 1e6:.0f} MB"]
        if copying:
            cells[0], cells[2] = f"{copying['ms']['median']:.3g}", f"{ours['times_copying']:.0f}×"
            cells[3] = f"{copying['peak_bytes'] / 1e6:.0f}, {ours['peak_bytes'] / 1e6:.0f} MB"
        lines.append(f"| {rows} rows, d {d} | {' | '.join(cells)} |")
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": results, "summary": summary},
    "docs/baselines.md": {"every method": every_method},
    "docs/data.md": {"media": media_input.sentence},
    "docs/dimml.md": {"presets": published("dimml"), "competition": competition_table},
    "docs/dmil.md": {"presets": published("dmil")},
    "docs/gpu.md": {"model": kernel_model.table, "goals": kernel_goals.table},
    "docs/interactions.md": {"presets": published("lsmi")},
    "docs/findings.md": {
        "against": against,
        "studies": studies,
        "epochs": epochs_table,
        "trials": trials_table,
        "attached": attached_table,
        "shares": shares,
        "shares on real sets": shares_on_real_sets,
    },
    "docs/scaling.md": {
        "shares": scaling_page.job_shares,
        "media": media_input.sentence,
        "weak scaling": scaling_page.weak_scaling,
        "plan": scaling_page.scaling_plan,
    },
    "docs/speed.md": {
        "jobs": scaling_page.jobs,
        "step": step,
        "profile": profile,
        "targets": targets,
        "compiled": compiled,
        "partition": partition,
        "products": products,
        "plots": plots,
        "dimml": dimml,
        "optimizers": optimizers,
        "components": components,
        "densities": densities,
    },
}


def filled(page: str, text: str) -> str:
    """The page's text with every table made anew."""
    for name, make in PAGES[page].items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"error: {page} has no {begin} ... {end}")
        table = f"{begin}\n{_table(make)}\n{end}"
        text = pattern.sub(lambda _, table=table: table, text)
    return text


def _table(make: Callable[[], str]) -> str:
    try:
        return make()
    except CheckpointError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return "Not measured yet."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the pages with the result files")
    check = parser.parse_args(arguments).check
    stale = []
    for page in PAGES:
        path = REPOSITORY / page
        text = path.read_text(encoding="utf-8")
        wanted = filled(page, text)
        if text != wanted:
            stale.append(page)
            if not check:
                with atomic_write(path, "w") as file:
                    file.write(wanted)
    if check and stale:
        print(f"{', '.join(stale)}: not what the result files say; run python benchmarks/pages.py", file=sys.stderr)
    return int(check and bool(stale))


def _of_floor(row: dict[str, Any]) -> str:
    """Percent, and the cache that holds the row's footprint. Rows from before streams were measured beside them know
    one stream of another footprint, which for some is no floor."""
    if "stream" not in row and row["percent_of_floor"] > 100:
        return "–"
    percent = f"{row['percent_of_floor']:.0f} %"
    return f"{percent}, in {row['fits']}" if row.get("fits") else percent


def _against(content: dict[str, Any], bandwidth: str) -> str:
    """What the floors were, where one stream of memory served all rows of the file."""
    return f"; a stream of memory moves {content[bandwidth]:.1f} GB/s" if bandwidth in content else ""


def _processor(content: dict[str, Any]) -> str:
    return f"{content['processor']}, torch {content['versions']['torch']}, {content['date']}"


def _circumstances(content: dict[str, Any]) -> str:
    device, used = content["device"], content["versions"]
    return f"{device['name']}, {content['threads']} threads, torch {used['torch']}, float32, {content['date']}"


if __name__ == "__main__":
    sys.exit(main())
