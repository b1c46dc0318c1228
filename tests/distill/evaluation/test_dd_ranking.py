"""DD-Ranking's scores: their formulas, beside its own code, and of which accuracies they are."""

import importlib.util
import math
import os
import sys
from decimal import Decimal
from unittest.mock import MagicMock

import pytest
import torch

from mim4dd.distill.commands.cross_tables import score_table
from mim4dd.distill.evaluation.dd_ranking import (
    Scores,
    augmentation_robust_score,
    label_robust_score,
    score_gains,
    score_hard_labels,
)
from mim4dd.distill.evaluation.fairness import Gain, Recipe
from mim4dd.distill.evaluation.recipe import Accuracy

# What ddranking imports, and none of it computes a score.
_TORCHVISION = ["torchvision", "torchvision.transforms", "torchvision.datasets"]
_UNUSED = [*_TORCHVISION, "timm", "kornia", "pandas"]


def fractions():
    return torch.rand(4, dtype=torch.float64).tolist()


def exact(exponent):
    one = Decimal(1)
    return float((Decimal(exponent).exp() - (-one).exp()) / (one.exp() - (-one).exp()))


def test_label_robust_score():
    full, hard, own, real = fractions()
    for weight in (0.5, 0.2):
        expected = exact(weight * (own - real) - (1 - weight) * (full - hard))
        assert label_robust_score(full, hard, own, real, weight) == pytest.approx(expected)
    assert label_robust_score(1, 1, 1, 0) == pytest.approx(exact(0.5))
    assert label_robust_score(1, 0, 0, 1) == pytest.approx(0, abs=1e-15)


def test_augmentation_robust_score():
    augmented, of_real, plain, plain_of_real = fractions()
    for weight in (0.5, 0.2):
        expected = exact(weight * (augmented - of_real) + (1 - weight) * (plain - plain_of_real))
        score = augmentation_robust_score(augmented, of_real, plain, plain_of_real, weight)
        assert score == pytest.approx(expected)
    assert augmentation_robust_score(1, 0, 1, 0) == pytest.approx(1)


def test_percent_is_refused():
    with pytest.raises(ValueError, match=r"syn must be a fraction in \[0, 1\], got 56"):
        label_robust_score(0.9, 0.5, 56, 0.4)
    with pytest.raises(ValueError, match=r"random_plain must be a fraction in \[0, 1\], got nan"):
        augmentation_robust_score(0.9, 0.5, 0.5, math.nan)


@pytest.fixture
def metrics(monkeypatch, tmp_path):
    """DD-Ranking's own classes, past what they import and no score needs."""
    if importlib.util.find_spec("ddranking") is None:
        pytest.skip("pip install --no-deps ddranking==0.2.0")
    for name in [each for each in sys.modules if each.partition(".")[0] == "ddranking"]:
        monkeypatch.delitem(sys.modules, name)
    for name in _UNUSED:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.chdir(tmp_path)  # where it writes its results
    return importlib.import_module("ddranking.metrics")


def theirs(metric, key, weights, **attributes):
    """What a class makes of accuracies that are told in the place of its trainings."""
    asked = object.__new__(metric)
    vars(asked).update(
        num_eval=1, rank=0, use_dist=False, eval_full_data=True, save_path=os.devnull, ipc=1,
        num_classes=1, soft_label_mode="M", **attributes,
    )  # fmt: skip
    with torch.random.fork_rng():
        return float(asked.compute_metrics(image_tensor="syn", syn_lr=1.0, **weights)[key])


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.9])
def test_ddranking_computes_the_same(metrics, weight):
    first, second, third, fourth = fractions()
    hard, soft = {"real": first, "syn": second}, {"syn": third, "random": fourth}
    lrs = theirs(
        metrics.LabelRobustScoreSoft,
        "label_robust_score_mean",
        {"lrs_lambda": weight},
        _compute_hard_label_metrics_helper=lambda mode, **_: (hard[mode], None),
        _compute_soft_label_metrics_helper=lambda image_tensor, **_: (soft[image_tensor], None),
        _get_random_data_helper=lambda eval_iter: (None, "random", None),
    )
    assert label_robust_score(first, second, third, fourth, weight) == pytest.approx(lrs)
    with_it, without = {"syn": first, "random": second}, {"syn": third, "random": fourth}
    ars = theirs(
        metrics.AugmentationRobustScore,
        "augmentation_robust_score_mean",
        {"ars_lambda": weight},
        label_type="hard",
        _compute_with_aug_metrics_helper=lambda image_tensor, **_: (with_it[image_tensor], 0),
        _compute_without_aug_metrics_helper=lambda image_tensor, **_: (
            without[image_tensor],
            0,
        ),
        _get_random_data_helper=lambda eval_iter: (None, "random", None, None),
    )
    own = augmentation_robust_score(first, second, third, fourth, weight)
    assert own == pytest.approx(ars)


def accuracy():
    return Accuracy(tuple(torch.rand(2, dtype=torch.float64).tolist()))


def test_which_accuracies_a_score_is_of():
    own, hard, plain = (
        Gain(Recipe(labels, strategy), accuracy(), accuracy())
        for labels, strategy in (("soft", "crop"), ("hard", "crop"), ("hard", "none"))
    )
    full = accuracy()
    scores = score_gains([own, hard, plain], full)
    for network in range(2):
        lrs = label_robust_score(
            full.values[network],
            hard.synthetic.values[network],
            own.synthetic.values[network],
            own.random_real.values[network],
        )
        ars = augmentation_robust_score(
            hard.synthetic.values[network],
            hard.random_real.values[network],
            plain.synthetic.values[network],
            plain.random_real.values[network],
        )
        assert scores.label_robust.values[network] == lrs
        assert scores.augmentation_robust.values[network] == ars
    assert score_gains([own, hard, plain], None).label_robust is None
    assert score_gains([plain], full).augmentation_robust is None  # nothing is augmented


def test_two_sets_stand_beside_the_same_networks_on_real_images():
    full, of_sets, real = accuracy(), Accuracy(accuracy().values + accuracy().values), accuracy()
    scores = score_hard_labels(full, of_sets, real)
    expected = [
        label_robust_score(full.values[i % 2], syn, syn, real.values[i % 2])
        for i, syn in enumerate(of_sets.values)
    ]
    assert list(scores.values) == expected


def test_a_network_that_diverged_has_no_score():
    diverged = Accuracy((math.nan, 0.5))
    scores = score_hard_labels(Accuracy((0.9, 0.9)), diverged, Accuracy((0.4, 0.4)))
    assert [math.isnan(value) for value in scores.values] == [True, False]


def test_the_table():
    half = Accuracy((0.5, 0.5))
    rows = {("a", "mlp"): Scores(half, half), ("b", "mlp"): Scores(None, half)}
    title, header, *lines = score_table(rows).splitlines()
    assert title.startswith("DD-Ranking, in percent")
    assert header.split() == ["set", "network", "LRS", "ARS"]
    assert lines == ["a    mlp      50.0 (0.0)  50.0 (0.0)", "b    mlp                  50.0 (0.0)"]
    assert score_table({("a", "mlp"): Scores()}) == ""
