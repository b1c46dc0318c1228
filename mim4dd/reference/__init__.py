"""Plain PyTorch definition of every op: the specification that kernels are tested against.

They materialise the (N, M) logits, run on any device and can be differentiated any number of times.
Half precision is computed in float32. docs/math.md derives them.
"""

from mim4dd.reference._contrastive import (
    IGNORE,
    NO_POSITIVE,
    Contrast,
    Critic,
    Kind,
    Reduce,
    contrastive,
    count_each,
    count_queries,
    log_sum_exp,
    mi_lower_bound,
    reduce_queries,
    taking_part,
    unit_rows,
    unit_rows_bwd,
)
from mim4dd.reference._norm_relu_pool import norm_relu_pool
from mim4dd.reference._parts import (
    OfPart,
    contrastive_of_part,
    contrastive_of_parts,
    contrastive_of_two,
)
from mim4dd.reference._steps import adam_adjoint, adam_step, sgd_adjoint, sgd_step
from mim4dd.reference._trajectory import (
    scatter_add_rows,
    trajectory_loss,
    trajectory_loss_bwd,
    unroll_sgd,
)

__all__ = [
    "IGNORE",
    "NO_POSITIVE",
    "Contrast",
    "Critic",
    "Kind",
    "OfPart",
    "Reduce",
    "adam_adjoint",
    "adam_step",
    "contrastive",
    "contrastive_of_part",
    "contrastive_of_parts",
    "contrastive_of_two",
    "count_each",
    "count_queries",
    "log_sum_exp",
    "mi_lower_bound",
    "norm_relu_pool",
    "reduce_queries",
    "scatter_add_rows",
    "sgd_adjoint",
    "sgd_step",
    "taking_part",
    "trajectory_loss",
    "trajectory_loss_bwd",
    "unit_rows",
    "unit_rows_bwd",
    "unroll_sgd",
]
