"""Writes docs/compatibility.md: what works with what, by the tests that are marked ``works``.

    python tools/compatibility.py           # writes it
    python tools/compatibility.py --check   # exits with 1 where it is not what the tests say

A test says what it shows by ``@pytest.mark.works(row, column, ...)``, with a row and columns of the tables here. Only
the source of the tests is read.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"

COLUMNS = {
    "layers": "modules of `pgm_fast.nn`",
    "attach": "a model with `attach`",
    "optimizers": "`MultiRateAdamW`, `MultiRateSGD`",
}
HEAD = """# What works with what

Made by `python tools/compatibility.py` from the tests that are marked `works`: a number says how many show it. A dash
is no claim: nothing tests it, or it has no meaning there. The tests run on CPUs, with torch.compile's graphs but not
its compiler, and are skipped where their library is not installed.
"""
# row -> what is to be known about it
ROWS = {
    "torch.compile": "`fullgraph=True`, any batch size by the same graphs. An optimizer's step is one graph break",
    "AMP": "bf16 and fp16 autocast. An attached model begins with the same bits in each",
    "GradScaler": "obeyed on the device. Lightning leaves clipping under AMP to the optimizer: `max_norm=`",
    "activation checkpointing": "also of whole encoders behind `attach`, with `use_reentrant=False`",
    "torch.func": "`functional_call`, `grad`, `vmap`, `jvp`, where torch itself has them",
    "deepcopy, torch.save": "whole modules and state dicts; losses of the last forward are left out",
    "meta device": "`to_empty` and `reset_parameters`",
    "torch.export": "with a dynamic batch, in torch's own operators; losses of `attach` are left out",
    "ONNX": "`torch.onnx.export(dynamo=True)`, in ONNX's own operators",
    "torch.jit.trace": "serves other batch sizes",
    "DDP": "also `static_graph` and `find_unused_parameters`; modules in a group of one process",
    "FSDP2": "`fully_shard` on any part that is called, not on `model.pgm` itself; with two processes in the example",
    "tensor parallel": "`parallelize_module` on the layers of learners and heads; modules on a mesh of one process",
    "distributed checkpoints": "`torch.distributed.checkpoint`, to another number of ranks",
    "PEFT": "LoRA and DoRA, adapters that are merged. `attach` comes after `get_peft_model`",
    "offload": "to memory and to disk, by Accelerate",
    "quantisation": "torchao and torch's dynamic one; trained weights",
    "moving averages": "`AveragedModel`",
    "schedulers": "those of `torch.optim`, as they are",
    "CUDA graphs": "these tests record calls on the CPU; `tests/gpu` captures, where there is a GPU",
    "transformers": "`ModelOutput`s, `Trainer`, weights that a checkpoint lacks",
    "Lightning": "accumulation, bf16-mixed, resume",
    "Accelerate": "accumulation, mixed precision, clipping",
    "timm": "its groups of layer-wise decay, or `pattern_groups`",
}


def marks(folder: Path) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(row, column) -> file and name of every test that shows it, in order.

    Raises:
        ValueError: a mark whose row or column is in no table, naming file and line.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.works":
                    row, *columns = (ast.literal_eval(argument) for argument in decorator.args)
                    for column in columns:
                        if row not in ROWS or column not in COLUMNS:
                            at = f"{path.relative_to(ROOT)}:{decorator.lineno}"
                            raise ValueError(f"{at}: {row!r}, {column!r} is no place in {Path(__file__).name}")
                        found.setdefault((row, column), []).append((path.relative_to(ROOT).as_posix(), node.name))
    return found


def page(found: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    lines = [
        HEAD,
        f"| | {' | '.join(COLUMNS.values())} | |",
        f"|---|{'---|' * len(COLUMNS)}---|",
    ]
    for row, remark in ROWS.items():
        counts = [str(len(found.get((row, column), [])) or "–") for column in COLUMNS]
        lines.append(f"| {row} | {' | '.join(counts)} | {remark} |")
    lines += ["", "## Tests", ""]
    for row in ROWS:
        tests = dict.fromkeys(test for column in COLUMNS for test in found.get((row, column), []))
        links = [f"[{name.removeprefix('test_').replace('_', ' ')}](../{path})" for path, name in tests]
        lines.append(f"- **{row}**: {', '.join(links)}")
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    made = page(marks(ROOT / "tests"))
    if arguments == ["--check"]:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == made
        if not same:
            print(
                f"{PAGE.relative_to(ROOT)} is not what the tests say; run python tools/compatibility.py",
                file=sys.stderr,
            )
        return 0 if same else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
