"""Comparisons of methods over sets, splits and seeds: the same budget for each, chosen on validation scores alone."""

from .plan import Study, read_study
from .run import run_study

__all__ = ["Study", "read_study", "run_study"]
