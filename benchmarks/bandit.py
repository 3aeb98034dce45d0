"""Regret on the bandit of contrastive policy gradient's paper, by objective (Flet-Berliac et al. 2024, section 5.1).

    python benchmarks/bandit.py

Three arms with rewards 2.5, 2 and 1, a uniform reference, beta 0.5; 10,000 pairs whose arms come from two fixed policies
that like the worst arm; Adam at 1e-3 on softmax logits from 0, batches of 512. Regret is J(best) - J(policy) with J the
reward less beta KL to the reference. IPO and DPO learn preferences drawn by Bradley and Terry's model; the policy gradients
take the pairs' arms for their own draws. Mean and range of 5 seeds.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a file beside this one would hide the package `align`

from align.objectives.copg import copg_loss  # noqa: E402  (once the path is right)

SCORES = torch.tensor([2.5, 2.0, 1.0])
BETA = 0.5
BEST = torch.softmax(SCORES / BETA, 0)  # the reference is uniform
UNIFORM = -torch.log(torch.tensor(3.0))
EPOCHS = (100, 300, 600)
SEEDS = 5

Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""Log-probabilities of the arms, the first and the second arm of each pair, a source of draws -> a scalar."""


def value(policy: Tensor) -> Tensor:
    """Return J."""
    return (policy * (SCORES - BETA * (policy.log() - UNIFORM))).sum()


def train(loss: Loss, *, epochs: int, seed: int = 0) -> list[float]:
    """Return the regret after each of `EPOCHS` up to `epochs`, or after `epochs` alone where it is none of them."""
    made, draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    first, second = (
        torch.multinomial(torch.tensor(arms), 10_000, replacement=True, generator=made)
        for arms in ((0.1, 0.2, 0.7), (0.05, 0.05, 0.9))
    )
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=1e-3)
    found: list[float] = []
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(10_000, generator=made).split(512):
            optimizer.zero_grad()
            loss(logits.log_softmax(0), first[rows], second[rows], draws).backward()
            optimizer.step()
        if epoch in EPOCHS or epoch == epochs:
            found.append(float(value(BEST) - value(logits.detach().softmax(0))))
    return found


def copg(logps: Tensor, first: Tensor, second: Tensor, draws: torch.Generator) -> Tensor:  # noqa: ARG001  (a Loss)
    """Contrastive policy gradient."""
    arms = torch.cat([first, second])
    group = torch.arange(len(first)).repeat(2)
    return copg_loss(logps[arms] - UNIFORM, SCORES[arms], group, beta=BETA).mean()


def prefer(logps: Tensor, first: Tensor, second: Tensor, draws: torch.Generator) -> Tensor:
    """Return the difference of the log-ratios of the preferred and the other arm."""
    wins = torch.rand(len(first), generator=draws) < torch.sigmoid(SCORES[first] - SCORES[second])
    return logps[torch.where(wins, first, second)] - logps[torch.where(wins, second, first)]


def ipo(logps: Tensor, first: Tensor, second: Tensor, draws: torch.Generator) -> Tensor:
    """Azar et al. 2023, equation 17."""
    return (prefer(logps, first, second, draws) - 1 / (2 * BETA)).square().mean()


def dpo(logps: Tensor, first: Tensor, second: Tensor, draws: torch.Generator) -> Tensor:
    """Rafailov et al. 2023, equation 7."""
    return -logsigmoid(BETA * prefer(logps, first, second, draws)).mean()


def policy_gradient(baseline: Callable[[Tensor], Tensor]) -> Loss:
    """Make the gradient of off-policy samples as if they were the policy's own."""

    def loss(logps: Tensor, first: Tensor, second: Tensor, draws: torch.Generator) -> Tensor:  # noqa: ARG001  (a Loss)
        arms = torch.cat([first, second])
        regular = (SCORES - BETA * (logps - UNIFORM)).detach()
        return -((regular[arms] - baseline(logps.detach())) * logps[arms]).mean()

    return loss


plain = policy_gradient(lambda _: torch.zeros(()))
mean_score = policy_gradient(lambda logps: (logps.exp() * SCORES).sum())
mean_value = policy_gradient(lambda logps: value(logps.exp()))
LOSSES: dict[str, Loss] = {
    "contrastive policy gradient": copg,
    "IPO": ipo,
    "DPO": dpo,
    "policy gradient, no baseline": plain,
    "policy gradient, baseline E[R]": mean_score,
    "policy gradient, baseline E[R - beta log(pi / ref)]": mean_value,
}


def main() -> None:
    """Print the table."""
    start = float(value(BEST) - value(torch.full((3,), 1 / 3)))
    best = ", ".join(f"{item:.5f}" for item in BEST)
    print(f"optimum {best} at {value(BEST):.5f}; regret of the uniform start {start:.5f}")
    print(f"\n| objective | {' | '.join(f'{count} passes' for count in EPOCHS)} |\n|---|{'---|' * len(EPOCHS)}")
    for name, loss in LOSSES.items():
        rows = [train(loss, epochs=EPOCHS[-1], seed=seed) for seed in range(SEEDS)]
        cells = [f"{sum(own) / SEEDS:.4f} ({min(own):.4f} to {max(own):.4f})" for own in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
