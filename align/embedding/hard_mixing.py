"""InfoNCE with harder negatives, mixed out of the hardest ones of the batch and out of these and the anchor.

Source: Kalantidis et al. 2020, MoCHi (arXiv 2010.01028). Of an anchor's `hardest` nearest negatives n_1, n_2 ...
    mixed:        n = norm(a n_j + (1 - a) n_k),  a from U(0, 1)
    with_anchor:  n = norm(b q + (1 - b) n_j),  b from U(0, 0.5)
join the negatives; none of them passes a gradient on, so that only the anchor moves away.
Differences: (1) the negatives are the batch's, with gradients of their own, and no queue's; (2) `after` counts steps.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss
from counterfoil.records import Triplet

__all__ = ["HardMixing", "mix"]


class HardMixing(OwnLoss):
    """Pick the positive out of the batch's texts and of negatives between them."""

    hardest: int = Field(default=16, ge=2)
    """Nearest negatives of an anchor that are mixed (N)."""
    mixed: int = Field(default=16, ge=0)
    """Mixtures of two of them (s)."""
    with_anchor: int = Field(default=8, ge=0)
    """Mixtures of one of them and the anchor, in which the anchor has less than half (s')."""
    after: int = Field(default=0, ge=0)
    """Steps without mixtures: the hardest negatives of an untrained model say little."""

    def start(self, rows: Sequence[Triplet], *, width: int, batch_size: int) -> State:
        """Count steps."""
        return {"step": torch.zeros((), dtype=torch.long)}

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the mean over anchors."""
        anchor_BD, candidates_CD = batch.now
        cosine_BC = batch.now.cosine_BC
        size, count = cosine_BC.shape
        state["step"] += 1
        if count > 2 and int(state["step"]) > self.after and self.mixed + self.with_anchor:
            with torch.no_grad():
                own_BC = torch.eye(size, count, dtype=torch.bool, device=cosine_BC.device)
                ranked_BK = cosine_BC.masked_fill(own_BC, -torch.inf).topk(min(self.hardest, count - 1)).indices
                made_BMD = self._mix_all(anchor_BD, candidates_CD[ranked_BK])
            cosine_BC = torch.cat([cosine_BC, torch.einsum("bd,bmd->bm", anchor_BD, made_BMD)], dim=1)
        target_B = torch.arange(size, device=cosine_BC.device)
        return Loss(cross_entropy(cosine_BC / self.temperature, target_B), {})

    def _mix_all(self, anchor_BD: Tensor, hard_BKD: Tensor) -> Tensor:
        size, count = hard_BKD.shape[:2]
        row_B1 = torch.arange(size)[:, None]
        first_BM, second_BM = (torch.randint(count, (size, self.mixed)) for _ in range(2))
        share_BM = torch.rand(size, self.mixed)
        pairs_BMD = mix(hard_BKD[row_B1, first_BM], hard_BKD[row_B1, second_BM], share_BM.to(hard_BKD))
        chosen_BM = torch.randint(count, (size, self.with_anchor))
        less_BM = torch.rand(size, self.with_anchor) / 2
        near_BMD = mix(anchor_BD[:, None], hard_BKD[row_B1, chosen_BM], less_BM.to(hard_BKD))
        return torch.cat([pairs_BMD, near_BMD], dim=1)


def mix(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Mix vectors of length 1 to vectors of length 1; `share` is that of the first."""
    return normalize(share[..., None] * one + (1 - share[..., None]) * other, dim=-1)
