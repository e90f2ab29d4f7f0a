"""Tables of whole jobs from result files: beside their alternatives, where their time goes, more processes, the plan of
larger machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_jobs import FORMS

from pgm_fast.train.run.json_files import read_json

CPU = Path(__file__).resolve().parent / "results" / "cpu"

# What the vendor says of an H100 SXM, and of a node with one 400 Gb/s adapter per device; the parts are ours.
MACHINE = {
    "peak_flop_per_s": 989e12,  # dense bfloat16
    "part_of_peak": 0.4,
    "link_bytes_per_s": 450e9,  # NVLink, one direction
    "adapter_bytes_per_s": 50e9,  # InfiniBand NDR
    "part_of_links": 0.7,
    "device_bytes": 80e9,
    "devices_per_node": 8,
}
BACKWARD = 2 / 3  # of a step's operations, behind which the sums over devices can hide
STATE = 16  # bytes per parameter: float32 weight, gradient and two moments


def plan(row: dict[str, Any], nodes: int, sharded: bool, host: float) -> dict[str, float]:
    """Bytes and seconds of a step on ``nodes`` of :data:`MACHINE`, all devices in one group, that the host takes
    ``host`` seconds to hand out.

    Sums over devices go over the links of each node first (a part of the gradients per device), then between devices
    of the same place over the adapters, then back: of B bytes, B (k - 1) / k twice over a link and (B / k) (n - 1) / n
    twice over an adapter. FSDP gathers bfloat16 weights for the pass forth and again for the pass back, and
    scatters sums of float32 gradients, as ``train.strategy=fsdp`` does: three times one way. Latencies are left out.
    """
    at, k = MACHINE, MACHINE["devices_per_node"]
    parameters = row["parameters"]
    one_way = (2 + 2 + 4) * parameters if sharded else (4 + 4) * parameters
    link, adapter = one_way * (k - 1) / k, one_way / k * (nodes - 1) / nodes
    moving = (link / at["link_bytes_per_s"] + adapter / at["adapter_bytes_per_s"]) / at["part_of_links"]
    computing = row["flop"] / (at["peak_flop_per_s"] * at["part_of_peak"])
    step = max(computing, host)
    hidden = step if sharded else BACKWARD * step
    waiting = max(0.0, moving - hidden)
    state = STATE * parameters / (k * nodes if sharded else 1)
    return {
        "link_bytes": link,
        "adapter_bytes": adapter,
        "moving_s": moving,
        "computing_s": computing,
        "efficiency": step / (step + waiting),
        "memory_bytes": state + row["kept_bytes"],
    }


def jobs() -> str:
    """Samples per second of processor time of every form, and the engine against the others."""
    content = read_json(CPU / "jobs.json")
    of: dict[tuple[str, int, int], dict[str, dict]] = {}
    for row in content["rows"]:
        if row["kind"] == "rate":
            shape = row["shape"]
            of.setdefault((row["method"], shape["batch"], shape["d"]), {})[row["form"]] = row
    lines = [
        _circumstances(content),
        "",
        "| method | batch | d | bare loop, torch.compile, fused AdamW | Lightning, fused AdamW | fit "
        "| fit, train.compile | fit against the bare loop | against Lightning "
        "| with train.compile against the bare loop |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (method, batch, d), forms in sorted(of.items()):
        bare, lightning, fit, compiled = (forms.get(name, {}).get("samples_per_processor_second") for name in FORMS)
        rates = " | ".join("–" if rate is None else f"{rate:.0f}" for rate in (bare, lightning, fit, compiled))
        pairs = ((fit, bare), (fit, lightning), (compiled, bare))
        ratios = " | ".join(f"{one / other:.2f}×" if one and other else "–" for one, other in pairs)
        lines.append(f"| {method} | {batch} | {d} | {rates} | {ratios} |")
    return "\n".join(lines)


def job_shares() -> str:
    """Where an epoch of the engine's loop spends its time."""
    content = read_json(CPU / "jobs.json")
    lines = [
        "| method | batch | data | forward | backward | clip and step | rest of the loop "
        "| of forward and backward: in our ops | in torch's | Python and autograd |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [row for row in content["rows"] if row["kind"] == "shares"]
    for row in sorted(rows, key=lambda row: (row["method"], row["shape"]["batch"])):
        of = row["percent"]
        parts = " | ".join(f"{of[part]:.0f} %" for part in ("data", "forward", "backward", "clip and step", "loop"))
        between = of["forward"] + of["backward"] - of["pgm_fast"] - of["aten"]
        inside = f"{of['pgm_fast']:.0f} % | {of['aten']:.0f} % | {between:.0f} %"
        lines.append(f"| {row['method']} | {row['shape']['batch']} | {parts} | {inside} |")
    return "\n".join(lines)


def weak_scaling() -> str:
    """What a sample costs by one process and by more."""
    content = read_json(CPU / "weak_scaling.json")
    of: dict[str, list[dict]] = {}
    for row in content["rows"]:
        of.setdefault(row["method"], []).append(row)
    counts = [row["processes"] for row in next(iter(of.values()))]
    lines = [
        _circumstances(content),
        "",
        f"| method | gradients | {' | '.join(f'{n} processes' if n > 1 else '1 process' for n in counts)} "
        f"| {' | '.join(f'efficiency of {n}' for n in counts[1:])} |",
        "|---|---|" + "---|" * (2 * len(counts) - 1),
    ]
    for method, rows in of.items():
        spent = [row["processor_us_per_sample"] for row in rows]
        cells = [f"{us:.0f} µs" for us in spent] + [f"{100 * spent[0] / us:.0f} %" for us in spent[1:]]
        lines.append(f"| {method} | {_si(rows[0]['gradient_bytes'])}B | {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling_plan() -> str:
    """The plan of larger machines."""
    at = MACHINE
    lines = [
        f"Assumed: {at['peak_flop_per_s'] / 1e12:.0f} TFLOP/s in bfloat16, of which {100 * at['part_of_peak']:.0f} % "
        f"is reached; {at['link_bytes_per_s'] / 1e9:.0f} GB/s over a link within a node of {at['devices_per_node']} "
        f"and {at['adapter_bytes_per_s'] / 1e9:.0f} GB/s over an adapter per device between nodes, of which "
        f"{100 * at['part_of_links']:.0f} %; {at['device_bytes'] / 1e9:.0f} GB per device.",
        "",
        "| model, batch per device | parameters | kept for backward | operations | host |",
        "|---|---|---|---|---|",
    ]
    rows = read_json(CPU / "scaling_plan.json")["rows"]
    hosts = {row["case"]: _host_seconds(row["method"]) for row in rows}
    for row in rows:
        cells = f"{_si(row['parameters'])} | {_si(row['kept_bytes'])}B | {_si(row['flop'])}FLOP"
        lines.append(f"| {row['case']}, {row['batch']} | {cells} | {1e3 * hosts[row['case']]:.2g} ms |")
    lines += [
        "",
        "| model | devices | strategy | over a link | over an adapter | moving ms | computing ms | efficiency "
        "| memory per device |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for nodes in (1, 64):
            for sharded in (False, True):
                of = plan(row, nodes, sharded, hosts[row["case"]])
                devices = f"{at['devices_per_node']} × {nodes}"
                lines.append(
                    f"| {row['case']} | {devices} | {'FSDP' if sharded else 'DDP'} | {_si(of['link_bytes'])}B "
                    f"| {_si(of['adapter_bytes'])}B | {1e3 * of['moving_s']:.3g} | {1e3 * of['computing_s']:.3g} "
                    f"| {100 * of['efficiency']:.0f} % | {_si(of['memory_bytes'])}B |"
                )
    return "\n".join(lines)


def _host_seconds(method: str) -> float:
    """Of a step at batch 64 on three vectors, what the processor spends outside of ops; 0 where nobody measured."""
    of = {r["kind"]: r for r in read_json(CPU / "jobs.json")["rows"] if r["method"] == method and _is_of_host(r)}
    if of.keys() < {"rate", "shares"}:
        return 0.0
    inside = of["shares"]["percent"]["pgm_fast"] + of["shares"]["percent"]["aten"]
    return 64 / of["rate"]["samples_per_processor_second"] * (1 - inside / 100)


def _is_of_host(row: dict[str, Any]) -> bool:
    return row["shape"]["batch"] == 64 and row.get("form", "fit") == "fit"


def _circumstances(content: dict[str, Any]) -> str:
    device, used = content["device"], content["versions"]
    return f"{device['name']}, {content['threads']} thread, torch {used['torch']}, float32, {content['date']}."


def _si(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "
