"""Means with intervals and paired differences: pure functions over numbers.

Source: Efron 1987, "Better Bootstrap Confidence Intervals" (BCa), by scipy.stats.bootstrap.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Interval", "mean_interval", "paired_difference", "recovered_gap"]

NUM_RESAMPLES = 9999


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def round(self) -> dict[str, float]:
        """Return it by name, with five decimals, for a summary."""
        return {key: round(value, 5) for key, value in self._asdict().items()}


def mean_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Estimate a mean with its bootstrap interval. Raises ValueError for no values.

    Where all values are equal, or there is one, the interval is that value: the data say no more.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if not values:
        raise ValueError("no values to average")
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(data) == 1 or float(np.ptp(data)) == 0:
        return Interval(mean, mean, mean)
    found = bootstrap(
        (data,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=level,
        method="BCa",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate the mean of after - before over the same items, resampling items. Raises ValueError for unequal lengths."""
    return mean_interval([b - a for a, b in zip(before, after, strict=True)], level=level, seed=seed)


def recovered_gap(
    floor: Sequence[float], ceiling: Sequence[float], found: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate the share of the gap between a floor and a ceiling that is recovered, over the same items, resampling items.

    (mean found - mean floor) / (mean ceiling - mean floor), Burns et al. 2023 (arXiv 2312.09390), equation 1; 0 is the
    floor, 1 the ceiling. A ratio whose denominator may be near 0 has no mean: the interval is of percentiles, and is wide
    where the gap is small. Raises ValueError for unequal lengths, and where floor and ceiling are equal.
    """
    import numpy as np

    if not len(floor) == len(ceiling) == len(found):
        raise ValueError("values of the same items are needed")
    rows = np.asarray([floor, ceiling, found], dtype=float)
    means = rows.mean(1)
    if means[0] == means[1]:
        raise ValueError("floor and ceiling are equal")
    rng = np.random.default_rng(seed)
    drawn = np.stack([rows[:, rng.integers(0, rows.shape[1], rows.shape[1])].mean(1) for _ in range(NUM_RESAMPLES)])
    gap = drawn[:, 1] - drawn[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(gap == 0, np.nan, (drawn[:, 2] - drawn[:, 0]) / gap)
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float((means[2] - means[0]) / (means[1] - means[0])), float(low), float(high))
