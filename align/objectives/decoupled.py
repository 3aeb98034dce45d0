"""A positive and a negative adapter, for decoupled contrastive decoding.

Source: Chen et al. 2025 (arXiv 2504.08809): two fits by cross-entropy that know nothing of each other, one on chosen and
one on rejected answers, paired or not; `decode.methods.decoupled` sets them against each other at inference time.
Differences: (1) for text: the paper trains a vision-language model's projection, here each fit is a LoRA adapter of the same
shape, from the same start, with the same settings; each goes over its own answers, and takes as many steps as these are, or
as max_steps says.
"""

from align.objective import Objective, drop
from align.objectives.sft import Sft
from counterfoil.records import Answer, Dropped, Group

__all__ = ["Decoupled"]


class Decoupled(Objective):
    """Fit one adapter to chosen answers and another to rejected ones."""

    def parts(self) -> dict[str, Objective]:
        """Return the two trainings."""
        return {"positive": Sft(side="chosen"), "negative": Sft(side="rejected")}

    def find_unfit(self, answer: Answer) -> str:
        """Leave out what neither of the two learns."""
        return next((why for part in self.parts().values() if (why := part.find_unfit(answer))), "")

    def select(self, group: Group) -> Group | Dropped:
        """Take a group that one of the two learns from."""
        texts = {
            role: {item.text.strip() for item in group.answers if item.role == role} for role in ("chosen", "rejected")
        }
        if texts["chosen"] & texts["rejected"]:
            return drop(group, "chosen equals rejected")
        found = [part.select(group) for part in self.parts().values()]
        return (
            drop(group, "neither a chosen nor a rejected answer")
            if all(isinstance(x, Dropped) for x in found)
            else group
        )
