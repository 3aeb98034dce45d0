"""Cross-entropy against targets that are no single text but a weight for every one, by how alike a trusted model finds them.

Source: Srinivasa et al. 2023, CWCL (arXiv 2309.14580): with U the trusted model and w_ij = <U(p_i), U(p_j)> / 2 + 1 / 2,
    -1/B sum_i  sum_j w_ij log softmax_j(cos(a_i, p_j) / tau) / sum_j w_ij,
and plain InfoNCE from the positives to the anchors. The trusted model is the one that training starts from.
Differences: (1) both sides are texts, and anchors and positives share the model that is trained; (2) rows' negatives are
targets by the same weight, but for a row's own one, whose weight is 0; (3) weights are raised to `sharpness`: two
unrelated texts of a good embedder have w = 1/2, and at 1, the paper's form, a batch of 32 has 15 times as much weight on
the others as on the positive.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss

__all__ = ["WeightedTargets", "weigh_targets"]


class WeightedTargets(OwnLoss):
    """Share the target out among texts that mean about the same."""

    sharpness: float = Field(default=8.0, gt=0)
    """Weights are raised to it; 1 is the paper's form, and the larger the nearer to InfoNCE."""

    def copy_momentum(self) -> float | None:
        """Return 1: the trusted model is the one before training."""
        return 1.0

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the mean of both directions, each over rows."""
        size = len(batch.row_B)
        trusted_CD = batch.slow.candidates_CD
        weight_BC = ((trusted_CD[:size] @ trusted_CD.T) / 2 + 0.5).clamp(0, 1) ** self.sharpness
        weight_BC[:, size:].fill_diagonal_(0)
        logits_BC = batch.now.cosine_BC / self.temperature
        back_BB = logits_BC[:, :size].T
        back = cross_entropy(back_BB, torch.arange(size, device=back_BB.device))
        others = 1 - (weight_BC.diagonal() / weight_BC.sum(1)).mean()
        return Loss((weigh_targets(logits_BC, weight_BC) + back) / 2, {"weight_of_others": others})


def weigh_targets(logits_BC: Tensor, weight_BC: Tensor) -> Tensor:
    """Return the mean cross-entropy of B rows against weights, whose sum in a row is made 1."""
    return cross_entropy(logits_BC, weight_BC / weight_BC.sum(1, keepdim=True))
