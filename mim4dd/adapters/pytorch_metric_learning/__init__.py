"""NTXentLoss and SupConLoss of pytorch-metric-learning 2.9, with their default reducers."""

from mim4dd.adapters.pytorch_metric_learning._losses import NTXentLoss, SupConLoss

__all__ = ["NTXentLoss", "SupConLoss"]
