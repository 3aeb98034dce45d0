"""InfoNCE over pairs drawn against their propensity: positives that mean the same in other words, negatives the reverse.

Source: Miao et al. 2023, DebCSE (arXiv 2309.07396): simple rules show mostly positives that look like their anchor and
negatives that do not, so pairs are drawn with weights inverse to how likely such a pair is shown, by surface and semantic
similarity. With m the cosine by the model before training, and r the similarity of the letters (1 - normalised distance in
insertions and deletions):
    a row is drawn with weight  max(m, 0) / (floor + r)  of anchor and positive;
    a negative of an anchor with weight  (1 - m) / (floor + 1 - r)  of anchor and negative.
Differences: (1) only the paper's abstract could be read and no code of it was found: the weights are ours; (2) what is
drawn is a batch's rows (as many as it has, with replacement) and their negatives (without), not sentences of a corpus.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss

__all__ = ["Drawn", "InversePropensity"]

LEAST = 1e-6
"""Of a weight, so that there is always something to draw."""


class Drawn(NamedTuple):
    """What of a batch is learnt from."""

    times_B: Tensor
    """How often each row was drawn."""
    kept_BC: Tensor
    """Its positive and the negatives that were drawn for it."""


class InversePropensity(OwnLoss):
    """Learn most from the pairs that looks would get wrong."""

    negatives: int = Field(default=16, ge=1)
    """Negatives that are drawn for each anchor; as many as there are take all."""
    draw_rows: bool = True
    """Draw rows, too; false takes each once."""
    floor: float = Field(default=0.1, gt=0)
    """Added to a propensity: the smaller, the more a rare pair counts."""

    def copy_momentum(self) -> float | None:
        """Return 1: similarity is judged by the model as it was before training."""
        return 1.0

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the mean over the rows that were drawn."""
        target_B = torch.arange(len(batch.row_B), device=batch.row_B.device)
        pairs = self.draw(batch.slow.cosine_BC, _compare_letters(batch).to(target_B.device))
        logits_BC = (batch.now.cosine_BC / self.temperature).masked_fill(~pairs.kept_BC, -torch.inf)
        loss_B = cross_entropy(logits_BC, target_B, reduction="none")
        return Loss((pairs.times_B * loss_B).mean(), {"rows_drawn": (pairs.times_B > 0).float().mean()})

    def draw(self, means_BC: Tensor, looks_BC: Tensor) -> Drawn:
        """Draw negatives and rows by how alike anchors and candidates are in meaning and in letters."""
        size, count = means_BC.shape
        own_BC = torch.eye(size, count, dtype=torch.bool, device=means_BC.device)
        weight_BC = ((1 - means_BC) / (self.floor + 1 - looks_BC)).clamp_min(LEAST).masked_fill(own_BC, 0)
        kept_BC = own_BC.clone()
        if count > 1:  # on the processor: a checkpoint holds the state of its generator
            drawn_BK = torch.multinomial(weight_BC.cpu(), min(self.negatives, count - 1))
            kept_BC.scatter_(1, drawn_BK.to(means_BC.device), True)
        times_B = means_BC.new_ones(size)
        if self.draw_rows:
            weight_B = (means_BC.diagonal() / (self.floor + looks_BC.diagonal())).clamp_min(LEAST)
            drawn_B = torch.multinomial(weight_B.cpu(), size, replacement=True)
            times_B = torch.bincount(drawn_B, minlength=size).to(means_BC)
        return Drawn(times_B, kept_BC)


def _compare_letters(batch: Embedded) -> Tensor:
    """Return how alike every anchor and candidate are in their letters, (B, C), from 0 to 1."""
    from rapidfuzz import fuzz, process

    anchors = [row.anchor for row in batch.rows]
    candidates = [row.positive for row in batch.rows] + [row.negative for row in batch.rows if row.negative is not None]
    return torch.from_numpy(process.cdist(anchors, candidates, scorer=fuzz.ratio)).float() / 100
