"""Dataset distillation by mutual-information maximisation, on fused kernels."""

from mim4dd.losses import InfoNCELoss, MIM4DDLoss, NCELoss, SupConLoss
from mim4dd.ops.info_nce import info_nce
from mim4dd.ops.nce import nce
from mim4dd.ops.sgd_step import sgd_step
from mim4dd.ops.sup_con import sup_con

__version__ = "0.1.0"

__all__ = [
    "InfoNCELoss",
    "MIM4DDLoss",
    "NCELoss",
    "SupConLoss",
    "info_nce",
    "nce",
    "sgd_step",
    "sup_con",
]
