"""Maps the top-level ``kernels/`` folder to ``pgm_fast.kernels``; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pgm_fast", "pgm_fast.*"]), "pgm_fast.kernels"],
    package_dir={"pgm_fast.kernels": "kernels"},
)
