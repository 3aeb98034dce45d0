"""The tiled head against the logits of the whole batch."""

import pytest
import torch
from torch import Tensor

import decode.head
from decode.head import Head, TokenScores, score_labels

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 2.0},
    "all": {"bias": True, "scale": 0.5, "softcap": 3.0},
}


def make(*, bias: bool = False, scale: float = 1.0, softcap: float | None = None) -> tuple[Tensor, Tensor, Head]:
    torch.manual_seed(0)
    weight, states = torch.randn(97, 16, dtype=torch.float64), torch.randn(23, 16, dtype=torch.float64)
    head = Head(weight, torch.randn(97, dtype=torch.float64) if bias else None, scale, softcap)
    return states.requires_grad_(), torch.randint(0, 97, (23,)), head


def score_plainly(states: Tensor, labels: Tensor, head: Head) -> TokenScores:
    logits = states @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return TokenScores(
        log_probs.gather(1, labels[:, None])[:, 0], entropy, logits.mean(-1), logits.argmax(-1) == labels
    )


@pytest.mark.parametrize("tile", [97, 97 * 7, 97 * 1000])
@pytest.mark.parametrize("kind", HEADS)
def test_scores_and_gradients_are_those_of_whole_logits(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode.head, "TILE", tile)
    states, labels, head = make(**HEADS[kind])
    labels[3] = (states[3] @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)).argmax()
    expected = score_plainly(states, labels, head)
    slopes = torch.randn(23, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((expected.log_probs * slopes).sum(), states)
    found = score_labels(states, labels, head)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-6, atol=1e-6)
    (shared,) = torch.autograd.grad((found.log_probs * slopes).sum(), states)
    torch.testing.assert_close(shared, gradient, rtol=1e-6, atol=1e-6)
    assert found.is_top1[3]


def test_without_gradient_or_extras_the_log_probabilities_are_the_same() -> None:
    states, labels, head = make(bias=True)
    whole = score_labels(states, labels, head)
    with torch.no_grad():
        for one, other in zip(score_labels(states, labels, head), whole, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-6)
        alone = score_labels(states, labels, head, extras=False)
        assert not alone.entropy.any()
    torch.testing.assert_close(alone.log_probs, whole.log_probs.detach())


def test_a_label_whose_probability_underflows_has_its_log() -> None:
    head = Head(torch.tensor([[0.0], [1.0]]))
    found = score_labels(torch.tensor([[200.0]]), torch.tensor([0]), head)
    assert found.log_probs.item() == pytest.approx(-200)


def test_no_label_at_all_gives_an_empty_score() -> None:
    states, labels, head = make()
    assert score_labels(states[:0], labels[:0], head).log_probs.shape == (0,)
