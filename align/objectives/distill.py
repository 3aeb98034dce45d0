"""Quality-guided contrastive rationale distillation.

Source: Wang et al. 2024 (arXiv 2405.13014), on top of distilling step by step (Hsieh et al. 2023, arXiv 2305.02301): a
student learns a question's label, and of several rationales the one that it can say best, while it unlearns bad rationales
as long as it still likes them. With CE the mean negative log-likelihood a token, r+ and r- good and bad rationales, w their
weights,

    label_weight CE(label) + contrast_weight ( w+ min_{r+} CE(r+) + beta w- max(0, delta - CE(r-)) )

where w+ is the quality of the rationale taken and w- one minus that of the negative one.
Differences: (1) the authors' code is not public and accounts of the paper differ on which negative is taken: `negative`
chooses, the one that the student likes least of those (the min-max form) by default; (2) quality comes with the record (a
score between 0 and 1 by any scorer) in place of a discriminator trained beside the student.
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from align.objective import Batch, Loss, LossObjective, drop
from counterfoil.records import Answer, Dropped, Group

__all__ = ["Distill"]


class Distill(LossObjective):
    """Learn labels and good rationales, unlearn bad ones that are still likely."""

    needs_reference: ClassVar[bool] = False
    takes_fresh: ClassVar[bool] = True

    label_weight: float = Field(default=0.5, ge=0)
    """Weight of the label (the paper's a1); 0 where a rationale ends in its answer anyway."""
    contrast_weight: float = Field(default=0.5, ge=0)
    """Weight of the rationales (a2); 0 learns labels alone."""
    beta: float = Field(default=0.2, ge=0)
    """Weight of negative rationales against positive ones; 0 learns the positive ones alone."""
    delta_nats: float = Field(default=3.0, gt=0)
    """A negative rationale counts while its cross-entropy is below this, in nats a token."""
    negative: Literal["max", "min"] = "max"
    """Of several negatives take the one with the largest or with the smallest cross-entropy."""

    @model_validator(mode="after")
    def check_weights(self) -> Self:
        """Refuse a loss of nothing."""
        if not self.label_weight + self.contrast_weight:
            raise ValueError("label_weight and contrast_weight are both 0: nothing would be learnt")
        if self.fresh is not None and self.fresh.role != "rejected":
            raise ValueError("fresh answers are negatives here, beside the data's own: fresh.role has to be rejected")
        return self

    def find_unfit(self, answer: Answer) -> str:
        """Leave out what is empty, and what has no weight."""
        return super().find_unfit(answer) or ("" if self._weights[answer.role] else "no weight")

    @property
    def _weights(self) -> dict[str, float]:
        return {"": self.label_weight, "chosen": self.contrast_weight, "rejected": self.contrast_weight * self.beta}

    def select(self, group: Group) -> Group | Dropped:
        """Take what has a weight: rationales by role, and as the label an answer without one. A score is in 0..1 or none."""
        kept = tuple(item for item in group.answers if not self.find_unfit(item))
        if not any(item.role == ("chosen" if self.contrast_weight else "") for item in kept):
            return drop(group, "no positive rationale" if self.contrast_weight else "no label")
        wild = [item.score for item in kept if item.score is not None and not 0 <= item.score <= 1]
        if wild:
            return drop(group, "a quality outside of 0..1", str(wild[0]))
        return group.model_copy(update={"answers": kept})

    def loss(self, batch: Batch) -> Loss:
        """Return the mean over groups."""
        cost_N = -batch.log_probs_NT.sum(1) / batch.mask_NT.sum(1).clamp_min(1)
        answers = [item for group in batch.groups for item in group.answers]
        roles = [item.role for item in answers]
        quality = [
            (float(role != "rejected") if item.score is None else item.score)
            for item, role in zip(answers, roles, strict=True)
        ]
        labels: list[Tensor] = []
        good: list[Tensor] = []
        bad: list[Tensor] = []
        for at in range(len(batch.groups)):
            own = [row for row, group in enumerate(batch.group_N.tolist()) if group == at]
            sides = {side: [row for row in own if roles[row] == side] for side in ("chosen", "rejected", "")}
            labels += [cost_N[sides[""]].mean()] if sides[""] else []
            if sides["chosen"]:
                best = min(sides["chosen"], key=lambda row: float(cost_N[row].detach()))
                good.append(quality[best] * cost_N[best])
            if sides["rejected"]:
                pick = max if self.negative == "max" else min
                worst = pick(sides["rejected"], key=lambda row: float(cost_N[row].detach()))
                bad.append((1 - quality[worst]) * torch.relu(self.delta_nats - cost_N[worst]))
        nothing = cost_N.sum() * 0
        label, positive, negative = (
            torch.stack(part).sum() / len(batch.groups) if part else nothing for part in (labels, good, bad)
        )
        value = self.label_weight * label + self.contrast_weight * (positive + self.beta * negative)
        return Loss(value, {"label": label.detach(), "positive": positive.detach(), "negative": negative.detach()})
