"""DD-Ranking's scores: what a set is worth beyond its soft labels and its augmentation."""

import contextlib
import importlib
import importlib.metadata
import io
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mim4dd.distill.evaluation.fairness import Gain, Recipe
from mim4dd.distill.evaluation.recipe import Accuracy

__all__ = [
    "Scores",
    "augmentation_robust_score",
    "by_ddranking",
    "label_robust_score",
    "score_gains",
    "score_hard_labels",
    "score_source",
]

_KNOWN_VERSION = "0.2."  # of ddranking, into whose classes _ask reaches


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

    A set that is as good as all images and no better than random ones has 0.269. DD-Ranking 0.2
    computes it where it is installed.

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
    if by_ddranking():
        hard = {"real": full_hard, "syn": syn_hard}
        soft = {_SYN: syn, _RANDOM: random_real}
        return _ask(
            "LabelRobustScoreSoft",
            "label_robust_score_mean",
            lrs_lambda=weight,
            _compute_hard_label_metrics_helper=lambda mode, **_: (hard[mode], None),
            _compute_soft_label_metrics_helper=lambda image_tensor, **_: (soft[image_tensor], None),
            _get_random_data_helper=lambda eval_iter: (None, _RANDOM, None),
        )
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

    A set that gains nothing has 0.269. DD-Ranking 0.2 computes it where it is installed.

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
    augmented = {_SYN: syn_augmented, _RANDOM: random_augmented}
    plain = {_SYN: syn_plain, _RANDOM: random_plain}
    _check(
        syn_augmented=syn_augmented,
        random_augmented=random_augmented,
        syn_plain=syn_plain,
        random_plain=random_plain,
        weight=weight,
    )
    if by_ddranking():
        return _ask(
            "AugmentationRobustScore",
            "augmentation_robust_score_mean",
            ars_lambda=weight,
            label_type="hard",
            _compute_with_aug_metrics_helper=lambda image_tensor, **_: (
                augmented[image_tensor],
                None,
            ),
            _compute_without_aug_metrics_helper=lambda image_tensor, **_: (
                plain[image_tensor],
                None,
            ),
            _get_random_data_helper=lambda eval_iter: (None, _RANDOM, None, None),
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


def score_source() -> str:
    """What scores are that are printed in percent, and who computed them."""
    version = by_ddranking()
    by = "by its formulas" if version is None else f"by ddranking {version}"
    return f"DD-Ranking, {by}, in percent; 26.9 where nothing is gained or lost"


@cache
def by_ddranking() -> str | None:
    """The version of DD-Ranking that computes scores; None where the formulas do."""
    try:
        version = importlib.metadata.version("ddranking")
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if version.startswith(_KNOWN_VERSION) and _metrics() is not None else None


@cache
def _metrics() -> ModuleType | None:
    """Its classes, where it can be imported: it needs torchvision, timm, kornia and pandas."""
    try:
        return importlib.import_module("ddranking.metrics")
    except (ImportError, RuntimeError):  # a torchvision of another torch raises RuntimeError
        return None


_SYN, _RANDOM = "synthetic", "random real"  # in the place of images


def _ask(kind: str, key: str, **attributes: Any) -> float:
    """What a class of DD-Ranking makes of accuracies that are told in the place of its trainings.

    It has no function of accuracies: ``compute_metrics`` trains networks by methods that are
    replaced here, draws a seed from the clock, prints, and writes a CSV file.
    """
    weights = {name: attributes.pop(name) for name in list(attributes) if name.endswith("_lambda")}
    metric = object.__new__(getattr(_metrics(), kind))
    vars(metric).update(
        num_eval=1,
        rank=0,
        use_dist=False,
        eval_full_data=True,
        save_path=os.devnull,
        ipc=1,
        num_classes=1,
        soft_label_mode="M",
        **attributes,
    )
    with _random_streams_kept(), contextlib.redirect_stdout(io.StringIO()):
        return float(metric.compute_metrics(image_tensor=_SYN, syn_lr=1.0, **weights)[key])


@contextlib.contextmanager
def _random_streams_kept() -> Iterator[None]:
    """Give the streams that DD-Ranking seeds anew back as they were."""
    state, of_numpy = random.getstate(), np.random.get_state()
    try:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(of_numpy)


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
