"""What a set is worth: networks trained on it and tested on real images."""

from mim4dd.distill.evaluation.coresets import evaluate_coresets
from mim4dd.distill.evaluation.dd_ranking import augmentation_robust_score, label_robust_score
from mim4dd.distill.evaluation.recipe import (
    Accuracy,
    Evaluation,
    evaluate,
    evaluate_full,
    evaluate_random_real,
)
from mim4dd.distill.evaluation.teacher import ByTeacher, evaluate_by_teacher

__all__ = [
    "Accuracy",
    "ByTeacher",
    "Evaluation",
    "augmentation_robust_score",
    "evaluate",
    "evaluate_by_teacher",
    "evaluate_coresets",
    "evaluate_full",
    "evaluate_random_real",
    "label_robust_score",
]
