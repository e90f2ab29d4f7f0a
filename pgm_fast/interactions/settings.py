"""What can be chosen about an estimate, with defaults that need no choice."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import ConfigError
from .members import Schedule

__all__ = ["PRIORS", "RULES", "Settings"]

RULES = ("entropy", "information")
PRIORS = ("uniform", "empirical")


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
        hidden: width of the classifiers' two hidden layers.
        dropout: of the classifiers, in [0, 1).
        epochs: at most, of every model.
        classifier_rate: learning rate of the classifiers.
        density_rate: learning rate of the densities.
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
    hidden: int = 128
    dropout: float = 0.1
    epochs: int = 100
    classifier_rate: float = 1e-3
    density_rate: float = 3e-3
    density_dim: int = 256
    resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("rule", RULES), ("prior", PRIORS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(allowed)}")
        least = {"folds": 2, "seed": 0, "hidden": 1, "epochs": 1, "density_dim": 1, "resamples": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ConfigError(f"{name} is {value!r}, must be a whole number of at least {smallest}")
        for name in ("classifier_rate", "density_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, must be positive and finite")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}, must be in [0, 1)")
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level!r}, must be between 0 and 1, such as 0.95")

    def to_dict(self) -> dict:
        """Name -> value."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def classifier_schedule(self) -> Schedule:
        return Schedule(self.epochs, patience=15, batch=64, lr=self.classifier_rate, weight_decay=1e-2)

    @property
    def density_schedule(self) -> Schedule:
        return Schedule(self.epochs, patience=8, batch=64, lr=self.density_rate, weight_decay=0.0)
