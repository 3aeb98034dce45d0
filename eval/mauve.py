"""MAUVE: how close the distribution of written texts is to that of human ones.

Source: Pillutla et al. 2021 (arXiv 2102.01454), equations 1 to 3 and section 3.1: texts as a language model's states,
quantised jointly by k-means after PCA, and the area under the curve of exp(-c KL) against mixtures of both. The authors'
package is GPL and is not used here; figures of both agree (tests/eval/test_text_metrics.py holds values that it gave).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterfoil.errors import EngineError

__all__ = ["area", "mauve", "quantise"]

Floats = NDArray[Any]

SCALE = 5.0
"""c of equation 3."""
POINTS = 25
EXPLAINED = 0.9


def mauve(human: Floats, written: Floats, *, num_buckets: int | None = None, seed: int = 0) -> float:
    """Return MAUVE, from 0 to 1, of features (N, H) and (M, H); buckets are a tenth of the smaller number by default.

    With few texts it is biased upwards and moves with the seed: compare only what has as many.
    """
    labels_p, labels_q, count = quantise(human, written, num_buckets=num_buckets, seed=seed)
    return float(area(_histogram(labels_p, count), _histogram(labels_q, count)))


def quantise(
    human: Floats, written: Floats, *, num_buckets: int | None = None, seed: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Return the bucket of each text, and how many there are. Raises EngineError without scikit-learn."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import normalize
    except ImportError as error:
        raise EngineError(
            "MAUVE", given="no scikit-learn", allowed="counterfoil[text-metrics]", do="Install it."
        ) from error
    if num_buckets is None:
        num_buckets = max(2, round(min(len(human), len(written)) / 10))
    both = normalize(np.concatenate([written, human]).astype(np.float64), norm="l2")
    reduced = PCA(random_state=seed).fit(both)
    kept = int(np.searchsorted(np.cumsum(reduced.explained_variance_ratio_), EXPLAINED)) + 1
    features = reduced.transform(both)[:, :kept]
    kmeans: Any = KMeans
    labels = kmeans(num_buckets, n_init=5, max_iter=500, random_state=seed).fit_predict(features)
    return labels[len(written) :], labels[: len(written)], num_buckets


def _histogram(labels: NDArray[np.intp], count: int) -> Floats:
    return np.bincount(labels, minlength=count) / len(labels)


def area(p: Floats, q: Floats) -> Floats:
    """Return the area under the curve of two histograms (..., buckets), by both axes."""
    weights = np.linspace(1e-6, 1 - 1e-6, POINTS)
    weights = weights.reshape(-1, *[1] * p.ndim)
    mixed = weights * p + (1 - weights) * q
    x, y = np.exp(-SCALE * _kl(q, mixed)), np.exp(-SCALE * _kl(p, mixed))
    ends = np.zeros_like(x[:1]), np.ones_like(x[:1])
    # The curve begins at (1, 0), where all weight is on q, and ends at (0, 1).
    x, y = np.concatenate([ends[1], x, ends[0]]), np.concatenate([ends[0], y, ends[1]])
    return 0.5 * (_integrate(x, y) + _integrate(y, x))


def _kl(p: Floats, mixed: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / mixed), 0.0).sum(-1)


def _integrate(x: Floats, y: Floats) -> Floats:
    """Return the area over x by trapezia; points are sorted along x, which is the first axis."""
    order = np.argsort(x, axis=0, kind="stable")
    x, y = np.take_along_axis(x, order, 0), np.take_along_axis(y, order, 0)
    return ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum(0)
