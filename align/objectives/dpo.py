"""Direct preference optimisation.

Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7:
    -log sigmoid(beta [log pi(y+|x)/ref(y+|x) - log pi(y-|x)/ref(y-|x)]), log-probabilities summed over tokens.
The loss itself is TRL's (`DPOTrainer`, loss type `sigmoid`), not written again here.
Differences: an optional term `sft_weight` x the chosen answer's token-mean negative log-likelihood (the NLL term of Pang
et al. 2024, arXiv 2404.19733, equation 1), which keeps the chosen answers' probability from falling.
"""

from typing import Any, ClassVar

from pydantic import Field

from align.objective import Objective

__all__ = ["Dpo"]


class Dpo(Objective):
    """Raise the chosen answer against the rejected one, held to the reference by beta."""

    needs_reference: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference (the paper's beta)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood; 0 is plain DPO."""

    def trainer_settings(self) -> dict[str, Any]:
        """Return TRL's settings."""
        kinds = ["sigmoid", "sft"] if self.sft_weight else ["sigmoid"]
        weights = [1.0, self.sft_weight] if self.sft_weight else None
        return {
            "beta": self.beta, "label_smoothing": self.label_smoothing, "loss_type": kinds, "loss_weights": weights,
        }  # fmt: skip
