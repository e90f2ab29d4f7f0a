"""A search for the settings of one method, by Optuna, on validation scores alone."""

from .run import run_sweep
from .space import Choices, Interval, read_space

__all__ = ["Choices", "Interval", "read_space", "run_sweep"]
