"""Direct preference optimisation.

Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7:
    -log sigmoid(beta [log pi(y+|x)/ref(y+|x) - log pi(y-|x)/ref(y-|x)]), log-probabilities summed over tokens.
The loss itself is TRL's (`DPOTrainer`, loss types `sigmoid` and `sigmoid_norm`), not written again here.
Differences, both optional and off: (1) the length normalisation of Lambert et al. 2024 (Tulu 3, arXiv 2411.15124): each
log-ratio is divided by its answer's tokens, so that a shorter chosen answer does not teach shortness; (2) a term
`sft_weight` x the chosen answer's token-mean negative log-likelihood (the NLL term of Pang et al. 2024, arXiv 2404.19733,
equation 1), which keeps the chosen answers' probability from falling.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.objective import TrlObjective, select_pair, split_pairs
from counterfoil.records import Dropped, Group

__all__ = ["Dpo"]


class Dpo(TrlObjective):
    """Raise the chosen answer against the rejected one, held to the reference by beta."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]] = "dpo"
    needs_reference: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference (the paper's beta)."""
    length_normalised: bool = False
    """Use log-ratios a token instead of an answer; beta is then larger by about an answer's length (Tulu 3 took 5)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood; 0 is plain DPO."""

    @model_validator(mode="after")
    def check_smoothing(self) -> Self:
        """Refuse what TRL's length-normalised loss would ignore."""
        if self.length_normalised and self.label_smoothing:
            raise ValueError("label_smoothing is not defined together with length_normalised")
        return self

    def split(self, group: Group) -> list[Group]:
        """Take each chosen answer with each rejected one."""
        return split_pairs(group)

    def select(self, group: Group) -> Group | Dropped:
        """Take a chosen and a rejected answer."""
        return select_pair(group)

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        kinds = ["sigmoid_norm" if self.length_normalised else "sigmoid", *(["sft"] if self.sft_weight else [])]
        weights = [1.0, self.sft_weight] if self.sft_weight else None
        return {
            "beta": self.beta, "label_smoothing": self.label_smoothing, "loss_type": kinds, "loss_weights": weights,
        }  # fmt: skip
