"""DD-Ranking's scores: what a set is worth beyond its soft labels and its augmentation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mim4dd.distill.evaluation.fairness import Gain, Recipe
from mim4dd.distill.evaluation.recipe import Accuracy

__all__ = [
    "TITLE",
    "Scores",
    "augmentation_robust_score",
    "label_robust_score",
    "score_gains",
    "score_hard_labels",
]

TITLE = "DD-Ranking, in percent; 26.9 where nothing is gained or lost"


@dataclass(frozen=True)
class Scores:
    """Scores of a set by the networks that judged it; None where accuracies are missing.

    Args:
        label_robust: LRS, in [0, 1], of every network.
        augmentation_robust: ARS, in [0, 1], of every network.
    """

    label_robust: Accuracy | None = None
    augmentation_robust: Accuracy | None = None


def label_robust_score(
    full_hard: float, syn_hard: float, syn: float, random_real: float, weight: float = 0.5
) -> float:
    r"""DD-Ranking's LRS: what is gained over random real images, and lost to the whole set.

    .. math::
        \frac{e^\alpha - e^{-1}}{e - e^{-1}}, \qquad
            \alpha = w\, (a_\mathrm{syn} - a_\mathrm{random})
            - (1 - w)\, (a_\mathrm{full}^\mathrm{hard} - a_\mathrm{syn}^\mathrm{hard})

    A set that is as good as all images and no better than random ones has 0.269.

    Args:
        full_hard: Accuracy, a fraction, on the whole training set with its classes.
        syn_hard: On the set with classes for labels.
        syn: On the set by its own recipe.
        random_real: On as many random real images by that recipe.
        weight: w, in [0, 1].

    Raises:
        ValueError: If a value lies outside [0, 1], such as one in percent.

    Example:
        >>> from mim4dd.distill.evaluation import label_robust_score
        >>> round(label_robust_score(0.9, 0.6, 0.7, 0.5), 3)
        0.248

    References:
        Li et al. DD-Ranking: Rethinking the Evaluation of Dataset Distillation. arXiv:2505.13300.
    """
    _check(full_hard=full_hard, syn_hard=syn_hard, syn=syn, random_real=random_real, weight=weight)
    return _scaled(weight * (syn - random_real) - (1 - weight) * (full_hard - syn_hard))


def augmentation_robust_score(
    syn_augmented: float,
    random_augmented: float,
    syn_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> float:
    r"""DD-Ranking's ARS: what is gained over random real images with augmentation and without.

    .. math::
        \frac{e^\beta - e^{-1}}{e - e^{-1}}, \qquad
            \beta = w\, (a_\mathrm{syn}^\mathrm{aug} - a_\mathrm{random}^\mathrm{aug})
            + (1 - w)\, (a_\mathrm{syn}^\mathrm{plain} - a_\mathrm{random}^\mathrm{plain})

    A set that gains nothing has 0.269.

    Args:
        syn_augmented: Accuracy, a fraction, on the set with augmentation.
        random_augmented: On as many random real images with it.
        syn_plain: On the set without it.
        random_plain: On the random real images without it.
        weight: w, in [0, 1].

    Raises:
        ValueError: If a value lies outside [0, 1], such as one in percent.

    Example:
        >>> from mim4dd.distill.evaluation import augmentation_robust_score
        >>> round(augmentation_robust_score(0.7, 0.5, 0.6, 0.5), 3)
        0.338

    References:
        Li et al. DD-Ranking: Rethinking the Evaluation of Dataset Distillation. arXiv:2505.13300.
    """
    _check(
        syn_augmented=syn_augmented,
        random_augmented=random_augmented,
        syn_plain=syn_plain,
        random_plain=random_plain,
        weight=weight,
    )
    gains = syn_augmented - random_augmented, syn_plain - random_plain
    return _scaled(weight * gains[0] + (1 - weight) * gains[1])


def score_hard_labels(full: Accuracy, synthetic: Accuracy, random_real: Accuracy) -> Accuracy:
    """The LRS of sets with hard labels, by the accuracies of one recipe.

    Args:
        full: Of networks on the whole training set.
        synthetic: Of as many networks on each set, one set after another.
        random_real: Of as many networks on random real images as of ``full``.
    """
    repeats = len(synthetic.values) // len(full.values)
    return _of_networks(
        label_robust_score,
        Accuracy(full.values * repeats),
        synthetic,
        synthetic,
        Accuracy(random_real.values * repeats),
    )


def score_gains(gains: Sequence[Gain], full: Accuracy | None) -> Scores:
    """The scores of what :func:`~mim4dd.distill.evaluation.fairness.fair_gains` gave.

    ARS is by hard labels, as DD-Ranking has it with ``label_type="hard"``. A set whose own recipe
    has no augmentation has none.

    Args:
        gains: Of one set, the own recipe first.
        full: Of networks on the whole training set, by hard labels and the own augmentation; None
            leaves LRS out.
    """
    own, by_recipe = gains[0], {each.recipe: each for each in gains}
    hard = by_recipe[Recipe("hard", own.recipe.dsa_strategy)]
    plain = by_recipe[Recipe("hard", "none")]
    lrs = ars = None
    if full is not None:
        lrs = _of_networks(label_robust_score, full, hard.synthetic, own.synthetic, own.random_real)
    if hard is not plain:
        ars = _of_networks(
            augmentation_robust_score,
            hard.synthetic,
            hard.random_real,
            plain.synthetic,
            plain.random_real,
        )
    return Scores(lrs, ars)


def _of_networks(score: Callable[..., float], *accuracies: Accuracy) -> Accuracy:
    """A score of every network; NaN where one diverged."""
    rows = zip(*(each.values for each in accuracies), strict=True)
    return Accuracy(tuple(math.nan if any(map(math.isnan, row)) else score(*row) for row in rows))


def _scaled(exponent: float) -> float:
    """The exponential, so that -1 becomes 0 and 1 becomes 1."""
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


def _check(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a fraction in [0, 1], got {value}")
