"""DD-Ranking's scores: their formulas, beside its own code, and of which accuracies they are."""

import importlib.metadata
import importlib.util
import math
import random
import sys
from decimal import Decimal
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from mim4dd.distill.commands.cross import score_table
from mim4dd.distill.evaluation import dd_ranking
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


@pytest.fixture
def by_formula(monkeypatch):
    monkeypatch.setattr(dd_ranking, "by_ddranking", lambda: None)


def fractions():
    return torch.rand(4, dtype=torch.float64).tolist()


def exact(exponent):
    one = Decimal(1)
    return float((Decimal(exponent).exp() - (-one).exp()) / (one.exp() - (-one).exp()))


def test_label_robust_score(by_formula):
    full, hard, own, real = fractions()
    for weight in (0.5, 0.2):
        expected = exact(weight * (own - real) - (1 - weight) * (full - hard))
        assert label_robust_score(full, hard, own, real, weight) == pytest.approx(expected)
    assert label_robust_score(1, 1, 1, 0) == pytest.approx(exact(0.5))
    assert label_robust_score(1, 0, 0, 1) == pytest.approx(0, abs=1e-15)


def test_augmentation_robust_score(by_formula):
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
def by_ddranking(monkeypatch):
    """DD-Ranking's own code, past what it imports and no score needs."""
    if importlib.util.find_spec("ddranking") is None:
        pytest.skip("pip install --no-deps ddranking==0.2.0")
    for name in [each for each in sys.modules if each.partition(".")[0] == "ddranking"]:
        monkeypatch.delitem(sys.modules, name)
    for name in _UNUSED:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    cached = dd_ranking.by_ddranking, dd_ranking._metrics
    for each in cached:
        each.cache_clear()
    assert dd_ranking.by_ddranking() == importlib.metadata.version("ddranking")
    yield
    for each in cached:
        each.cache_clear()


def test_ddranking_computes_the_same(by_ddranking, monkeypatch, capsys):
    accuracies = [fractions() for _ in range(3)]
    streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    scores = (label_robust_score, augmentation_robust_score)
    theirs = [score(*row, w) for row in accuracies for score in scores for w in (0.5, 0.2)]
    assert streams[0] == random.getstate()
    assert streams[1] == np.random.get_state()[1].tolist()
    assert torch.equal(streams[2], torch.get_rng_state())
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(dd_ranking, "by_ddranking", lambda: None)
    ours = [score(*row, w) for row in accuracies for score in scores for w in (0.5, 0.2)]
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert len(set(ours)) == 12


@pytest.mark.parametrize("version", ["0.3.0", None])
def test_another_version_is_not_asked(version, monkeypatch):
    def of(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", of)
    dd_ranking.by_ddranking.cache_clear()
    try:
        assert "by its formulas" in dd_ranking.score_source()
    finally:
        dd_ranking.by_ddranking.cache_clear()


def accuracy():
    return Accuracy(tuple(torch.rand(2, dtype=torch.float64).tolist()))


def test_which_accuracies_a_score_is_of(by_formula):
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


def test_two_sets_stand_beside_the_same_networks_on_real_images(by_formula):
    full, of_sets, real = accuracy(), Accuracy(accuracy().values + accuracy().values), accuracy()
    scores = score_hard_labels(full, of_sets, real)
    expected = [
        label_robust_score(full.values[i % 2], syn, syn, real.values[i % 2])
        for i, syn in enumerate(of_sets.values)
    ]
    assert list(scores.values) == expected


def test_a_network_that_diverged_has_no_score(by_formula):
    diverged = Accuracy((math.nan, 0.5))
    scores = score_hard_labels(Accuracy((0.9, 0.9)), diverged, Accuracy((0.4, 0.4)))
    assert [math.isnan(value) for value in scores.values] == [True, False]


def test_the_table(by_formula):
    half = Accuracy((0.5, 0.5))
    rows = {("a", "mlp"): Scores(half, half), ("b", "mlp"): Scores(None, half)}
    title, header, *lines = score_table(rows).splitlines()
    assert "by its formulas" in title
    assert header.split() == ["set", "network", "LRS", "ARS"]
    assert lines == ["a    mlp      50.0 (0.0)  50.0 (0.0)", "b    mlp                  50.0 (0.0)"]
    assert score_table({("a", "mlp"): Scores()}) == ""
