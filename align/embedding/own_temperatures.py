"""A contrastive loss with a temperature for every row, learnt as the row's negatives ask for.

Source: Qiu et al. 2023, iSogCLR (arXiv 2305.11965), its robust loss for a row and its algorithm; reference code read:
github.com/zhqiu/contrastive-learning-iSogCLR at 858647c. With h_ij = cos(a_i, c_j) - cos(a_i, p_i) over the negatives c_j
of row i,
    min over tau_i in [floor, ceiling] of  tau_i (log mean_j exp(h_ij / tau_i) + rho),
which is the worst mean of h_ij under weights whose divergence from equal ones is at most rho nats. A batch has few of a
row's negatives, so the mean is a running one: u <- (1 - gamma) u + gamma mean_j exp(h_ij / tau_i); then, w_ij = exp(h_ij /
tau_i) / u_i,
    gradient by the model: mean_j w_ij grad h_ij
    by tau_i: log u_i + rho - mean_j w_ij h_ij / tau_i, clipped at 3, with momentum.
Rows whose meaning is frequent come to larger temperatures, which forgive near negatives.
Differences: (1) anchors alone have temperatures, the positives pick none; (2) u is kept as its logarithm, so that nothing
overflows, and begins with a row's first batch, not with the first epoch; (3) rho is 2 instead of 6, and one that the
batch's negatives cannot reach is refused: the divergence is at most the logarithm of their number, and above it every tau
falls to its floor (the released runs have 1,023 negatives).
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field

from align.embedding_loss import Embedded, OwnLoss, State
from align.objective import Loss
from counterfoil.errors import ConfigError
from counterfoil.records import Triplet

__all__ = ["OwnTemperatures"]

CLIP = 3.0
"""Largest gradient by a temperature, as in the reference code."""


class OwnTemperatures(OwnLoss):
    """Push negatives away as hard as a row can bear."""

    temperature: float = Field(default=0.07, gt=0)
    """Where every row's begins."""
    floor: float = Field(default=0.02, gt=0)
    """The smallest temperature (tau_0)."""
    ceiling: float = Field(default=1.0, gt=0)
    """The largest."""
    rho: float = Field(default=2.0, gt=0)
    """How far, in nats, a row's weights may be from equal ones: the larger, the smaller its temperature."""
    gamma: float = Field(default=0.8, gt=0, le=1)
    """Share of the batch at hand in the running mean."""
    rate: float = Field(default=0.01, ge=0)
    """Learning rate of the temperatures (eta)."""
    beta: float = Field(default=0.9, gt=0, le=1)
    """Share of the gradient at hand in a temperature's step."""

    def start(self, rows: Sequence[Triplet], *, width: int, batch_size: int) -> State:
        """Keep three numbers a row."""
        columns = 2 if all(row.negative is not None for row in rows) else 1
        most = math.log(max(1, columns * batch_size - 1))
        if self.rho >= most:
            allowed = (
                f"below {most:.2f}, the logarithm of the {columns * batch_size - 1} negatives that a row has in a batch"
            )
            raise ConfigError("loss.rho", given=str(self.rho), allowed=allowed, do="Lower rho, or raise batch_size.")
        return {
            "log_mean": torch.full((len(rows),), -torch.inf),
            "tau": torch.full((len(rows),), self.temperature),
            "slope": torch.zeros(len(rows)),
        }

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return what has the gradient above, and move the batch's temperatures."""
        cosine_BC, row_B = batch.now.cosine_BC, batch.row_B
        size, count = cosine_BC.shape
        if count == 1:
            return Loss(0 * cosine_BC.sum(), {})  # a single row without a negative has nothing to be told from
        own_BC = torch.eye(size, count, dtype=torch.bool, device=cosine_BC.device)
        gap_BN = (cosine_BC - cosine_BC.diagonal()[:, None])[~own_BC].view(size, count - 1)
        tau_B, before_B = state["tau"][row_B], state["log_mean"][row_B]
        with torch.no_grad():
            scaled_BN = gap_BN / tau_B[:, None]
            batch_B = scaled_BN.logsumexp(1) - math.log(count - 1)
            weighed_B = (
                torch.logaddexp(before_B + math.log1p(-self.gamma), batch_B + math.log(self.gamma))
                if self.gamma < 1
                else batch_B
            )
            log_mean_B = torch.where(before_B.isinf(), batch_B, weighed_B)
            weight_BN = (scaled_BN - log_mean_B[:, None]).exp()
            slope_B = (log_mean_B + self.rho - (weight_BN * scaled_BN).mean(1)).clamp(-CLIP, CLIP)
            slope_B = (1 - self.beta) * state["slope"][row_B] + self.beta * slope_B
            state["log_mean"][row_B], state["slope"][row_B] = log_mean_B, slope_B
            state["tau"][row_B] = (tau_B - self.rate * slope_B).clamp(self.floor, self.ceiling)
        objective_B = tau_B * (log_mean_B + self.rho)
        return Loss((weight_BN * gap_BN).mean(), {"tau": tau_B.mean(), "objective": objective_B.mean()})
