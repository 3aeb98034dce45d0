"""Decoupled contrastive decoding: an adapter trained on good answers against one trained on bad ones, on one base model.

Source: Chen et al. 2025 (arXiv 2504.08809): logits (1 + a) z+ - a z-, the mask of contrastive decoding on z+.
Differences: (1) text models with LoRA adapters, where the paper trains the projection from images; (2) a third mode,
`anchored`: z + a (z+ - z-), the form of Liu et al. 2021 (DExperts, arXiv 2105.03023), equation 2; (3) the base's weights are
read once for all streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import AdapterName
from decode.method import LogitsMethod, expose

if TYPE_CHECKING:
    from torch import Tensor

    from decode.streams import Streams

__all__ = ["Decoupled", "decoupled"]


class Decoupled(LogitsMethod):
    """Positive against negative adapter."""

    needs: ClassVar[frozenset[str]] = frozenset({"two_adapters"})

    positive: AdapterName = "positive"
    """The adapter of good answers: its name in the PEFT model, for an engine its folder. Not used by `neg_only`."""
    negative: AdapterName = "negative"
    """The adapter of bad answers."""
    mode: Literal["pos_neg", "neg_only", "anchored"] = "pos_neg"
    """`neg_only` takes the bare model for the positive side; `anchored` adds the difference to the bare model."""
    strength: float = Field(default=0.5, ge=0, le=100)
    """The paper's alpha; 0 leaves the positive side (for `anchored`, the bare model) alone."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """Tokens below this share of the positive side's (for `anchored`, the bare model's) largest probability are ruled out."""

    @property
    def adapters(self) -> dict[str, str]:
        """Those that the mode uses."""
        both = {"positive": self.positive, "negative": self.negative}
        return {"negative": self.negative} if self.mode == "neg_only" else both

    @property
    def stream_adapters(self) -> list[str | None]:
        """The adapter of each stream, as `combine` takes them; None is the bare model."""
        return {
            "pos_neg": [self.positive, self.negative],
            "neg_only": [None, self.negative],
            "anchored": [None, self.positive, self.negative],
        }[self.mode]

    def open_streams(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, **given: Any) -> Streams:
        """Read the prompt with each adapter."""
        from decode.adapters import list_adapters
        from decode.streams import Adapters

        names = self.stream_adapters
        known = list_adapters(model)
        for name in names:
            if name is not None and name not in known:
                raise InputError(
                    "decoupled: adapter", given=repr(name), allowed=", ".join(known) or "a model with adapters",
                    do="Load it into the PEFT model under this name.",
                )  # fmt: skip
        return Adapters(model, names, input_ids, attention_mask)

    def combine(self, logits: Sequence[Tensor], allowed: Tensor | None = None) -> Tensor:
        """Contrast the streams."""
        from decode.contrast import contrast, rule_out

        if self.mode != "anchored":
            return contrast(logits[0], logits[1], strength=self.strength, threshold=self.threshold, allowed=allowed)
        base, positive, negative = (item.float() for item in logits)
        combined = base + self.strength * (positive - negative)
        return rule_out(combined, base, self.threshold, allowed)


decoupled = expose(Decoupled)
