"""Expert trajectories: training, keeping and exchanging them."""

from mim4dd.distill.experts.buffer import ExpertBuffer
from mim4dd.distill.experts.train import ExpertTraining, train_experts

__all__ = ["ExpertBuffer", "ExpertTraining", "train_experts"]
