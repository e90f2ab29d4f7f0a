"""Triton kernels, one file per op, imported as ``pgm_fast.kernels``: functions of tensors, apart from autograd.

Only ``pgm_fast/ops`` imports them, when a call first takes the ``triton`` backend.
"""
