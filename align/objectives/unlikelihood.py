"""Unlearning of marked faults: answers without faults are learnt, the marked pieces of the others are unlearnt.

Source: Huang et al. 2025 (arXiv 2510.09915), who compare three ways on spans of summaries that an annotator marked as
unfaithful; unlikelihood itself is Welleck et al. 2019 (arXiv 1908.04319), equation 2. With F the tokens of clean answers
and U those of a span:

    unlikelihood   mean_F [-log p] + epsilon mean_U [-log(1 - p)]
    ascent         mean_F [-log p] + epsilon mean_U [log p]

What is not marked in an answer with faults carries no loss. The third way, a task vector taken away from the weights, is an
adapter trained on the spans (`only_spans`) and taken away by `align combine`.
Differences: (1) means are taken group by group, over the group's clean answers and over its spans, and then over groups: a
long answer or span does not weigh more than a short one, and a group weighs the same in every batch; (2) ascent, which has
no end, stops at tokens whose probability is below `floor` (the paper is silent); (3) a token that a span touches is marked
whole; (4) where log(1 - p) is lost to rounding, above p = 1 - 1e-6, it goes on in a line.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from align.objective import Batch, Loss, LossObjective, drop
from counterfoil.records import Answer, Dropped, Group

__all__ = ["Unlikelihood"]

ALMOST_ONE = 1 - 1e-6  # above it, log(1 - p) in float32 is noise


class Unlikelihood(LossObjective):
    """Learn clean answers, unlearn marked pieces."""

    needs_reference: ClassVar[bool] = False

    way: Literal["unlikelihood", "ascent", "only_spans"] = "unlikelihood"
    """How pieces are unlearnt; `only_spans` learns them instead, and nothing else, for an adapter that is then negated."""
    epsilon: float = Field(default=1.0, gt=0)
    """Weight of the marked pieces against the clean answers (the paper's epsilon)."""
    floor: float = Field(default=0.01, gt=0, lt=1)
    """Ascent leaves a token alone once its probability is below this."""

    def find_unfit(self, answer: Answer) -> str:
        """Leave out what is empty, and a rejected answer without a span, which does not say where its fault is."""
        spanless = not answer.spans and (answer.role == "rejected" or self.way == "only_spans")
        return super().find_unfit(answer) or ("no span" if spanless else "")

    def select(self, group: Group) -> Group | Dropped:
        """Take clean answers and answers with spans."""
        kept = [item for item in group.answers if not self.find_unfit(item)]
        bad = [span for item in kept for span in item.spans if not 0 <= span.start < span.stop <= len(item.text)]
        if bad:
            return drop(group, "a span outside of its answer", f"{bad[0].start} to {bad[0].stop}")
        return group.model_copy(update={"answers": tuple(kept)}) if kept else drop(group, "no clean answer and no span")

    def loss(self, batch: Batch) -> Loss:
        """Return the mean over groups of what clean answers cost plus epsilon times what spans cost."""
        log_probs_NT, mask_NT = batch.log_probs_NT, batch.mask_NT
        clean_N = ~torch.tensor(
            [bool(item.spans) for group in batch.groups for item in group.answers], device=mask_NT.device
        )
        nll_N = -log_probs_NT.sum(1) / mask_NT.sum(1).clamp_min(1)
        if self.way == "unlikelihood":
            probs_NT = log_probs_NT.exp()
            near_NT = torch.log1p(-probs_NT.clamp_max(ALMOST_ONE)) - (probs_NT - ALMOST_ONE).clamp_min(0) / (
                1 - ALMOST_ONE
            )
            cost_NT = -near_NT
        elif self.way == "ascent":
            cost_NT = torch.where(log_probs_NT.exp() > self.floor, log_probs_NT, log_probs_NT.detach())
        else:
            cost_NT = -log_probs_NT
        zero = log_probs_NT.sum() * 0
        learnt_G, spans_G = ([zero for _ in batch.groups] for _ in range(2))
        for at in range(len(batch.groups)):
            rows_N = batch.group_N == at
            if bool((rows_N & clean_N).any()):
                learnt_G[at] = nll_N[rows_N & clean_N].mean()
            pieces = [
                cost_T[number_T == number].mean()
                for cost_T, number_T in zip(cost_NT[rows_N], batch.labelled_NT[rows_N], strict=True)
                for number in number_T.unique().tolist()
                if number
            ]
            spans_G[at] = torch.stack(pieces).mean() if pieces else zero
        learnt, spans = torch.stack(learnt_G).mean(), torch.stack(spans_G).mean()
        value = self.epsilon * spans if self.way == "only_spans" else learnt + self.epsilon * spans
        marked_NT = batch.labelled_NT > 0
        shown = (log_probs_NT.detach().exp() * marked_NT).sum() / marked_NT.sum()
        return Loss(value, {"nll_clean": (nll_N * clean_N).detach().sum() / clean_N.sum(), "prob_in_spans": shown})
