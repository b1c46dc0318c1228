"""Triton kernels, one module per op; imported as ``mim4dd.kernels`` and only when launched.

What travels together to a kernel is a NamedTuple. Triton takes it apart: each field is an argument
of its own, aligned or not, and one that is None is known when the kernel is compiled.
"""
