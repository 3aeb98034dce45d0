"""Supervised fine-tuning on answers alone.

Source: the cross-entropy of the answer's tokens after its prompt, as in TRL's SFTTrainer with `completion_only_loss`, which
trains it. Differences: none known.
"""

from typing import Any, ClassVar, Literal

from align.objective import TrlObjective, drop
from counterfoil.records import Dropped, Group

__all__ = ["Sft"]


class Sft(TrlObjective):
    """Raise the probability of answers."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]] = "sft"

    side: Literal["chosen", "rejected"] = "chosen"
    """Which answers of a group: all that have this role, or the best (worst) by score, or an answer that stands alone."""

    def select(self, group: Group) -> Group | Dropped:
        """Take one answer."""
        found = [item for item in group.answers if item.role == self.side]
        scored = sorted((item for item in group.answers if item.score is not None), key=lambda item: item.score or 0.0)
        if not found and len(scored) > 1 and scored[0].score != scored[-1].score:
            best = scored[-1] if self.side == "chosen" else scored[0]
            found = [best.model_copy(update={"role": self.side})]
        if not found:
            return drop(group, f"no {self.side} answer")
        whole = [item for item in found if not item.is_cut]
        kept = [item for item in whole if item.text.strip()]
        if not kept:
            return drop(group, "empty side" if whole else "cut off", self.side)
        return group.model_copy(update={"answers": tuple(kept)})

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        return {"completion_only_loss": True}
