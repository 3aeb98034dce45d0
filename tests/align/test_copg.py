"""Contrastive policy gradient: its identities, and the paper's bandit."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

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


def load_bandit() -> Any:
    spec = importlib.util.spec_from_file_location("bandit", Path(__file__).parents[2] / "benchmarks" / "bandit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_papers_bandit() -> None:
    """The optimum is (0.70538, 0.25950, 0.03512) at 2.12520; the uniform start is 0.29187 below it.

    Off policy, contrastive policy gradient ends at the optimum. IPO on sampled preferences ends elsewhere (its own optimum is
    0.1525 below), a policy gradient without a baseline below its start, and one with the policy's mean score for a baseline
    near the optimum, not at it.
    """
    bandit = load_bandit()
    assert bandit.BEST.tolist() == pytest.approx([0.70538, 0.25950, 0.03512], abs=1e-5)
    assert float(bandit.value(bandit.BEST)) == pytest.approx(2.12520, abs=1e-5)
    start = float(bandit.value(bandit.BEST) - bandit.value(torch.full((3,), 1 / 3)))
    assert start == pytest.approx(0.29187, abs=1e-5)
    early, _, late = bandit.train(bandit.copg, epochs=600)
    assert early < 0.02
    assert late < 1e-4
    assert 0.14 < bandit.train(bandit.ipo, epochs=300)[-1] < 0.17
    assert bandit.train(bandit.dpo, epochs=100)[-1] < 0.03
    assert bandit.train(bandit.plain, epochs=100)[-1] > start
    assert 0.005 < bandit.train(bandit.mean_score, epochs=300)[-1] < 0.1
    # With the regularised value for a baseline it is unbiased at the optimum: a finding, not the paper's.
    assert bandit.train(bandit.mean_value, epochs=300)[-1] < 1e-3
