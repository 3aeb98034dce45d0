"""The other losses on pairs that TRL's DPOTrainer has.

Source: TRL's paper index; each is TRL's own (`loss_type`), not written again here: hinge (SLiC, Zhao et al. 2023, arXiv
2305.10425), exo_pair (Ji et al. 2024, 2402.00856), nca_pair (Chen et al. 2024, 2402.05369), robust (Chowdhury et al. 2024,
2403.00409), bco_pair (Jung et al. 2024, 2404.04656), sppo_hard (Wu et al. 2024, 2405.00675), aot and aot_unpaired (Melnyk et
al. 2024, 2406.05882), apo_zero and apo_down (D'Oosterlinck et al. 2024, 2408.06266), discopop (Lu et al. 2024, 2406.08414).
Differences: (1) TRL's bco_pair leaves out the shift of the rewards that its paper has.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.objective import TrlObjective, select_pair, split_pairs
from counterfoil.records import Dropped, Group

__all__ = ["Pairwise"]


class Pairwise(TrlObjective):
    """Set a chosen answer against a rejected one."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]] = "dpo"
    needs_reference: ClassVar[bool] = True

    loss_type: Literal[
        "hinge", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
        "apo_down", "discopop",
    ]  # fmt: skip
    """TRL's name of the loss."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round, in the losses that know it: exo_pair, robust, aot, aot_unpaired."""

    @model_validator(mode="after")
    def check_smoothing(self) -> Self:
        """Refuse what TRL would refuse after loading the model, or ignore."""
        knowing = ("exo_pair", "robust", "aot", "aot_unpaired")
        if self.label_smoothing and self.loss_type not in knowing:
            raise ValueError(f"label_smoothing is known to {', '.join(knowing)} only")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("exo_pair needs a label_smoothing above 0 (its paper takes 1.0e-3)")
        return self

    def split(self, group: Group) -> list[Group]:
        """Take each chosen answer with each rejected one."""
        return split_pairs(group)

    def select(self, group: Group) -> Group | Dropped:
        """Take a chosen and a rejected answer."""
        return select_pair(group)

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        return {"loss_type": [self.loss_type], "beta": self.beta, "label_smoothing": self.label_smoothing}
