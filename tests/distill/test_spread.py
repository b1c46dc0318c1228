"""What a few distillations tell, against scipy and against draws."""

import math

import pytest
import torch
from scipy import stats

from mim4dd.distill.spread import Spread


def test_a_spread_is_over_what_there_is():
    assert Spread.of([]) == Spread(None, None, 0)
    assert Spread.of([2.0]) == Spread(2.0, None, 1)
    assert Spread.of([1.0, 3.0]) == Spread(2.0, math.sqrt(2), 2)
    diverged = Spread.of([1.0, math.nan])
    assert math.isnan(diverged.mean)
    assert math.isnan(diverged.std)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_intervals_and_p_values_are_students(count):
    values = torch.randn(count, dtype=torch.float64) + 0.5
    spread = Spread.of(values.tolist())
    test = stats.ttest_1samp(values.numpy(), 0.0)
    assert spread.p_value() == pytest.approx(test.pvalue, rel=1e-9)
    low, high = test.confidence_interval(0.95)
    assert spread.interval() == pytest.approx((low, high), rel=1e-9)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """Three seeds, as most rows have: what a normal's 1.96 would not do."""
    draws = torch.randn(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held, small = 0, 0
    for row in draws.tolist():
        spread = Spread.of(row)
        low, high = spread.interval()
        held += low <= 0 <= high
        small += spread.p_value() < 0.05
        assert (low <= 0 <= high) == (spread.p_value() >= 0.05)
    # 4000 draws of 0.05 have a deviation of 14.
    assert abs(held - 3800) < 60
    assert held + small == 4000


def test_what_tells_nothing_gives_none():
    for spread in (Spread.of([]), Spread.of([0.5])):
        assert spread.interval() is None
        assert spread.p_value() is None
        assert spread.interval_text() == ""
    assert Spread.of([0.5, 0.5]).interval() == (0.5, 0.5)
    assert Spread.of([0.5, 0.5]).p_value() == 0.0
    assert Spread.of([0.0, 0.0]).p_value() == 1.0
    assert math.isnan(Spread.of([1.0, math.nan]).p_value())


def test_gains_are_paired_and_leave_out_what_failed():
    gains = Spread.of_gains([(0.6, 0.5), (0.7, None), (None, 0.5), (0.8, 0.6)])
    assert gains.mean == pytest.approx(0.15)
    assert gains.std == pytest.approx(0.1 / math.sqrt(2))
    assert gains.count == 2


def test_texts():
    assert Spread.of([]).text(100) == ""
    assert Spread.of([0.5]).text(100, sign="+") == "+50.0"
    assert Spread.of([0.5, 0.7]).text(100, digits=2) == "60.00 ± 14.14"
    assert Spread.of([0.5, 0.7]).summary() == {
        "mean": pytest.approx(0.6), "std": pytest.approx(math.sqrt(0.02)), "n": 2
    }  # fmt: skip
