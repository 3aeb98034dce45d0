"""A reward model.

Source: the Bradley-Terry model of preferences, -log sigmoid(r(chosen) - r(rejected)) (Ouyang et al. 2022, arXiv 2203.02155,
equation 1), trained by TRL's RewardTrainer: a sequence classifier with one output on the last token.
`eval.scorers.reward_model` scores with it. Differences: none known.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from align.objective import TrlObjective, drop, select_pair, split_pairs
from counterfoil.records import Dropped, Group

__all__ = ["Reward"]


class Reward(TrlObjective):
    """Give the chosen answer a higher reward than the rejected one."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]] = "reward"

    center: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's rewards, which keeps their mean at 0 (Eisenstein et al. 2023, arXiv
    2312.09244)."""

    def split(self, group: Group) -> list[Group]:
        """Take each chosen answer with each rejected one."""
        return split_pairs(group)

    def select(self, group: Group) -> Group | Dropped:
        """Take a chosen and a rejected answer of a chat, as which a text is scored afterwards."""
        if isinstance(group.prompt, str):
            return drop(group, "a text, where rewards are of chats")
        return select_pair(group)

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        return {"center_rewards_coefficient": self.center or None}
