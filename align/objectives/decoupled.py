"""A positive and a negative adapter, for decoupled contrastive decoding.

Source: Chen et al. 2025 (arXiv 2504.08809): two fits by cross-entropy that know nothing of each other, one on chosen and
one on rejected answers, paired or not; `decode.methods.decoupled` sets them against each other at inference time.
Differences: (1) for text: the paper trains a vision-language model's projection, here each fit is a LoRA adapter of the same
shape, from the same start, in the same order with the same settings, so that they differ by their data alone.
"""

from align.objective import Objective, drop
from align.objectives.sft import Sft
from counterfoil.records import Dropped, Group

__all__ = ["Decoupled"]


class Decoupled(Objective):
    """Fit one adapter to chosen answers and another to rejected ones."""

    def parts(self) -> dict[str, Objective]:
        """Return the two trainings."""
        return {"positive": Sft(side="chosen"), "negative": Sft(side="rejected")}

    def select(self, group: Group) -> Group | Dropped:
        """Take a group that one of the two learns from."""
        found = [part.select(group) for part in self.parts().values()]
        return (
            drop(group, "neither a chosen nor a rejected answer")
            if all(isinstance(x, Dropped) for x in found)
            else group
        )
