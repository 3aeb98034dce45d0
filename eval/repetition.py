"""How much texts repeat themselves: rep-n and diversity.

Source: Welleck et al. 2020 (arXiv 1908.04319) and Su et al. 2022 (arXiv 2202.06417), section 4.1: rep-n is the share of
n-grams that are not the first of their kind in their text, in percent, counted over all texts; diversity is the product of
what rep-2, rep-3 and rep-4 leave. Words are what stands between white space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ORDERS", "count_ngrams", "diversity", "repetition"]

ORDERS = (2, 3, 4)


def count_ngrams(text: str, n: int, *, compat: bool = False) -> tuple[int, int]:
    """Return how many distinct n-grams a text has, and how many in all.

    `compat` counts as the authors' code does, which leaves out the last n-gram of each text.
    """
    words = text.split()
    found = [tuple(words[at : at + n]) for at in range(len(words) - n + (0 if compat else 1))]
    return len(set(found)), len(found)


def repetition(texts: Sequence[str], n: int, *, compat: bool = False) -> float:
    """Return rep-n of texts, in percent; 0 where no text has n words."""
    counts = [count_ngrams(text, n, compat=compat) for text in texts]
    total = sum(count for _, count in counts)
    found = 100 * (1 - sum(distinct for distinct, _ in counts) / total) if total else 0.0
    return round(found, 2) if compat else found


def diversity(texts: Sequence[str], *, compat: bool = False) -> float:
    """Return the product of 1 - rep-n / 100 for n of 2, 3 and 4: 1 where nothing is said twice."""
    product = 1.0
    for n in ORDERS:
        product *= 1 - repetition(texts, n, compat=compat) / 100
    return product


def resample_repetition(counts: np.ndarray, picks: np.ndarray) -> dict[str, Any]:
    """Return rep-n and diversity of resampled texts, as `repetition` and `diversity` would.

    `counts` (texts, orders, 2) has distinct and all n-grams, `picks` (resamples, texts) which texts are drawn.
    """
    import numpy as np

    sums = counts[picks].sum(1)
    share = np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1), 1.0)  # no n-gram, none repeated
    found: dict[str, Any] = {f"rep-{n}": 100 * (1 - share[:, at]) for at, n in enumerate(ORDERS)}
    return found | {"diversity": share.prod(-1)}
