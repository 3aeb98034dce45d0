"""Intervals: cases that can be derived by hand, and how often an interval holds the truth."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from eval import stats
from eval.stats import Interval, mean_interval, paired_difference


def test_two_values_by_hand() -> None:
    """Of 0 and 1, four resamples are equally likely: means 0, 1/2, 1/2 and 1.

    The distribution is symmetric about the mean, so BCa corrects nothing and takes plain quantiles. At 95 % these are
    the 2.5 % and the 97.5 % points, which are 0 and 1; at 40 % the 30 % and the 70 % points, which are both 1/2.
    """
    assert mean_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    assert mean_interval([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5)


def test_many_values_are_nearly_normal() -> None:
    """0 to 99: mean 49.5, variance (100^2 - 1)/12 = 833.25, standard error sqrt(833.25/100) = 2.887, times 1.96."""
    found = mean_interval([float(value) for value in range(100)])
    assert found.mean == 49.5
    assert found.low == pytest.approx(49.5 - 1.96 * 2.887, abs=0.3)
    assert found.high == pytest.approx(49.5 + 1.96 * 2.887, abs=0.3)


def test_scipys_own_interval_with_other_draws_is_near() -> None:
    """A skewed sample, exp(i/10); the two differ by the resampling alone."""
    values = [math.exp(at / 10) for at in range(40)]
    found = mean_interval(values)
    theirs = bootstrap((np.array(values),), np.mean, method="BCa", rng=np.random.default_rng(99)).confidence_interval
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert found.mean - found.low < found.high - found.mean, "skewed to the right"


@pytest.mark.parametrize("values", [[0.25], [0.25] * 5])
def test_equal_values_are_their_own_interval(values: list[float]) -> None:
    assert mean_interval(values) == Interval(0.25, 0.25, 0.25)


def test_a_rare_success_has_a_finite_interval_within_range() -> None:
    for values in ([0.0] * 99 + [1.0], [1.0] * 99 + [0.0]):
        found = mean_interval(values)
        assert 0 <= found.low <= found.mean <= found.high <= 1
        assert found.low < found.high


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_a_wider_level_is_a_wider_interval_and_a_seed_repeats() -> None:
    values = [float(at % 7) for at in range(50)]
    narrow, wide = mean_interval(values, level=0.8), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_a_paired_difference_is_the_mean_of_the_differences() -> None:
    """After - before: 1, 0, -1, 1, so 1/4; the other way round -1/4 with the ends swapped."""
    before, after = [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]
    found = paired_difference(before, after)
    assert found == mean_interval([1.0, 0.0, -1.0, 1.0])
    assert found.mean == 0.25
    back = paired_difference(after, before)
    assert back.mean == -0.25
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=0.26)


def test_a_constant_shift_is_certain_when_paired() -> None:
    """Items vary from 0 to 9, each gains 0.5: unpaired intervals would overlap, the paired one is a point."""
    before = [float(at) for at in range(10)]
    assert paired_difference(before, [value + 0.5 for value in before]) == Interval(0.5, 0.5, 0.5)


def test_unequal_lengths_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 samples of 40 coin tosses at 0.3: 90 % to 99 % of the intervals hold 0.3.

    They say 95 %; the count has a standard error of 1.3 points, and a bootstrap on 40 values falls short by one or two.
    """
    monkeypatch.setattr(stats, "NUM_RESAMPLES", 499)
    rng = np.random.default_rng(0)
    samples = [(rng.random(40) < 0.3).astype(float).tolist() for _ in range(300)]
    held = sum(found.low <= 0.3 <= found.high for found in map(mean_interval, samples))
    assert 0.90 <= held / 300 <= 0.99
