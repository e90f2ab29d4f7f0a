"""Working off a sweep: trial after trial, each a training on every seed, all of it kept in a database."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from ..data import FeatureSet
from ..env import EXTRAS
from ..errors import ConfigError, TrainingStopped
from ..train import fit_seeds
from ..train.configure import make_config
from ..train.features import load_features
from ..train.run.fingerprints import fingerprint
from ..train.run.json_files import read_json
from ..train.run.lock import RunLock
from ..train.scores.metrics import monitored_metric, score
from .page import write_page
from .space import Choices, Interval, overrides_of, read_space, require_allowed

__all__ = ["run_sweep"]

_STARTED_WITH = "started_with"


def run_sweep(
    settings: Mapping[str, Any],
    search: Iterable[str] | Mapping[str, Any],
    out: str | Path,
    *,
    trials: int = 20,
    seeds: Sequence[int] = (0,),
    sampler_seed: int = 0,
    data: FeatureSet | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Search settings by Optuna's TPE (Bergstra et al. 2011) and write ``sweep.json``, ``sweep.md`` and pictures.

    A trial's value is the mean over ``seeds`` of the best validation score; what the test split says is neither read
    nor shown. The same call goes on where one was stopped, or adds trials where ``trials`` is more, and ends as one
    that was never stopped: what a trial draws depends on ``sampler_seed``, its number and the trials before it.

    Args:
        settings: of every training, by dotted key, as for :func:`pgm_fast.train.fit`.
        search: see :func:`~pgm_fast.sweep.space.read_space`.
        out: folder: ``sweep.db`` (SQLite, Optuna's own), ``best/`` (the runs of the best trial), the tables.
        trials: budget, those of earlier calls included. Trainings that end with an error are trials without a value.
        seeds: ``train.seed`` of each trial's trainings.
        data: a feature set or a source, in place of ``data.source``.
        progress: called with a line for every trial.

    Returns:
        The content of sweep.json.

    Raises:
        ConfigError: no optuna, a setting or a value of the search that is not allowed, or a folder that holds another
            sweep. DataError: unusable data. SystemExit: after a signal, as :func:`pgm_fast.train.fit`.
    """
    if util.find_spec("optuna") is None:
        package = EXTRAS["sweep"]["optuna"]
        raise ConfigError(f'a sweep needs {package}, not installed here: pip install "pgm-fast[sweep]"')
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep trains in one process; start it without torchrun")
    if trials < 1:
        raise ConfigError(f"trials={trials} is not allowed; it takes a whole number of at least 1")
    space = read_space(search)
    settings = {**settings, **({"data.source": data} if isinstance(data, str) else {})}
    require_allowed(settings, space)
    folder = Path(out)
    lock = RunLock(folder, "sweep", "wait until it ends or stop it (the same command goes on), or give another --out")
    lock.acquire()
    try:
        sweep = _Sweep(settings, space, folder, tuple(seeds), sampler_seed, data, progress or (lambda line: None))
        return sweep.work(trials)
    finally:
        lock.release()


class _Sweep:
    def __init__(
        self,
        settings: Mapping[str, Any],
        space: Mapping[str, Interval | Choices],
        folder: Path,
        seeds: tuple[int, ...],
        sampler_seed: int,
        data: FeatureSet | str | None,
        say: Callable[[str], None],
    ):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna
        self.settings, self.space, self.folder, self.seeds, self.say = settings, space, folder, seeds, say
        self.sampler_seed = sampler_seed
        self.best, self.replaced = folder / "best", folder / "best.replaced"
        self.config = make_config(None, overrides_of(settings))
        self.handed = data if isinstance(data, FeatureSet) else None
        self.features = load_features(self.config, self.handed)
        self.metric, self.direction = monitored_metric(self.features.task, self.config.train.monitor)
        self.study = optuna.create_study(
            storage=f"sqlite:///{(folder / 'sweep.db').resolve()}",
            study_name="sweep",
            direction="maximize",  # of scores, of which more is better in every task
            load_if_exists=True,
        )
        self._require_same()
        self._take_up_interrupted()

    def work(self, trials: int) -> dict[str, Any]:
        content = self._write()
        while (done := len(self._finished())) < trials:
            # anew for every trial: its draws depend on its number, not on what this process did before
            self.study.sampler = self.optuna.samplers.TPESampler(seed=self.sampler_seed * 1_000_003 + done)
            trial = self.study.ask()
            drawn = {key: values.draw(trial, key) for key, values in self.space.items()}
            value = self._value_of(trial, drawn)
            text = "no value" if value is None else f"{self.metric} {self._shown(value):.4f}"
            self.say(f"trial {done + 1} of {trials}: {text}, {', '.join(f'{k}={v}' for k, v in drawn.items())}")
            content = self._write()
        return content

    def _value_of(self, trial: Any, drawn: Mapping[str, Any]) -> float | None:
        """Train a trial on every seed and tell the study; None where a training ended with an error."""
        known = next((t for t in self._finished() if t.params == trial.params), None)
        if known is not None:
            scores, reason = known.user_attrs.get("scores"), known.user_attrs.get("error")
        else:
            scores, reason = self._train(drawn)
        if scores is None:
            trial.set_user_attr("error", reason)
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
            return None
        trial.set_user_attr("scores", scores)
        self.study.tell(trial, statistics.fmean(scores))
        return statistics.fmean(scores)

    def _train(self, drawn: Mapping[str, Any]) -> tuple[list[float] | None, str | None]:
        name = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:12]
        out = self.folder / "trials" / name
        fixed = {"out": out, "train.plots": False, "train.logger": []}
        config = make_config(None, overrides_of({**self.settings, **drawn, **fixed}))
        try:
            fit_seeds(config, self.seeds, data=self.handed)
        except SystemExit:
            self.say("the sweep stops here; the same command goes on with it")
            raise
        except (TrainingStopped, ConfigError) as error:
            shutil.rmtree(out, ignore_errors=True)
            return None, str(error)
        reports = [read_json(out / f"seed-{seed}" / "report.json") for seed in self.seeds]
        scores = [score(self.features.task, r["valid"]["fused"], self.config.train.monitor) for r in reports]
        before = [t.value for t in self._finished() if t.value is not None]
        if not before or statistics.fmean(scores) > max(before):
            self._replace_best(out)
        else:
            shutil.rmtree(out)
        return scores, None

    def _replace_best(self, out: Path) -> None:
        if self.best.exists():
            self.best.rename(self.replaced)
        out.rename(self.best)
        shutil.rmtree(self.replaced, ignore_errors=True)

    def _finished(self) -> list[Any]:
        states = (self.optuna.trial.TrialState.COMPLETE, self.optuna.trial.TrialState.PRUNED)
        return self.study.get_trials(deepcopy=False, states=states)

    def _require_same(self) -> None:
        """Raises ConfigError where the folder's sweep was started with something else."""
        asked = {
            "settings": {key: str(value) for key, value in self.settings.items()},
            "search": {key: str(values) for key, values in self.space.items()},
            "seeds": list(self.seeds),
            "sampler_seed": self.sampler_seed,
            "data": fingerprint(self.features),
        }
        asked = json.loads(json.dumps(asked, default=str))
        started = self.study.user_attrs.get(_STARTED_WITH)
        if started is None:
            self.study.set_user_attr(_STARTED_WITH, asked)
            return
        different = [key for key in asked if asked[key] != started.get(key)]
        if different:
            shown = [f"{key} is {asked[key]} and was {started.get(key)}" for key in different if key != "data"]
            shown += ["the data differs"] if "data" in different else []
            raise ConfigError(f"{self.folder} holds another sweep: {'; '.join(shown)}; give the same, or another --out")

    def _take_up_interrupted(self) -> None:
        """A trial that a stopped process left is tried again first, and its trainings go on from their checkpoints."""
        if self.replaced.exists() and not self.best.exists():
            self.replaced.rename(self.best)
        shutil.rmtree(self.replaced, ignore_errors=True)
        for trial in self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,)):
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
            self.study.enqueue_trial(trial.params)

    def _shown(self, value: float) -> float:
        """A score, where more is better, as the metric's own value."""
        return value if self.direction == "max" else -value

    def _write(self) -> dict[str, Any]:
        trials = []
        for number, trial in enumerate(self._finished(), 1):
            scores = trial.user_attrs.get("scores")
            trials.append(
                {
                    "trial": number,
                    "settings": {key: trial.params[key] for key in self.space},
                    "valid": None if scores is None else self._shown(statistics.fmean(scores)),
                    "by_seed": None if scores is None else [self._shown(one) for one in scores],
                    "error": trial.user_attrs.get("error"),
                }
            )
        ranked = [t for t in trials if t["valid"] is not None]
        ranked.sort(key=lambda t: -t["valid"] if self.direction == "max" else t["valid"])
        content = {
            "metric": self.metric,
            "direction": self.direction,
            "method": self.config.method,
            "data": self.features.name,
            "seeds": list(self.seeds),
            "search": {key: str(values) for key, values in self.space.items()},
            "best": ranked[0] if ranked else None,
            "trials": trials,
        }
        write_page(self.folder, content)
        return content
