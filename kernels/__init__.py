"""Room of the Triton kernels, one file per op, imported as ``pgm_fast.kernels``; empty so far."""
