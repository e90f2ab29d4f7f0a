"""Training from Python: the functions behind ``pgm-fast train`` and ``pgm-fast resume``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from ..data.feature_set import FeatureSet
from ..errors import ConfigError
from .assembly import Encoders, Run, machine
from .config import Config
from .configure import from_yaml, to_yaml, without_effect
from .distributed import Ranks, connect, restarted
from .features import load_features, require_splits, resolve_config
from .finish import describe, finish
from .loop import StoppedBySignal, Training
from .report.contents import summarise
from .report.observers import Observers
from .report.trackers import Trackers, require_trackers
from .run import checkpoints
from .run.fingerprints import differences, fingerprint, require_same_data
from .run.folder import RunFolder
from .run.interrupted import finished, restore_log, state_of
from .run.json_files import write_json
from .scores.metrics import monitored_metric
from .signals import StopRequest

__all__ = ["fit", "fit_seeds", "resume"]

log = logging.getLogger(__name__)

ConfigLike = Config | Mapping[str, Any] | str | Path | None


def fit(
    config: ConfigLike = None,
    *,
    data: FeatureSet | str | None = None,
    encoders: Encoders | None = None,
    progress: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Train a model and leave a run folder.

    Processes that ``torchrun --max-restarts`` starts anew go on from the last checkpoint of those that died.

    Example:
        >>> report = fit(method="pgm", data="digits", out="runs/demo", **{"train.epochs": 3})
        >>> report["test"]["fused"]["accuracy"]

    Args:
        config: a configuration, a mapping of its keys, or the path of a YAML file; None for the defaults.
        data: a feature set or a source, in place of ``data.source``.
        encoders: modality -> module in place of the built-in encoder (see :class:`~pgm_fast.methods.base.Method`).
            They are copied; the trained weights are in the checkpoints.
        progress: show a progress bar (a line per epoch where the standard error stream is no terminal).
        overwrite: replace the run that ``out`` holds. Without it such a folder is refused.
        overrides: values by their keys, dotted or nested.

    Returns:
        The content of report.json.

    Raises:
        ConfigError, DataError: nothing was written. TrainingStopped, CheckpointError: the run folder is as far as it
            came.
        SystemExit: status 0, after SIGTERM or SIGINT: last.pt is written and the command that goes on from it printed.
    """
    return _fit(resolve_config(config, data, overrides), data, encoders, progress, overwrite)


def fit_seeds(
    config: ConfigLike = None,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    data: FeatureSet | str | None = None,
    encoders: Encoders | None = None,
    progress: bool = False,
    overwrite: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Train once per seed, in ``out/seed-<n>``, and write mean and sample standard deviation to ``out/summary.json``.

    A seed that was trained with this configuration on this data before is not trained again; one that was interrupted
    is continued.

    Args:
        seeds: at least one, each once. The other arguments are those of :func:`fit`.

    Returns:
        The summary.

    Raises:
        ConfigError: no seeds, the same twice, or a folder that holds a run of another configuration, on other data or
            with encoders for other modalities. Else as :func:`fit`.
    """
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise ConfigError(f"seeds={seeds!r} must be a list of numbers, such as [0, 1, 2]")
    seeds = list(seeds)
    whole = all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in seeds)
    if not seeds or not whole or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds={seeds} must be at least one whole number, each once and none below 0")
    seeds = [int(seed) for seed in seeds]
    base = resolve_config(config, data, overrides)
    # The processes stay connected from seed to seed, and one of them writes the summary.
    with connect(base.train.device) as ranks:
        reports = [_one_seed(base, seed, data, encoders, progress, overwrite, ranks) for seed in seeds]
        summary = summarise(reports)
        ranks.on_main(lambda: write_json(Path(base.out) / "summary.json", summary))
    return summary


def _one_seed(
    base: Config,
    seed: int,
    data: FeatureSet | str | None,
    encoders: Encoders | None,
    progress: bool,
    overwrite: bool,
    ranks: Ranks,
) -> dict[str, Any]:
    one = replace(base, out=str(Path(base.out) / f"seed-{seed}"), train=replace(base.train, seed=seed))
    folder = RunFolder(one.out)
    if not overwrite and _holds(folder, one):
        with ranks.all_or_none():
            _require_same_run(folder, one, data, encoders)
        return resume(one.out, data=data, encoders=encoders, progress=progress)
    return _fit(one, data, encoders, progress, overwrite)


def _holds(folder: RunFolder, config: Config) -> bool:
    """Whether a run was started in the folder with this configuration."""
    return folder.config.is_file() and from_yaml(folder.read_config()) == config


def _require_same_run(
    folder: RunFolder, config: Config, data: FeatureSet | str | None, encoders: Encoders | None
) -> None:
    """Raises ConfigError where the run in the folder, of this configuration, had other data or other encoders."""
    if not folder.last.is_file():
        return
    state = checkpoints.load_run(folder.last)
    again = "give the same, or another out, or overwrite (--overwrite) to train anew"
    given = sorted(encoders or {})
    if given != state["encoders"]:
        raise ConfigError(
            f"{folder} holds a run with encoders handed in for: {', '.join(state['encoders']) or 'none'}; given now: "
            f"{', '.join(given) or 'none'}; {again}"
        )
    features = load_features(config, data if isinstance(data, FeatureSet) else None)
    different = differences(features, state["data"])
    if different:
        raise ConfigError(
            f"{folder} holds a run on data other than {features.name}: {', '.join(different)} differ; {again}"
        )


def resume(
    run: str | Path, *, data: FeatureSet | str | None = None, encoders: Encoders | None = None, progress: bool = False
) -> dict[str, Any]:
    """Continue a run where ``last.pt`` left it, to bitwise the result of one never interrupted (with one process).

    A finished run is left as it is, but for a damaged report.json or metrics.jsonl, which are written anew; to train
    longer, train a new run with more ``train.epochs``. A run that
    has no checkpoint yet begins. Where last.pt is damaged it goes on from previous.pt, and a warning says so.

    Args:
        run: its folder.
        data: needed where the run was started with a feature set that no file holds.
        encoders: those that the run was started with.
        progress: as for :func:`fit`.

    Returns:
        The content of report.json.

    Raises:
        CheckpointError: no run, one that another process is writing, an unreadable checkpoint, another number of
            processes (but with train.strategy=fsdp, which takes any), or a config.yaml edited in more than
            train.device, train.threads, train.plots and train.logger.
        DataError: the data is not the same. Else as :func:`fit`.
    """
    folder = RunFolder(run)
    folder.require()
    config = replace(from_yaml(folder.read_config()), out=str(run))
    if (report := finished(folder, config)) is not None:
        return report
    require_trackers(config.train.logger)
    with machine(config) as ranks, _writing(folder, ranks):
        if (report := ranks.on_main(lambda: finished(folder, config, warn=True))) is not None:
            return report  # written by whoever held the lock until now
        with ranks.all_or_none():
            state = state_of(folder, config, ranks.world)
            features = load_features(config, data)
            if state is not None:
                require_same_data(features, state["data"])
            require_splits(features, config.data.task)
        if state is None:
            job = Run.new(config, features, encoders, ranks)
            identity = _identity(config, job, encoders)
        else:
            with ranks.all_or_none():
                job = Run.from_checkpoint(state, config, features, encoders, ranks)
            identity = {**{key: state.get(key) for key in _IDENTITY}, "world": ranks.world}
            ranks.on_main(lambda: restore_log(folder, state))
        return _train(job, folder, identity, progress, state, nullcontext())


@contextmanager
def _writing(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """The run folder is this job's alone for the block: rank 0 holds its lock."""
    ranks.on_main(folder.lock.acquire)
    try:
        ranks.on_main(folder.require_no_links)
        yield
    finally:
        folder.lock.release()


_IDENTITY = ("config", "spec", "data", "normalizer", "encoders", "world", "class_names")


def _identity(config: Config, job: Run, encoders: Encoders | None) -> dict[str, Any]:
    """What every checkpoint of a run carries besides its state; plain containers and tensors."""
    return {
        "config": to_yaml(config),
        "spec": job.spec.to_dict(),
        "data": job.ranks.on_main(lambda: fingerprint(job.features)),
        "normalizer": None if job.normalizer is None else job.normalizer.state_dict(),
        "encoders": sorted(encoders or {}),
        "world": job.ranks.world,
        "class_names": job.features.class_names,
    }


def _fit(
    config: Config, data: FeatureSet | str | None, encoders: Encoders | None, progress: bool, overwrite: bool
) -> dict[str, Any]:
    folder = RunFolder(config.out)
    # A finished run that was to be overwritten cannot be the work of the processes that died.
    if restarted() and _holds(folder, config) and not (overwrite and folder.report.is_file()):
        return resume(folder.path, data=data, encoders=encoders, progress=progress)
    require_trackers(config.train.logger)
    with machine(config) as ranks:
        if not overwrite:
            ranks.on_main(folder.claim)
        with ranks.all_or_none():
            features = load_features(config, data if isinstance(data, FeatureSet) else None)
            require_splits(features, config.data.task)
            monitored_metric(features.task, config.train.monitor)
            if ranks.is_main and (idle := without_effect(config)):
                log.warning("set without effect, since method %s does not read it: %s", config.method, ", ".join(idle))
        job = Run.new(config, features, encoders, ranks)
        identity = _identity(config, job, encoders)

        @contextmanager
        def claimed() -> Iterator[None]:
            def claim() -> None:
                folder.claim(overwrite)
                folder.write_config(to_yaml(config, describe(job)))

            with _writing(folder, ranks):
                ranks.on_main(claim)
                yield

        return _train(job, folder, identity, progress, None, claimed())


def _train(
    job: Run,
    folder: RunFolder,
    identity: Mapping[str, Any],
    progress: bool,
    state: Mapping[str, Any] | None,
    claimed: AbstractContextManager,
) -> dict[str, Any]:
    """Train to the end and write the report, in a folder that ``claimed`` makes this run's own."""
    config, ranks = job.config, job.ranks
    metric, _ = monitored_metric(job.spec.task, config.train.monitor)
    done = 0 if state is None else state["position"]["epoch"]
    trackers = Trackers(config.train.logger if ranks.is_main else (), folder, config, done)
    observers = Observers(progress and ranks.is_main, trackers, metric)
    stop = StopRequest()
    with ranks.all_or_none():
        training = Training(
            config,
            job.method,
            job.training_loader(),
            job.loader("valid"),
            job.training_loader_in_order,
            ranks,
            folder,
            identity,
            observers,
            stop,
        )
    with claimed, trackers:
        try:
            with stop, observers:
                training.run(state)
        except StoppedBySignal as stopped:
            if ranks.is_main:
                print(f"{stopped.args[0]}; continue with: {folder.resume_command}", flush=True)
            raise SystemExit(0) from None
        report = finish(job, folder, training)
        trackers.summary(report)
        return report
