"""The commands of ``pgm-fast``. Each imports what it runs when it runs, so that help and errors come quickly."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from .. import __version__
from ..errors import ConfigError
from .commands import command_class, reporting_errors, require_overrides
from .results import show_result, show_scores
from .terminal import is_main_process, say, show_table

__all__ = ["app"]

app = typer.Typer(
    name="pgm-fast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    help="Train multimodal models that split each modality into uni-modal and paired features.",
    epilog="A run is a folder: config.yaml, metrics.jsonl, report.json, report.html, checkpoints/ and plots/. "
    "Start with: pgm-fast train --data digits --out runs/demo",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"pgm-fast {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Run = Annotated[Path, typer.Argument(help="Folder that pgm-fast train wrote.", metavar="RUN")]
OtherData = Annotated[
    Optional[str],
    typer.Option("--data", help="Other data than the run's own, of the same modalities.", metavar="SOURCE"),
]
Checkpoint = Annotated[str, typer.Option(help="best (by validation score) or last.")]


def _reference() -> str:
    from .reference import reference_text

    heading = "Configuration, as key=default; change with key=value arguments, or in a file given to --config:"
    return f"{heading}\n\n{reference_text()}"


@app.command(
    cls=command_class(
        [
            "pgm-fast train --data digits --out runs/demo",
            "pgm-fast train --data features.npz --out runs/mine data.label=y train.epochs=100 model.dim=128",
            "pgm-fast train --method joint --data features.npz --seeds 0 1 2 --out runs/joint",
            "pgm-fast train --preset dimml/crema-d --data CREMA-D/ --out runs/crema-d",
            "pgm-fast train --config runs/demo/config.yaml --out runs/again pgm.rates.text.encoder=0.1",
            "pgm-fast train --show-config train.lr=3e-4 > config.yaml",
            "torchrun --nproc-per-node 2 -m pgm_fast train --data features.npz --out runs/two",
        ],
        more=_reference,
        variadic=["--seeds"],
    )
)
@reporting_errors
def train(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(help="Configuration values, as train.epochs=5; all keys below.", metavar="[KEY=VALUE]..."),
    ] = None,
    preset: Annotated[
        Optional[str], typer.Option(help="Short for preset=: a published recipe, see presets.", metavar="NAME")
    ] = None,
    method: Annotated[Optional[str], typer.Option(help="Short for method=.", metavar="NAME")] = None,
    data: Annotated[
        Optional[str],
        typer.Option(help="Short for data.source=: digits, synthetic, a feature file or a folder.", metavar="SOURCE"),
    ] = None,
    out: Annotated[
        Optional[str], typer.Option(help="Short for out=: the run folder to write.", metavar="FOLDER")
    ] = None,
    config: Annotated[Optional[Path], typer.Option(help="YAML file with configuration values.", metavar="FILE")] = None,
    seeds: Annotated[
        Optional[str],
        typer.Option(help="One run per seed, in FOLDER/seed-0 and so on, and FOLDER/summary.json.", metavar="0 1 2"),
    ] = None,
    epochs: Annotated[Optional[int], typer.Option(help="Short for train.epochs=.", metavar="N")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Short for train.seed=.", metavar="N")] = None,
    device: Annotated[
        Optional[str], typer.Option(help="Short for train.device=: auto, cpu, cuda, cuda:N.", metavar="NAME")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that FOLDER holds.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the configuration as commented YAML and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Train a model and score it.

    Reads a feature file or folder (see check-data) and a configuration.

    Writes a run folder: config.yaml (every value used), metrics.jsonl (one line per epoch), report.json and report.html
    (the scores), checkpoints/, plots/ and TensorBoard events; train.logger takes wandb and mlflow
    too, offline unless the environment says where to send.

    A first Ctrl-C or SIGTERM ends the run after the step at hand and says how to resume it.
    """
    require_overrides(overrides or [], config_option=True)
    from ..train.configure import make_config

    options = {
        "preset": preset,
        "method": method,
        "data.source": data,
        "out": out,
        "train.epochs": epochs,
        "train.seed": seed,
        "train.device": device,
    }
    shortcuts = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings = make_config(config, [*(overrides or []), *shortcuts])
    if show_config:
        from .reference import commented_yaml

        say(commented_yaml(settings).rstrip())
        return
    from ..train import fit, fit_seeds

    progress = is_main_process() and not quiet
    if seeds is None:
        result = fit(settings, progress=progress, overwrite=overwrite)
    else:
        if seed is not None:
            raise ConfigError("--seed and --seeds are both given; use one of them")
        result = fit_seeds(settings, _whole_numbers(seeds), progress=progress, overwrite=overwrite)
    if not quiet:
        show_result(result, Path(settings.out))


@app.command(cls=command_class(["pgm-fast resume runs/demo"]))
@reporting_errors
def resume(
    run: Run,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Continue a stopped run, to the same result.

    Reads config.yaml and checkpoints/last.pt of the run; writes the rest of the run into the same folder.

    A finished run is shown again. No run is made longer, nor its settings changed: its learning rates are planned for
    train.epochs from the start. To train longer, train a new run: pgm-fast train --config RUN/config.yaml --out FOLDER
    train.epochs=N
    """
    from ..train import resume as continue_run
    from ..train.run.folder import RunFolder
    from ..train.run.interrupted import report_of

    over = report_of(RunFolder(run)) is not None
    result = continue_run(run, progress=is_main_process() and not quiet)
    if not quiet:
        if over:
            longer = f"pgm-fast train --config {shlex.quote(str(run / 'config.yaml'))} --out FOLDER train.epochs=N"
            say(f"{run} is finished, there was nothing to do; a longer run is a new one: {longer}")
        show_result(result, run)


@app.command(
    cls=command_class(
        [
            "pgm-fast evaluate runs/demo",
            "pgm-fast evaluate runs/demo --split valid --checkpoint last",
            "pgm-fast evaluate runs/mine --data other.npz --json",
        ]
    )
)
@reporting_errors
def evaluate(
    run: Run,
    data: OtherData = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    checkpoint: Checkpoint = "best",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score the model of a run on a split.

    Reads the run's configuration, checkpoint and data. Writes nothing.
    """
    from ..train import evaluate as score_run
    from ..train.run.json_files import to_json

    scores = score_run(run, data=data, split=split, checkpoint=checkpoint)
    if as_json:
        say(to_json(scores))
    else:
        show_scores(scores, run)


@app.command(
    cls=command_class(
        [
            "pgm-fast predict runs/demo --out predictions.csv",
            "pgm-fast predict runs/mine --data other.npz --out other-predictions.npz",
        ]
    )
)
@reporting_errors
def predict(
    run: Run,
    out: Annotated[Path, typer.Option(help="File to write: .npz or .csv.", metavar="FILE")],
    data: OtherData = None,
    split: Annotated[Optional[str], typer.Option(help="train, valid or test; all rows if not given.")] = None,
    checkpoint: Checkpoint = "best",
    debug: Debug = False,
) -> None:
    """Write what a model says about every row.

    Reads the run's configuration, checkpoint and data.

    Writes one file with, per row: index, id, split, label where there is one, prediction, fused logits, each modality's
    own logits and the share of each partition.
    """
    from .export import check_name, write_predictions

    check_name(out)
    count = write_predictions(run, out, data=data, split=split, checkpoint=checkpoint)
    say(f"{count} rows written to {out}")


@app.command(
    "check-data",
    cls=command_class(
        [
            "pgm-fast check-data digits",
            "pgm-fast check-data features.npz data.label=y",
            "pgm-fast check-data mosi.npz data.group_by=video",
        ]
    ),
)
@reporting_errors
def check_data(
    source: Annotated[str, typer.Argument(help="digits, synthetic, a feature file or a folder.", metavar="SOURCE")],
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(help="How to read it, as in train: data.label=y.", metavar="[data.KEY=VALUE]..."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what a source holds and what is wrong with it.

    Reads the source as train would, the whole of it. Writes nothing.

    Exit status 0 when train would take it, 1 when it would not.
    """
    from .inspection import inspect_source

    if not inspect_source(source, overrides or []):
        raise typer.Exit(1)


@app.command(
    cls=command_class(
        [
            "pgm-fast interactions features.npz --out interactions",
            "pgm-fast interactions features.npz --out interactions data.label=y --split test",
            "pgm-fast interactions --run runs/demo",
            "pgm-fast interactions gaussian.pt --preset lsmi --split test --out published",
        ]
    )
)
@reporting_errors
def interactions(
    arguments: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="What to measure: digits, synthetic, a feature file or a folder; and how to read it: data.label=y.",
            metavar="[SOURCE] [data.KEY=VALUE]...",
        ),
    ] = None,
    run: Annotated[
        Optional[Path], typer.Option(help="Measure a trained run's features in place of a source.", metavar="RUN")
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(help="Folder to write; RUN/interactions if not given.", metavar="FOLDER")
    ] = None,
    split: Annotated[
        Optional[str], typer.Option(help="train, valid, test or all; all, or test with --run, if not given.")
    ] = None,
    measured_on: Annotated[
        Optional[str],
        typer.Option("--on", help="With --run: learned (the model's features, default) or inputs (the run's data)."),
    ] = None,
    preset: Annotated[
        Optional[str], typer.Option(help="A published recipe in place of our defaults, see presets.", metavar="NAME")
    ] = None,
    rule: Annotated[
        Optional[str],
        typer.Option(help="entropy (published, default), or information (ours: redundancy is the lesser of both)."),
    ] = None,
    prior: Annotated[
        Optional[str],
        typer.Option(help="uniform (published, default), or empirical (for classes of very different sizes)."),
    ] = None,
    folds: Annotated[Optional[int], typer.Option(help="Folds of the cross-fitting; 5.", metavar="N")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, orders and resamples.", metavar="N")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", metavar="NAME")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Measure redundancy, uniqueness and synergy of every sample.

    Reads features with integer class labels, or a run with its data. No sample is measured by a model that was fitted
    on it: the training and validation splits are cross-fitted.

    Writes a folder: interactions.npz and interactions.csv (values per sample, by id), interactions.json (means,
    intervals, settings), interactions.png (bars), interactions.md (the most synergistic and most redundant samples, and
    how a run's shares go with what was measured).
    """
    from .. import presets as presets_of
    from ..interactions import Settings
    from ..train.run.files import require_place
    from .interactions import measure

    if out is not None:
        require_place(out, "--out ")

    recipe = presets_of.read(preset, "interactions") if preset is not None else {}
    chosen = {k: v for k, v in (("rule", rule), ("prior", prior), ("folds", folds)) if v is not None}
    sources = [text for text in arguments or [] if "=" not in text]
    if len(sources) > 1:
        raise ConfigError(f"interactions takes one SOURCE; given are {', '.join(sources)}")
    measure(
        sources[0] if sources else None,
        run,
        out,
        split=split,
        measured_on=measured_on,
        overrides=[text for text in arguments or [] if "=" in text],
        settings=Settings(**{**recipe, **chosen, "seed": seed}),
        device=device,
        progress=is_main_process() and not quiet,
        quiet=quiet,
    )


@app.command(
    cls=command_class(
        [
            "pgm-fast compare runs/unimodal runs/joint runs/pgm --out compare",
            "pgm-fast compare runs/joint runs/ogm runs/mcr --out compare --json",
            "pgm-fast compare runs/digits runs/mine --across --out tasks",
        ]
    )
)
@reporting_errors
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, or of several seeds of one.", metavar="RUN...")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="FOLDER")],
    across: Annotated[
        bool, typer.Option("--across", help="Runs of any data and task: their shares and gates, not their scores.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Put finished runs beside each other: on the same data, or with --across on any.

    Reads report.json (or summary.json) and metrics.jsonl of every run.

    Writes a folder: compare.html (the tables and pictures), compare.json (every number), curves.png (each modality's
    score within the runs; against learning alone, with a run of the method unimodal among them), shares.png and
    gates.png where there are any. With --across there are no curves.
    """
    from ..train.report.compare import comparison_tables, write_comparison
    from ..train.run.files import require_place
    from ..train.run.json_files import to_json

    require_place(out, "--out ")
    given: dict[Path, Path] = {}
    for run in runs:
        if (same := given.setdefault(run.resolve(), run)) is not run:
            also = "" if str(same) == str(run) else f", as {same} and {run}"
            raise ConfigError(f"RUN {run} is given twice{also}; give every run once")

    content = write_comparison(runs, out, across=across)
    if as_json:
        say(to_json(content))
        return
    for title, columns, rows in comparison_tables(content):
        show_table(columns, rows, title=title)
        say()
    say(f"page     {out / 'compare.html'}")


@app.command(
    cls=command_class(
        ["pgm-fast study examples/study.yaml --out studies/digits", "pgm-fast study study.yaml --out mine --workers 8"]
    )
)
@reporting_errors
def study(
    file: Annotated[Path, typer.Argument(help="YAML file: sets, methods, seeds, search space.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="FOLDER")],
    workers: Annotated[
        int, typer.Option(help="Trainings at a time, one core each; 0: only the tables of what is there.", metavar="N")
    ] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Compare methods over sets, splits and seeds.

    Every method has the same number of trials, and what is chosen is chosen on validation scores alone.
    Reads a study file; examples/study.yaml of the sources explains every key.

    Writes cells/ (one file per training, by a hash of its settings and data: the same command after an interruption
    trains only what is missing), study.json and study.md: mean, deviation, and paired intervals of the difference from
    the baseline that is best on validation.

    Exit status 1 when a cell failed; the others are trained all the same.
    """
    from .study import compare

    if compare(file, out, workers, quiet=quiet):
        raise typer.Exit(1)


@app.command(
    cls=command_class(
        [
            "pgm-fast sweep --data digits --out sweeps/digits --search train.lr=log:1e-4..1e-2 --trials 20",
            "pgm-fast sweep --method joint --data features.npz --out sweeps/mine --search model.dropout=0,0.1,0.3 "
            "--search model.layers=1..3 --seeds 0 1 2 train.epochs=30",
        ],
        variadic=["--seeds"],
    )
)
@reporting_errors
def sweep(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(help="Configuration values of every trial, as for train.", metavar="[KEY=VALUE]..."),
    ] = None,
    search: Annotated[
        Optional[list[str]],
        typer.Option(
            help="What is searched: KEY=LOW..HIGH, KEY=log:LOW..HIGH, or KEY=A,B,C; again for more.",
            metavar="KEY=VALUES",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="FOLDER")] = Path("sweeps/sweep"),
    method: Annotated[Optional[str], typer.Option(help="Short for method=.", metavar="NAME")] = None,
    data: Annotated[Optional[str], typer.Option(help="Short for data.source=.", metavar="SOURCE")] = None,
    trials: Annotated[int, typer.Option(help="Budget, trials of earlier calls included.", metavar="N")] = 20,
    seeds: Annotated[str, typer.Option(help="train.seed of each trial's trainings.", metavar="0 1 2")] = "0",
    sampler_seed: Annotated[int, typer.Option(help="Of what is tried.", metavar="N")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    debug: Debug = False,
) -> None:
    """Search settings of one method on validation scores, with Optuna.

    Reads a feature file or folder and configuration values, as train does. Needs pgm-fast[sweep].
    The same command goes on where it was stopped; more --trials add to what is there.

    Writes sweep.db (Optuna's SQLite storage), best/ (the runs of the best trial, one per seed), sweep.json, sweep.md,
    history.png and settings.png. The test split takes no part; best/ holds its scores, of the chosen settings alone.
    """
    require_overrides(overrides or [])
    from ..sweep import run_sweep
    from ..sweep.page import COLUMNS, table_rows

    shortcuts = {"method": method, "data.source": data}
    given = [*(overrides or []), *(f"{key}={value}" for key, value in shortcuts.items() if value is not None)]
    content = run_sweep(
        {key: value for key, _, value in (text.partition("=") for text in given)},
        search or [],
        out,
        trials=trials,
        seeds=_whole_numbers(seeds),
        sampler_seed=sampler_seed,
        progress=None if quiet else say,
    )
    if not quiet:
        say()
        show_table(COLUMNS, table_rows(content), title=f"{content['metric']} on validation", numbers=False)
        for name in ("sweep.md", "sweep.json", "best"):
            say(f"{name.ljust(10)} {out / name}")


@app.command(cls=command_class(["pgm-fast presets", "pgm-fast presets dimml/crema-d"]))
@reporting_errors
def presets(
    name: Annotated[Optional[str], typer.Argument(help="Print this one whole.", metavar="[NAME]")] = None,
    debug: Debug = False,
) -> None:
    """List the published recipes that train --preset and interactions --preset take.

    Reads the files that came with the package. Writes nothing.
    """
    from .. import presets as recipes

    if name is not None:
        say(recipes.text(name).rstrip())
        return
    rows = [[n, kind, recipes.summary(n)] for kind in recipes.KINDS for n in recipes.names(kind)]
    show_table(["preset", "of", "what it is"], rows, numbers=False)


@app.command(
    cls=command_class(
        [
            "pgm-fast doctor",
            "pgm-fast doctor --json > machine.json",
            "pgm-fast doctor --op partition --device cuda --dtype bfloat16 --shape h=4096x1024 --shape z=4096x1024",
        ]
    )
)
@reporting_errors
def doctor(
    op: Annotated[
        Optional[str],
        typer.Option(help="Say which backend a call of this operation takes, such as partition, and why."),
    ] = None,
    device: Annotated[str, typer.Option(help="With --op: cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="With --op: dtype of its tensors, such as bfloat16.")] = "float32",
    shape: Annotated[
        Optional[list[str]],
        typer.Option(help="With --op: shape of one of its tensors, such as h=4096x1024; once for each."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what is usable on this machine.

    For what is not: why, and the one command that changes it.
    Reads versions, devices, compilers, backends and packages. Writes nothing.
    """
    from .. import env

    if op is not None:
        choice = env.choice(op, device, dtype, shape or ())
        if as_json:
            say(json.dumps(choice, indent=2))
            return
        from .machine import show_choice

        show_choice(choice)
        return
    facts = env.doctor()
    if as_json:
        say(json.dumps(facts, indent=2))
        return
    from .machine import show_doctor

    show_doctor(facts)


@app.command(cls=command_class(["pgm-fast bench", "pgm-fast bench partition --device cuda"]))
@reporting_errors
def bench(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Which, such as partition; all if not given.", metavar="[NAME]...")
    ] = None,
    device: Annotated[
        Optional[str], typer.Option(help="cpu or cuda; each benchmark's own choice if not given.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure the kernels and whole steps on this machine.

    Reads nothing; takes the sources, as the benchmarks are not part of the installed package. A variant whose numbers
    are wrong is not measured.

    Prints a table and writes benchmarks/results/DEVICE/NAME.json.

    Exit status 1 when a benchmark failed.
    """
    from .bench import run_benchmarks

    if run_benchmarks(names or [], device):
        raise typer.Exit(1)


def _whole_numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers):
        raise ConfigError(
            f"--seeds {text!r} is not allowed; it takes different whole numbers of at least 0, such as --seeds 0 1 2"
        )
    return numbers
