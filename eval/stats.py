"""Means with intervals and paired differences: pure functions over numbers.

Source: Efron 1987, "Better Bootstrap Confidence Intervals" (BCa), by scipy.stats.bootstrap.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Interval", "mean_interval", "paired_difference"]

NUM_RESAMPLES = 9999


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


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
