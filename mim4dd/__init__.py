"""Dataset distillation by mutual-information maximisation, on fused kernels."""

from mim4dd import _threads as _threads  # it notes how many torch chose, before a program sets them
from mim4dd._unroll.diagnostics import DivergenceError, UnrollDiagnostics
from mim4dd._unroll.graphs import StepGraphs
from mim4dd.fused import NormReLUPool2d, fuse
from mim4dd.losses import InfoNCELoss, MIM4DDLoss, NCELoss, SupConLoss
from mim4dd.ops.clip_loss import clip_loss
from mim4dd.ops.contrastive.ranks import Ranks
from mim4dd.ops.info_nce import info_nce
from mim4dd.ops.log_sum_exp import log_sum_exp
from mim4dd.ops.mi_lower_bound import mi_lower_bound
from mim4dd.ops.nce import nce
from mim4dd.ops.norm_relu_pool import norm_relu_pool
from mim4dd.ops.sgd_step import sgd_step
from mim4dd.ops.sup_con import sup_con
from mim4dd.ops.trajectory_loss import trajectory_loss
from mim4dd.queue import KeyQueue
from mim4dd.step_size import PositiveStepSize
from mim4dd.temperature import LearnedTemperature
from mim4dd.unroll import flatten_parameters, unroll_adam, unroll_sgd

__version__ = "0.1.0"

__all__ = [
    "DivergenceError",
    "InfoNCELoss",
    "KeyQueue",
    "LearnedTemperature",
    "MIM4DDLoss",
    "NCELoss",
    "NormReLUPool2d",
    "PositiveStepSize",
    "Ranks",
    "StepGraphs",
    "SupConLoss",
    "UnrollDiagnostics",
    "clip_loss",
    "flatten_parameters",
    "fuse",
    "info_nce",
    "log_sum_exp",
    "mi_lower_bound",
    "nce",
    "norm_relu_pool",
    "sgd_step",
    "sup_con",
    "trajectory_loss",
    "unroll_adam",
    "unroll_sgd",
]
