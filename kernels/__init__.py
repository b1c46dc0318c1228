"""Triton kernels, one module per op; imported as ``mim4dd.kernels`` and only when launched."""
