"""InfoNCE with the positives of earlier batches as further negatives, embedded by a slow copy of the model.

Source: He et al. 2020, MoCo (arXiv 1911.05722), section 3.2, in the form of Shi et al. 2023, CoCoSoDa (arXiv 2204.03293):
the batch's own texts stay candidates, and the queue's K join them. The copy's weights are slow <- m slow + (1 - m) quick
at every step. Reference code read: github.com/DeepSoftwareAnalytics/CoCoSoDa at 2f2bf8e.
Differences: (1) anchors alone pick, and texts are not masked; (2) the code's further factor of 20 on cosines that have
been divided by tau is left out; (3) the queue begins empty, not with random vectors; (4) an entry is no negative of a row
with the same anchor or the same positive: a queue longer than the data has a row's own positive in it; (5) keys have no
dropout.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss
from counterfoil.records import Triplet

__all__ = ["MomentumQueue"]


class MomentumQueue(OwnLoss):
    """Pick the positive out of the batch's texts and of those of many batches before."""

    queue: int = Field(default=1024, ge=0)
    """Positives that are kept (K); 0 is InfoNCE."""
    momentum: float = Field(default=0.999, ge=0, le=1)
    """Share of itself that the slow copy keeps in a step (m)."""

    def copy_momentum(self) -> float | None:
        """Return the momentum, where there is a queue to fill."""
        return self.momentum if self.queue else None

    def start(self, rows: Sequence[Triplet], *, width: int, batch_size: int) -> State:
        """Keep the queue, which rows its entries are of, and which rows share a text."""
        return {
            "queue": torch.zeros(self.queue, width),
            "queue_row": torch.full((self.queue,), -1),
            "next": torch.zeros((), dtype=torch.long),
            "anchor_of": _number([row.anchor for row in rows]),
            "positive_of": _number([row.positive for row in rows]),
        }

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the mean over anchors, and put the batch's positives into the queue."""
        row_B, size = batch.row_B, len(batch.row_B)
        taken_K = state["queue_row"]
        far_BK = batch.now.anchor_BD @ state["queue"].T.clone()  # the queue moves on before the gradient is taken
        same_BK = taken_K < 0
        for name in ("anchor_of", "positive_of"):
            same_BK = same_BK | (state[name][taken_K] == state[name][row_B][:, None])
        logits_BM = torch.cat([batch.now.cosine_BC, far_BK.masked_fill(same_BK, -torch.inf)], dim=1) / self.temperature
        value = cross_entropy(logits_BM, torch.arange(size, device=row_B.device))
        if self.queue:
            kept = min(size, self.queue)
            place_B = (state["next"] + torch.arange(kept, device=row_B.device)) % self.queue
            state["queue"][place_B] = batch.slow.candidates_CD[size - kept : size]
            taken_K[place_B] = row_B[size - kept :]
            state["next"] += kept
        return Loss(value, {"queue_used": (~same_BK).float().sum(1).mean()})


def _number(texts: Sequence[str]) -> Tensor:
    """Number texts so that equal ones have one number."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(text, len(seen)) for text in texts])
