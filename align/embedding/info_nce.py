"""InfoNCE: each anchor picks its positive out of the batch's texts.

Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4, as sentence-transformers has it
(`MultipleNegativesRankingLoss`; with `mini_batch` the cached form, Gao et al. 2021, arXiv 2101.06983):
    -log exp(cos(a_i, p_i) / tau) / sum_j exp(cos(a_i, c_j) / tau), over all positives and negatives c_j of the batch.
Differences: none known; the module is the library's. `sides: both` is Guenther et al. 2024 (arXiv 2310.19923), `sides:
all` Li et al. 2023 (arXiv 2308.03281), `hardness` Lan et al. 2025 (arXiv 2503.04812), equation 5.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from align.embedding_loss import EmbeddingLoss
from counterfoil.records import Triplet

__all__ = ["InfoNce"]

SIDES: dict[str, dict[str, Any]] = {
    "anchor": {},
    "both": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    "all": {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
}


class InfoNce(EmbeddingLoss):
    """Pull an anchor to its positive, away from all other texts of the batch."""

    temperature: float = Field(default=0.05, gt=0)
    """Cosines are divided by it (tau)."""
    sides: Literal["anchor", "both", "all"] = "anchor"
    """Who picks: anchors among texts; also texts among anchors; or both against texts of their own kind as well."""
    hardness: float = Field(default=0.0, ge=0)
    """Weighs a negative by exp(hardness x its cosine), without a gradient; 0 is off."""
    hardness_of: Literal["in_batch_negatives", "hard_negatives", "all_negatives"] = "all_negatives"
    """Which negatives `hardness` weighs: those of other rows, a row's own, or all."""
    mini_batch: int | None = Field(default=None, ge=1)
    """Rows in memory at a time, so that a batch may be larger than memory; about twice the time. None takes all at once."""

    @model_validator(mode="after")
    def check_hardness(self) -> Self:
        """Refuse a choice that would be ignored."""
        if self.hardness_of != "all_negatives" and not self.hardness:
            raise ValueError("hardness_of says nothing while hardness is 0")
        return self

    def build(self, model: Any, rows: Sequence[Triplet], *, batch_size: int) -> Any:
        """Return the library's module."""
        from sentence_transformers.sentence_transformer.losses import (
            CachedMultipleNegativesRankingLoss,
            MultipleNegativesRankingLoss,
        )

        given = {"scale": 1 / self.temperature, **SIDES[self.sides]}
        if self.hardness:
            given |= {"hardness_mode": self.hardness_of, "hardness_strength": self.hardness}
        if self.mini_batch is None:
            return MultipleNegativesRankingLoss(model, **given)
        return CachedMultipleNegativesRankingLoss(model, mini_batch_size=self.mini_batch, **given)
