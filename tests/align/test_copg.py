"""Contrastive policy gradient: its identities, and the paper's bandit."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from align.objectives.copg import copg_loss


def draw_group(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw log-ratios, for a gradient, and scores."""
    made = torch.Generator().manual_seed(seed)
    ratio, score = (torch.randn(size, generator=made, dtype=torch.float64) for _ in range(2))
    return ratio.requires_grad_(), score


def find_gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


def one_group(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.long)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_it_is_the_papers_sum_over_pairs_and_the_square(size: int) -> None:
    ratio, score = draw_group(size, size)
    loss = copg_loss(ratio, score, one_group(size), beta=0.3).sum()
    paper = square = torch.zeros((), dtype=torch.float64)
    for at, other in itertools.combinations(range(size), 2):
        regular = score - 0.15 * ratio
        paper = paper - (regular[at] - regular[other]) * ratio[at] - (regular[other] - regular[at]) * ratio[other]
        square = square + ((score[at] - score[other]) - 0.3 * (ratio[at] - ratio[other])) ** 2 / (2 * 0.3)
    scale = size * (size - 1)
    assert loss.item() == pytest.approx(paper.item() / scale, abs=1e-12)
    for form in (paper, square):
        assert torch.allclose(find_gradient(loss, ratio), find_gradient(form, ratio) / scale)


@pytest.mark.parametrize("size", [2, 5])
def test_its_gradient_is_rloos(size: int) -> None:
    """Of a completion: its regularised score less the mean of the others', held fixed, times the gradient of log pi."""
    ratio, score = draw_group(size, size)
    regular = (score - 0.3 * ratio).detach()
    others = (regular.sum() - regular) / (size - 1)
    rloo = -((regular - others) * ratio).sum() / size
    found = copg_loss(ratio, score, one_group(size), beta=0.3).sum()
    assert torch.allclose(find_gradient(found, ratio), find_gradient(rloo, ratio))


def test_scores_of_a_quarter_make_it_ipo() -> None:
    """Azar et al. 2023 (arXiv 2310.12036), equation 17, with tau = beta: (D - 1 / (2 beta))^2."""
    ratio, _ = draw_group(1, 2)
    found = copg_loss(ratio, torch.tensor([0.25, -0.25]), one_group(2), beta=0.3).sum()
    ipo = (ratio[0] - ratio[1] - 1 / (2 * 0.3)) ** 2
    assert torch.allclose(find_gradient(found, ratio), find_gradient(ipo, ratio) * 0.3 / 4)


def test_groups_keep_to_themselves_and_one_completion_teaches_nothing() -> None:
    ratio, score = draw_group(3, 6)
    group = torch.tensor([1, 0, 1, 2, 0, 1])
    found = copg_loss(ratio, score, group, beta=0.3)
    for number in range(3):
        own = group == number
        alone = copg_loss(ratio[own], score[own], one_group(int(own.sum())), beta=0.3)
        assert found[number].item() == pytest.approx(alone.item(), abs=1e-12)
    assert found[2] == 0 and find_gradient(found.sum(), ratio)[3] == 0
    moved = copg_loss(ratio, score + torch.tensor([5.0, -2, 5, 0, -2, 5], dtype=torch.float64), group, beta=0.3)
    assert torch.allclose(found, moved), "a constant added to the scores of a prompt changes nothing"


SCORES = torch.tensor([2.5, 2.0, 1.0])
BETA = 0.5
BEST = torch.softmax(SCORES / BETA, 0)  # the reference is uniform
UNIFORM = -torch.log(torch.tensor(3.0))


def value(policy: Tensor) -> Tensor:
    return (policy * (SCORES - BETA * (policy.log() - UNIFORM))).sum()


def train(loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, epochs: int) -> float:
    """Train a softmax policy of three arms on 10,000 pairs as in section 5.1; return its regret."""
    made = torch.Generator().manual_seed(0)
    first, second = (
        torch.multinomial(torch.tensor(arms), 10_000, replacement=True, generator=made)
        for arms in ((0.1, 0.2, 0.7), (0.05, 0.05, 0.9))
    )
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(10_000, generator=made).split(512):
            optimizer.zero_grad()
            loss(logits.log_softmax(0), first[rows], second[rows]).backward()
            optimizer.step()
    return float(value(BEST) - value(logits.detach().softmax(0)))


def copg(logps: Tensor, first: Tensor, second: Tensor) -> Tensor:
    arms = torch.cat([first, second])
    group = torch.arange(len(first)).repeat(2)
    return copg_loss(logps[arms] - UNIFORM, SCORES[arms], group, beta=BETA).mean()


def ipo(logps: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """On preferences drawn by Bradley and Terry's model of the scores."""
    wins = torch.rand(len(first), generator=DRAWS) < torch.sigmoid(SCORES[first] - SCORES[second])
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    return (logps[chosen] - logps[rejected] - 1 / (2 * BETA)).square().mean()


def policy_gradient(baseline: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Make the gradient of off-policy samples as if they were the policy's own."""

    def loss(logps: Tensor, first: Tensor, second: Tensor) -> Tensor:
        arms = torch.cat([first, second])
        regular = (SCORES - BETA * (logps - UNIFORM)).detach()
        return -((regular[arms] - baseline(logps.detach())) * logps[arms]).mean()

    return loss


DRAWS = torch.Generator().manual_seed(1)


def test_the_papers_bandit() -> None:
    """The optimum is (0.70538, 0.25950, 0.03512) at 2.12520; the uniform start is 0.29187 below it.

    Off policy, contrastive policy gradient ends at the optimum. IPO on sampled preferences ends elsewhere, a policy gradient
    without a baseline below its start, and one with the policy's mean score for a baseline near the optimum, not at it.
    """
    assert BEST.tolist() == pytest.approx([0.70538, 0.25950, 0.03512], abs=1e-5)
    assert float(value(BEST)) == pytest.approx(2.12520, abs=1e-5)
    start = float(value(BEST) - value(torch.full((3,), 1 / 3)))
    assert start == pytest.approx(0.29187, abs=1e-5)
    assert train(copg, epochs=600) < 1e-4
    assert 0.1 < train(ipo, epochs=300) < 0.2
    assert train(policy_gradient(lambda _: torch.zeros(())), epochs=100) > start
    assert 0.005 < train(policy_gradient(lambda logps: (logps.exp() * SCORES).sum()), epochs=300) < 0.1
