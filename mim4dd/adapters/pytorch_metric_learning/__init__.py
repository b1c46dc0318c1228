"""Losses and wrappers of pytorch-metric-learning 2.9."""

from mim4dd.adapters.pytorch_metric_learning._distributed import DistributedLossWrapper
from mim4dd.adapters.pytorch_metric_learning._losses import NTXentLoss, SupConLoss
from mim4dd.adapters.pytorch_metric_learning._memory import CrossBatchMemory

__all__ = ["CrossBatchMemory", "DistributedLossWrapper", "NTXentLoss", "SupConLoss"]
