"""What a set is worth: networks trained on it and tested on real images."""

from mim4dd.distill.evaluation.coresets import evaluate_coresets
from mim4dd.distill.evaluation.recipe import (
    Accuracy,
    Evaluation,
    evaluate,
    evaluate_full,
    evaluate_random_real,
)

__all__ = [
    "Accuracy",
    "Evaluation",
    "evaluate",
    "evaluate_coresets",
    "evaluate_full",
    "evaluate_random_real",
]
