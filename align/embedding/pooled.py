"""InfoNCE with a positive that is pooled out of an anchor's neighbours, each weighed by how near it is.

Source: Cui et al. 2025 (SRA-CL, arXiv 2503.04162), with the authors' code: h+_i = sum_v p_iv h_v over the neighbours v of i,
and for the 2 B vectors h_1, h+_1, ..., h_B, h+_B, in both directions,
    -log exp(h_i . h+_i / tau) / sum_j exp(h_i . z_j / tau), over all z_j but h_i itself.
Differences: (1) texts, and the encoder is the one that is trained; (2) the weights p_iv come with the row (synthesis takes
them from descriptions), where the paper learns them, with dropout; (3) vectors have length 1 and tau is below 1, where the
paper takes dot products and tau = 1; (4) rows' own negatives, whose verified answer is another, are among the z of every
anchor.
"""

import torch
from torch.nn.functional import cross_entropy

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss

__all__ = ["Pooled"]


class Pooled(OwnLoss):
    """Pull an anchor to the weighted mean of its positives, and back; away from all else in the batch."""

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the mean over both directions and rows."""
        anchor_BD, size = batch.now.anchor_BD, len(batch.row_B)
        positive_BD = batch.now.candidates_CD[:size]
        target_B = torch.arange(size, device=anchor_BD.device)
        itself_BB = torch.eye(size, dtype=torch.bool, device=anchor_BD.device)

        def pick(own_BD: torch.Tensor, others_BC: torch.Tensor) -> torch.Tensor:
            alike_BB = (own_BD @ own_BD.T).masked_fill(itself_BB, -torch.inf)
            return cross_entropy(torch.cat([others_BC, alike_BB], 1) / self.temperature, target_B)

        forth, back = pick(anchor_BD, batch.now.cosine_BC), pick(positive_BD, positive_BD @ anchor_BD.T)
        return Loss((forth + back) / 2, {})
