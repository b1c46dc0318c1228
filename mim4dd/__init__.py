"""Dataset distillation by mutual-information maximisation, on fused kernels."""

from mim4dd.ops.sgd_step import sgd_step

__version__ = "0.1.0"

__all__ = ["sgd_step"]
