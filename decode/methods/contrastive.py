"""Contrastive decoding: what an expert finds likely and an amateur does not, among what the expert finds plausible.

Source: two published forms. `logits`: (1 + a) z_expert - a z_amateur, O'Brien and Lewis 2023 (arXiv 2309.09117), section 2.
`log_ratio`: log p_expert - w log p_amateur, Li et al. 2022 (arXiv 2210.15097), equations 1 to 3. Both keep the tokens whose
expert probability is at least `threshold` times the largest.
Differences: (1) Li et al. search with beams, here it is greedy or sampled; (2) the vocabularies may differ in padding rows
alone, which are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import ModelName
from decode.method import LogitsMethod, expose

if TYPE_CHECKING:
    from torch import Tensor

    from decode.streams import Streams

__all__ = ["Contrastive", "contrastive"]


MOST_PADDING = 1024
"""Rows that models of one tokenizer add to their vocabularies, at most (Qwen2.5 has 152,064 beside 151,936)."""


class Contrastive(LogitsMethod):
    """Expert against amateur; they share a tokenizer."""

    needs: ClassVar[frozenset[str]] = frozenset({"two_models"})
    takes: ClassVar[frozenset[str]] = frozenset({"amateur"})

    amateur: ModelName = ""
    """The weaker model: a name, a folder, a GGUF file or a hub id (from Python, `amateur` is the loaded model)."""
    form: Literal["logits", "log_ratio"] = "logits"
    """Which of the two forms."""
    strength: float | None = Field(default=None, ge=0, le=100)
    """a of `logits` (None is 0.5), w of `log_ratio` (None is 1); 0 leaves the expert alone."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """Tokens below this share of the largest expert probability are ruled out."""
    amateur_temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Flattens (above 1) or sharpens the amateur; Li et al. take 0.5 for GPT-2."""

    @property
    def second_model(self) -> str:
        """The amateur."""
        return self.amateur

    def find_fault(self, *, temperature: float, n: int, has_negative: bool) -> str | None:
        """Say why a request cannot be answered: without an amateur there is nothing to contrast with."""
        if not self.amateur:
            return "contrastive needs an amateur (method.amateur=MODEL)"
        return super().find_fault(temperature=temperature, n=n, has_negative=has_negative)

    def open_streams(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, **given: Any) -> Streams:
        """Read the prompt with both models."""
        from decode.streams import Single, Together

        amateur = given.get("amateur")
        if amateur is None:
            raise InputError("contrastive: amateur", given="none", allowed="a loaded model", do="Pass amateur=MODEL.")
        sizes = [each.config.get_text_config().vocab_size for each in (model, amateur)]
        if abs(sizes[0] - sizes[1]) > MOST_PADDING:
            raise InputError(
                "contrastive: amateur", given=f"a vocabulary of {sizes[1]} beside {sizes[0]}",
                allowed=f"the same tokenizer, so that sizes differ by {MOST_PADDING} padding rows at most",
                do="Take a model of the same family.",
            )  # fmt: skip
        return Together([Single(model, input_ids, attention_mask), Single(amateur, input_ids, attention_mask)])

    def combine(self, logits: Sequence[Tensor], allowed: Tensor | None = None) -> Tensor:
        """Contrast the expert's row with the amateur's."""
        from decode.contrast import contrast, log_ratio

        size = min(item.shape[-1] for item in logits)
        expert, amateur = (item[..., :size].float() for item in logits)
        allowed = None if allowed is None else allowed[..., :size]
        amateur = amateur / self.amateur_temperature
        if self.form == "log_ratio":
            weight = 1.0 if self.strength is None else self.strength
            return log_ratio(expert, amateur, weight=weight, threshold=self.threshold, allowed=allowed)
        strength = 0.5 if self.strength is None else self.strength
        return contrast(expert, amateur, strength=strength, threshold=self.threshold, allowed=allowed)


contrastive = expose(Contrastive)
