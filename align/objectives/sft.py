"""Supervised fine-tuning on answers alone.

Source: the cross-entropy of the answer's tokens after its prompt, as in TRL's SFTTrainer with `completion_only_loss`, which
trains it. Differences: none known.
"""

from typing import Any, ClassVar, Literal

from align.objective import TrlObjective, drop
from counterfoil.records import Answer, Dropped, Group

__all__ = ["Sft"]


class Sft(TrlObjective):
    """Raise the probability of answers."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]] = "sft"

    side: Literal["chosen", "rejected"] = "chosen"
    """Which answers of a group: all that have this role; where none has a role, the best (worst) by score, or, chosen, the
    one that stands alone."""

    def find_unfit(self, answer: Answer) -> str:
        """Leave out what is empty, and what a limit of tokens cut off: its end would be learnt as one."""
        unfit = super().find_unfit(answer) or ("cut off" if answer.is_cut else "")
        return unfit if answer.role in (self.side, "") else ""

    def select(self, group: Group) -> Group | Dropped:
        """Take the answers of the side."""
        found = [item for item in group.answers if item.role == self.side]
        if not any(item.role for item in group.answers):
            found = self._rank(group)
        if not found:
            return drop(group, f"no {self.side} answer")
        kept = [item for item in found if not self.find_unfit(item)]
        if not kept:
            return drop(group, "empty side" if self.find_unfit(found[0]) == "empty" else "cut off", self.side)
        return group.model_copy(update={"answers": tuple(kept)})

    def _rank(self, group: Group) -> list[Answer]:
        """Return the best (worst) of answers without roles, of those that are fit the best there is."""
        if len(group.answers) == 1 and self.side == "chosen":
            return [group.answers[0].model_copy(update={"role": "chosen"})]
        scored = sorted((item for item in group.answers if item.score is not None), key=lambda item: item.score or 0.0)
        if len(scored) < 2 or scored[0].score == scored[-1].score:
            return []
        ranked = scored[::-1] if self.side == "chosen" else scored
        fit = [item for item in ranked if not self.find_unfit(item) and item.score != ranked[-1].score]
        return [item.model_copy(update={"role": self.side}) for item in (fit or ranked)[:1]]

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        return {"completion_only_loss": True}
