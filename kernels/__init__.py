"""Triton kernels, one file per op, imported as ``pgm_fast.kernels``. Never imported by ``import pgm_fast``."""
