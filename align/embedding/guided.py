"""Guided in-sample selection of negatives: a second embedder says which texts of a batch are no negatives.

Source: Solatorio 2024 (arXiv 2402.16829), as sentence-transformers has it (`GISTEmbedLoss`; with `mini_batch` the cached
form, Gao et al. 2021, arXiv 2101.06983): InfoNCE without the texts that the guide finds nearer to an anchor than its
positive.
Differences: none known; the module is the library's.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from align.embedding_loss import EmbeddingLoss
from counterfoil.models import find_model
from counterfoil.records import Triplet

__all__ = ["Guided"]


class Guided(EmbeddingLoss):
    """InfoNCE without what is probably a false negative."""

    guide: str = "minilm"
    """The embedder that judges: a name, a folder or a hub id."""
    temperature: float = Field(default=0.01, gt=0)
    """Cosines are divided by it (tau)."""
    margin: float = Field(default=0.0, ge=0)
    """A negative stays only if the guide finds it farther than the positive by this much."""
    margin_of: Literal["absolute", "relative"] = "absolute"
    """Whether `margin` is in cosines or a share of the positive's."""
    own_kind: bool = True
    """Push anchors from anchors and positives from positives, too."""
    mini_batch: int | None = Field(default=None, ge=1)
    """Rows in memory at a time, so that a batch may be larger than memory; None takes all at once."""

    def build(self, model: Any, rows: Sequence[Triplet], *, batch_size: int) -> Any:
        """Return the library's module with the guide, which is not trained."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss, GISTEmbedLoss

        guide = SentenceTransformer(str(find_model(self.guide)), device=str(model.device)).requires_grad_(False)
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "margin": self.margin,
            "margin_strategy": self.margin_of,
        }
        given |= {"contrast_anchors": self.own_kind, "contrast_positives": self.own_kind}
        if self.mini_batch is None:
            return GISTEmbedLoss(model, guide, **given)
        return CachedGISTEmbedLoss(model, guide, mini_batch_size=self.mini_batch, **given)
