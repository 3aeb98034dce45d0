"""InfoNCE between whitened vectors, whose coordinates are shuffled into groups anew for every view.

Source: Zhuo et al. 2023, WhitenedCSE (ACL 2023); reference code read: github.com/SupstarZh/WhitenedCSE at 957605e. A
random order of the D coordinates is cut into groups of `group_width`; each group is whitened over the batch, the order is
undone:
    z = (x - mean) C^(-1/2), C the group's covariance;  L = mean over views v of InfoNCE(z_anchor, z_candidates by order v).
Whitening is of training alone: what is embedded afterwards is not whitened.
Differences: (1) views are orders of the same positives, and not other draws of dropout; (2) their losses are averaged, not
added; (3) what is whitened is the model's vector of length 1, and no layer with tanh follows; (4) a share of its mean
variance is added to a group's diagonal, so that a batch smaller than a group can be whitened; (5) the derivative of
C^(-1/2) is the closed one (Daleckii and Krein), which stays finite where two eigenvalues meet.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss
from counterfoil.errors import ConfigError
from counterfoil.records import Triplet

__all__ = ["Whitened", "whiten"]


class Whitened(OwnLoss):
    """Pick the positive by what is left when the batch's common directions are taken out."""

    group_width: int = Field(default=6, ge=1)
    """Coordinates that are whitened together; they must divide the model's width and be fewer than the batch's rows."""
    views: int = Field(default=2, ge=1)
    """Orders of the coordinates that the candidates are whitened in."""
    shrinkage: float = Field(default=1e-3, gt=0)
    """Share of a group's mean variance that is added to its diagonal."""

    def start(self, rows: Sequence[Triplet], *, width: int, batch_size: int) -> State:
        """Keep nothing; refuse a width that does not fit."""
        if width % self.group_width or self.group_width >= batch_size:
            allowed = f"a divisor of {width} (the model's width) below {batch_size} (batch_size)"
            raise ConfigError(
                "loss.group_width", given=str(self.group_width), allowed=allowed, do="Take a smaller one, such as 6."
            )
        return {}

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the mean over views and anchors."""
        anchor_BD, candidates_CD = batch.now
        target_B = torch.arange(len(anchor_BD), device=anchor_BD.device)
        left_BD = normalize(self._whiten(anchor_BD), dim=1)
        losses = [
            cross_entropy(left_BD @ normalize(self._whiten(candidates_CD), dim=1).T / self.temperature, target_B)
            for _ in range(self.views)
        ]
        return Loss(torch.stack(losses).mean(), {})

    def _whiten(self, rows_ND: Tensor) -> Tensor:
        order_D = torch.randperm(rows_ND.shape[1]).to(rows_ND.device)  # of the generator that a checkpoint holds
        return whiten(rows_ND, order_D, group_width=self.group_width, shrinkage=self.shrinkage)


def whiten(rows_ND: Tensor, order_D: Tensor, *, group_width: int, shrinkage: float) -> Tensor:
    """Whiten N rows in groups of W coordinates, taken in an order that is undone afterwards."""
    size = len(rows_ND)
    grouped_GNW = rows_ND[:, order_D].double().view(size, -1, group_width).transpose(0, 1)
    centred_GNW = grouped_GNW - grouped_GNW.mean(1, keepdim=True)
    covariance_GWW = centred_GNW.mT @ centred_GNW / size
    mean_G = covariance_GWW.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)  # a single row has no variance
    eye_WW = torch.eye(group_width, dtype=mean_G.dtype, device=mean_G.device)
    root_GWW: Any = _InverseRoot.apply(covariance_GWW + shrinkage * mean_G[:, None, None] * eye_WW)
    white_ND = (centred_GNW @ root_GWW).transpose(0, 1).reshape(size, -1)
    return white_ND[:, order_D.argsort()].to(rows_ND.dtype)


class _InverseRoot(torch.autograd.Function):
    """C^(-1/2) of symmetric positive definite matrices."""

    @staticmethod
    def forward(ctx: Any, matrix_GWW: Tensor) -> Tensor:
        values_GW, vectors_GWW = torch.linalg.eigh(matrix_GWW)
        roots_GW = values_GW.sqrt()
        ctx.save_for_backward(roots_GW, vectors_GWW)
        return vectors_GWW @ (vectors_GWW.mT / roots_GW[:, :, None])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        roots_GW, vectors_GWW = ctx.saved_tensors
        left, right = roots_GW[:, :, None], roots_GW[:, None, :]
        slope_GWW = -1 / (left * right * (left + right))  # of x^(-1/2) between two eigenvalues, or at one
        inner_GWW = vectors_GWW.mT @ upstream[0] @ vectors_GWW
        return vectors_GWW @ (slope_GWW * inner_GWW) @ vectors_GWW.mT
