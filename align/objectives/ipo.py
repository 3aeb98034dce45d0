"""Identity preference optimisation.

Source: Azar et al. 2023 (arXiv 2310.12036), equation 17: (D - 1 / (2 tau))^2 with D the difference of the two log-ratios. The
loss is TRL's own (`loss_type` ipo). Differences: (1) TRL divides each log-ratio by its answer's tokens, as the paper's
authors confirmed to it; `copg` with `preferences` is the form with sums.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from align.objective import TrlObjective, select_pair, split_pairs
from counterfoil.records import Dropped, Group

__all__ = ["Ipo"]


class Ipo(TrlObjective):
    """Move the difference of the two log-ratios, a token, to 1 / (2 beta)."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]] = "dpo"
    needs_reference: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)
    """The paper's tau: the target is 1 / (2 beta) nats a token."""

    def split(self, group: Group) -> list[Group]:
        """Take each chosen answer with each rejected one."""
        return split_pairs(group)

    def select(self, group: Group) -> Group | Dropped:
        """Take a chosen and a rejected answer."""
        return select_pair(group)

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        return {"loss_type": ["ipo"], "beta": self.beta}
