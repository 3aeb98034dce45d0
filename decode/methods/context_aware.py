"""Context-aware decoding: what the context makes likelier, for answers that follow it against what the model believes.

Source: Shi et al. 2023 (arXiv 2305.14739), equation 3: softmax[(1 + a) z(y | context, question) - a z(y | question)].
Differences: an optional plausibility mask (`threshold`), as in contrastive decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from decode.method import LogitsMethod, expose

if TYPE_CHECKING:
    from torch import Tensor

    from decode.streams import Streams

__all__ = ["ContextAware", "context_aware"]


class ContextAware(LogitsMethod):
    """The prompt with its context against the prompt without."""

    needs: ClassVar[frozenset[str]] = frozenset({"two_prompts"})
    takes: ClassVar[frozenset[str]] = frozenset({"negative_input_ids", "negative_attention_mask"})

    strength: float = Field(default=0.5, ge=0, le=100)
    """The paper's alpha; 0 leaves the prompt with its context alone."""
    threshold: float = Field(default=0.0, ge=0, le=1)
    """Tokens below this share of the largest probability are ruled out; 0 rules none out."""

    def find_fault(self, *, temperature: float, n: int, has_negative: bool) -> str | None:
        """Say why a request cannot be answered: without the second prompt there is nothing to contrast with."""
        if not has_negative:
            return "context_aware needs the prompt without its context, as the negative prompt"
        return super().find_fault(temperature=temperature, n=n, has_negative=has_negative)

    def open_streams(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, **given: Any) -> Streams:
        """Read both prompts."""
        from decode.streams import Rows

        return Rows.pair(model, input_ids, attention_mask, given, where="context_aware")

    def combine(self, logits: Sequence[Tensor], allowed: Tensor | None = None) -> Tensor:
        """Contrast with against without."""
        from decode.contrast import contrast

        return contrast(logits[0], logits[1], strength=self.strength, threshold=self.threshold, allowed=allowed)


context_aware = expose(ContextAware)
