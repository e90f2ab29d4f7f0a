"""Tables of jobs, steps and ops, for README.md and docs/speed.md, from the result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recorded
from bench_jobs import BARE, COMPILED, EAGER
from plots import JOBS

from pgm_fast.ops.routes import ROUTES
from pgm_fast.train.run.json_files import read_json

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = REPOSITORY / "benchmarks" / "results" / "cpu"
# op, result file, sizes; the last one is lost
OPS_IN_SUMMARY = (
    ("partition_dual", "partition", {"rows": 8192, "d": 768}),
    ("gaussian_sample_kl", "gaussian_sample_kl", {"rows": 4096, "d": 512}),
    ("gated_mixture_loss", "gated_mixture", {"rows": 4096, "classes": 101}),
)


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


def _circumstances(content: dict[str, Any]) -> str:
    device, used = content["device"], content["versions"]
    return f"{device['name']}, {content['threads']} threads, torch {used['torch']}, float32, {content['date']}"
