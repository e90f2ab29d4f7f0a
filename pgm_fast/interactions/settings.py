"""What can be chosen about an estimate, with defaults that need no choice."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import ConfigError
from .members import Schedule

__all__ = ["ACTIVATIONS", "PRIORS", "RULES", "STARTS", "Settings"]

RULES = ("entropy", "information")
PRIORS = ("uniform", "empirical")
ACTIVATIONS = ("gelu", "relu")
STARTS = ("rows", "normal")


@dataclass(frozen=True)
class Settings:
    """Settings of an estimate.

    Attributes:
        folds: parts of the training and validation rows for cross-fitting; at least 2.
        rule: how redundancy is found. ``entropy`` is the published one, ``r = min H_m - min (H_m - i_m)``.
            ``information`` is ours, ``r = min i_m``: it uses no density, and other than the published one it tells
            uniqueness from redundancy sample by sample where a data set mixes both.
        prior: what a label says before anything is seen. ``uniform`` is the published one, ``i = log C + log p(y|x)``;
            ``empirical`` is ours, ``i = log p(y|x) - log p(y)``, for classes of very different sizes.
        standardize: every dimension to zero mean and unit variance over the training rows. With ``rule="entropy"`` r, u
            and s of a row depend on the units of the features (doubling those of one modality leaves the means and
            changes the rows), so that they are the same for all. The released code leaves them as they come.
        hidden: width of the classifiers' two hidden layers.
        activation: of those layers, ``gelu`` or ``relu``.
        dropout: of the classifiers, in [0, 1).
        calibrate: a temperature for every classifier, from rows that it was not fitted on.
        epochs: at most, of every model; exactly, without ``early_stop``.
        early_stop: a model has the weights of its best epoch on rows that it was not fitted on, and stops some epochs
            after it; else those of its last epoch.
        batch: rows of a step.
        classifier_rate: learning rate of the classifiers (AdamW).
        classifier_decay: their weight decay.
        classifier_step: epochs after which that rate is divided by 10, again and again; 0 for never.
        density_rate: learning rate of the densities.
        density_step: as ``classifier_step``, of the densities.
        density_start: where a mixture begins: ``rows``, its means rows of the data and its covariances the identity, or
            ``normal``, everything drawn from N(0, 1).
        density_dim: the density of a wider modality is that of its first ``density_dim`` principal components, each
            scaled to unit variance. The classifiers see all dimensions.
        resamples: of the bootstrap.
        level: of the bootstrap intervals, in (0, 1).
        seed: of weights, orders of rows and resamples.

    Raises:
        ConfigError: a value out of range.
    """

    folds: int = 5
    rule: str = "entropy"
    prior: str = "uniform"
    standardize: bool = True
    hidden: int = 128
    activation: str = "gelu"
    dropout: float = 0.1
    calibrate: bool = True
    epochs: int = 100
    early_stop: bool = True
    batch: int = 64
    classifier_rate: float = 1e-3
    classifier_decay: float = 1e-2
    classifier_step: int = 0
    density_rate: float = 3e-3
    density_step: int = 0
    density_start: str = "rows"
    density_dim: int = 256
    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"rule": RULES, "prior": PRIORS, "activation": ACTIVATIONS, "density_start": STARTS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(allowed)}")
        least = {"folds": 2, "seed": 0, "hidden": 1, "epochs": 1, "density_dim": 1, "resamples": 1}
        least |= {"batch": 1, "classifier_step": 0, "density_step": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ConfigError(f"{name} is {value!r}, must be a whole number of at least {smallest}")
        for name in ("classifier_rate", "density_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, must be positive and finite")
        if not 0 <= self.classifier_decay < math.inf:
            raise ConfigError(f"classifier_decay is {self.classifier_decay!r}, must be a finite number >= 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}, must be in [0, 1)")
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level!r}, must be between 0 and 1, such as 0.95")

    def to_dict(self) -> dict:
        """Name -> value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def classifier_schedule(self) -> Schedule:
        patience = 15 if self.early_stop else None
        return Schedule(
            self.epochs, patience, self.batch, self.classifier_rate, self.classifier_decay, self.classifier_step
        )

    @property
    def density_schedule(self) -> Schedule:
        return Schedule(
            self.epochs, 8 if self.early_stop else None, self.batch, self.density_rate, 0.0, self.density_step
        )
