"""Triton kernels, one file per op, imported as ``pgm_fast.kernels``: functions of tensors, apart from autograd.

Only ``pgm_fast/ops`` and, for ``multi_rate.py``, ``pgm_fast/optim`` import them, when a call first takes the ``triton``
backend.
"""

try:
    import triton  # noqa: F401
except ImportError as error:
    # the reason that pgm_fast.backends gives after the backend's name
    raise ImportError("is not installed (Linux only): pip install triton") from error
