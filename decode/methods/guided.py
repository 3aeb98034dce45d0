"""Classifier-free guidance: away from a negative prompt.

Source: Sanchez et al. 2023 (arXiv 2306.17806), equation 7:
    log p(y | negative) + scale (log p(y | prompt) - log p(y | negative)).
Differences: (1) on logits, which differ from log-probabilities by a constant a row; the softmax is the same; (2) an
optional plausibility mask (`threshold`), as in contrastive decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from decode.method import LogitsMethod, expose

if TYPE_CHECKING:
    from torch import Tensor

    from decode.streams import Streams

__all__ = ["Guided", "guided"]


class Guided(LogitsMethod):
    """The prompt against a negative prompt, or against the prompt's last token alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"two_prompts"})
    takes: ClassVar[frozenset[str]] = frozenset({"negative_input_ids", "negative_attention_mask"})

    scale: float = Field(default=1.5, ge=0, le=100)
    """1 is the prompt alone, 0 the negative prompt alone."""
    threshold: float = Field(default=0.0, ge=0, le=1)
    """Tokens below this share of the largest probability under the prompt are ruled out; 0 rules none out."""

    def open_streams(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, **given: Any) -> Streams:
        """Read both prompts; without a negative one the unconditional row begins at the prompt's last token."""
        from decode.streams import Rows

        if given.get("negative_input_ids") is None:
            given = {"negative_input_ids": input_ids[:, -1:]}
        return Rows.pair(model, input_ids, attention_mask, given, where="guided")

    def combine(self, logits: Sequence[Tensor], allowed: Tensor | None = None) -> Tensor:
        """Guide away from the negative row."""
        from decode.contrast import contrast

        return contrast(logits[0], logits[1], strength=self.scale - 1, threshold=self.threshold, allowed=allowed)


guided = expose(Guided)
